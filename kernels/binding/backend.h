// The operations of one backend under one set of names: a build of the CPU's kernels, or a library
// of device kernels opened at run time.
//
// Knows nothing of Python or torch. abi.h says what each operation computes, musa/library.h what a
// library exports.

#ifndef MTACTORS_KERNELS_BINDING_BACKEND_H
#define MTACTORS_KERNELS_BINDING_BACKEND_H

#include <stdint.h>

#include <string>
#include <vector>

#include "abi.h"
#include "cpu/ops.h"
#include "musa/library.h"

namespace mt {

// What a library exports; null where it has no such operation.
struct DeviceCalls {
  const char* (*kind)();
  const char* (*error)(int);
  int (*facts)(int, mt_device_facts_t*);
  int (*embedding)(const mt_embedding*);
  int (*rms_norm)(const mt_rms_norm*);
  int (*rope)(const mt_rope*);
  int (*kv_write)(const mt_kv_write*);
  int (*attention)(const mt_attention*);
  int (*silu_and_mul)(const mt_silu_and_mul*);
  int (*copy_blocks)(const mt_copy_blocks*);
  int (*sample)(const mt_sample*);
  int (*logprobs)(const mt_logprobs*);
  int64_t (*attention_workspace)(const mt_attention*);
  int64_t (*sample_workspace)(const mt_sample*);
};

// What became of a call. `code`: 0, or as in musa/library.h. `workspace`: bytes of scratch that it
// takes; where fewer were handed in, nothing was started and code is 0.
struct Outcome {
  int code;
  int64_t workspace;
};

class Backend {
 public:
  // A build of the CPU's kernels; std::invalid_argument where it is none or does not run here.
  static Backend isa(const std::string& name);
  // A library, which stays open; std::runtime_error with the reason where it cannot be used.
  static Backend library(const std::string& path);

  // "cpu", or what the library calls itself.
  const char* kind() const { return ops_ != nullptr ? "cpu" : calls_.kind(); }
  // Names of the operations it has, as abi.h spells them.
  std::vector<std::string> operations() const;
  // The CPU's table; std::invalid_argument for a library.
  const Ops& ops() const;
  // The text of a code.
  std::string error(int code) const;
  mt_device_facts_t facts(int device) const;

  int run(const mt_embedding& op) const;
  int run(const mt_rms_norm& op) const;
  int run(const mt_rope& op) const;
  int run(const mt_kv_write& op) const;
  int run(const mt_silu_and_mul& op) const;
  int run(const mt_copy_blocks& op) const;
  int run(const mt_logprobs& op) const;
  Outcome run_with_workspace(const mt_attention& op) const;
  Outcome run_with_workspace(const mt_sample& op) const;

 private:
  template <typename Op>
  int choose(const Op& op, void (*Ops::*on_cpu)(const Op&),
             int (*DeviceCalls::*on_device)(const Op*)) const;

  const Ops* ops_ = nullptr;
  DeviceCalls calls_ = {};
};

}  // namespace mt

#endif
