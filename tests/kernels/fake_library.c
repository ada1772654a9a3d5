/* A library of device kernels for tests of those who call one: it computes nothing, writes down
 * what it was called with and answers what the test has set. -D picks what it is and lacks. */
#include <string.h>

#include "musa/library.h"

#ifndef VERSION
#define VERSION MT_ABI_VERSION
#endif
#ifndef KIND
#define KIND "emulated"
#endif

MT_EXPORT int answer;
MT_EXPORT int64_t wants;
MT_EXPORT int calls;
MT_EXPORT const void* stream;
MT_EXPORT const void* workspace;
MT_EXPORT int64_t workspace_bytes;

int mt_device_abi_version(void) { return VERSION; }
const char* mt_device_kind(void) { return KIND; }
const char* mt_device_error(int code) { return code == 7 ? "the seventh seal" : "no such code"; }
int mt_device_facts(int device, mt_device_facts_t* facts) {
  facts->arch = 220;
  facts->warp_size = 128;
  facts->shared_bytes_per_block = 28672;
  facts->multiprocessors = 48;
  return device == 0 ? 0 : 7;
}

static int called(const void* queue) {
  ++calls;
  stream = queue;
  return answer;
}

int mt_device_embedding(const mt_embedding* op) { return called(op->stream); }
int mt_device_rms_norm(const mt_rms_norm* op) { return called(op->stream); }
int mt_device_kv_write(const mt_kv_write* op) { return called(op->stream); }
int mt_device_silu_and_mul(const mt_silu_and_mul* op) { return called(op->stream); }
int mt_device_copy_blocks(const mt_copy_blocks* op) { return called(op->stream); }
int mt_device_logprobs(const mt_logprobs* op) { return called(op->stream); }
#ifndef LACKS_ROPE
int mt_device_rope(const mt_rope* op) { return called(op->stream); }
#endif

static int scratched(void* scratch, int64_t bytes, const void* queue) {
  workspace = scratch;
  workspace_bytes = bytes;
  if (wants > 0) memset(scratch, 0xff, (size_t)wants);
  return called(queue);
}

int64_t mt_device_attention_workspace(const mt_attention* op) { return op ? wants : 0; }
int64_t mt_device_sample_workspace(const mt_sample* op) { return op ? wants : 0; }
int mt_device_attention(const mt_attention* op) {
  return scratched(op->workspace, op->workspace_bytes, op->stream);
}
int mt_device_sample(const mt_sample* op) {
  return scratched(op->workspace, op->workspace_bytes, op->stream);
}
