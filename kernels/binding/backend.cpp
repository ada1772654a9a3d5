// Where an operation goes: into a table of the CPU's kernels or into an opened library.

#include "binding/backend.h"

#include <dlfcn.h>

#include <stdexcept>

#include "cpu/isa_builds.h"

namespace mt {

namespace {

template <typename Function>
void find(void* library, const char* name, Function*& found) {
  found = reinterpret_cast<Function*>(dlsym(library, name));
}

std::string last_error(const char* otherwise) {
  const char* text = dlerror();
  return text != nullptr ? text : otherwise;
}

// A library without the operation is not asked for it (kernels/device.py); this keeps a mistake
// from being a jump to address 0.
template <typename Op>
int call(int (*function)(const Op*), const Op& op) {
  return function != nullptr ? function(&op) : MT_DEVICE_UNSUPPORTED;
}

template <typename Op>
Outcome call_with_workspace(int (*function)(const Op*), int64_t (*bytes)(const Op*), const Op& op) {
  const int64_t needed = bytes != nullptr ? bytes(&op) : 0;
  if (needed < 0) return {static_cast<int>(needed), 0};
  if (needed > op.workspace_bytes) return {0, needed};
  return {call(function, op), needed};
}

}  // namespace

Backend Backend::isa(const std::string& name) {
  int count = 0;
  const IsaBuild* builds = isa_builds(&count);
  for (int i = 0; i < count; ++i) {
    if (name == builds[i].name && builds[i].runs_here) {
      Backend backend;
      backend.ops_ = builds[i].ops;
      return backend;
    }
  }
  throw std::invalid_argument("no such build of the kernels, or not for this CPU");
}

Backend Backend::library(const std::string& path) {
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) throw std::runtime_error(last_error("it cannot be opened"));
  int (*version)() = nullptr;
  find(library, "mt_device_abi_version", version);
  if (version == nullptr) {
    dlclose(library);
    throw std::runtime_error("it is no library of device kernels: no mt_device_abi_version");
  }
  const int theirs = version();
  if (theirs != MT_ABI_VERSION) {
    dlclose(library);
    throw std::runtime_error("it was built for version " + std::to_string(theirs) +
                             " of kernels/abi.h, this is version " +
                             std::to_string(MT_ABI_VERSION) + ": build it again");
  }
  Backend backend;
  DeviceCalls& calls = backend.calls_;
  find(library, "mt_device_kind", calls.kind);
  find(library, "mt_device_error", calls.error);
  find(library, "mt_device_facts", calls.facts);
  find(library, "mt_device_embedding", calls.embedding);
  find(library, "mt_device_rms_norm", calls.rms_norm);
  find(library, "mt_device_rope", calls.rope);
  find(library, "mt_device_kv_write", calls.kv_write);
  find(library, "mt_device_attention", calls.attention);
  find(library, "mt_device_silu_and_mul", calls.silu_and_mul);
  find(library, "mt_device_copy_blocks", calls.copy_blocks);
  find(library, "mt_device_sample", calls.sample);
  find(library, "mt_device_logprobs", calls.logprobs);
  find(library, "mt_device_attention_workspace", calls.attention_workspace);
  find(library, "mt_device_sample_workspace", calls.sample_workspace);
  if (calls.kind == nullptr || calls.error == nullptr || calls.facts == nullptr) {
    dlclose(library);
    throw std::runtime_error("it does not say what it is: mt_device_kind, _error or _facts lack");
  }
  return backend;
}

std::vector<std::string> Backend::operations() const {
  const bool cpu = ops_ != nullptr;
  std::vector<std::string> names;
  const auto add = [&names](const char* name, bool there) {
    if (there) names.push_back(name);
  };
  add("embedding", cpu || calls_.embedding != nullptr);
  add("rms_norm", cpu || calls_.rms_norm != nullptr);
  add("rope", cpu || calls_.rope != nullptr);
  add("kv_write", cpu || calls_.kv_write != nullptr);
  add("attention", cpu || calls_.attention != nullptr);
  add("silu_and_mul", cpu || calls_.silu_and_mul != nullptr);
  add("copy_blocks", cpu || calls_.copy_blocks != nullptr);
  add("sample", cpu || calls_.sample != nullptr);
  add("logprobs", cpu || calls_.logprobs != nullptr);
  return names;
}

const Ops& Backend::ops() const {
  if (ops_ == nullptr) throw std::invalid_argument("only the CPU's kernels do this");
  return *ops_;
}

std::string Backend::error(int code) const {
  if (code == MT_DEVICE_UNSUPPORTED) return "no kernel for such shapes or dtypes";
  const char* text = ops_ != nullptr ? nullptr : calls_.error(code);
  return text != nullptr ? text : "unknown error";
}

mt_device_facts_t Backend::facts(int device) const {
  mt_device_facts_t facts = {};
  if (ops_ != nullptr) return facts;
  const int code = calls_.facts(device, &facts);
  if (code != 0) {
    throw std::runtime_error("device " + std::to_string(device) + ": " + error(code) + " (code " +
                             std::to_string(code) + ")");
  }
  return facts;
}

template <typename Op>
int Backend::choose(const Op& op, void (*Ops::*on_cpu)(const Op&),
                    int (*DeviceCalls::*on_device)(const Op*)) const {
  if (ops_ == nullptr) return call(calls_.*on_device, op);
  (ops_->*on_cpu)(op);
  return 0;
}

int Backend::run(const mt_embedding& op) const {
  return choose(op, &Ops::embedding, &DeviceCalls::embedding);
}

int Backend::run(const mt_rms_norm& op) const {
  return choose(op, &Ops::rms_norm, &DeviceCalls::rms_norm);
}

int Backend::run(const mt_rope& op) const {
  return choose(op, &Ops::rope, &DeviceCalls::rope);
}

int Backend::run(const mt_kv_write& op) const {
  return choose(op, &Ops::kv_write, &DeviceCalls::kv_write);
}

int Backend::run(const mt_silu_and_mul& op) const {
  return choose(op, &Ops::silu_and_mul, &DeviceCalls::silu_and_mul);
}

int Backend::run(const mt_copy_blocks& op) const {
  return choose(op, &Ops::copy_blocks, &DeviceCalls::copy_blocks);
}

int Backend::run(const mt_logprobs& op) const {
  return choose(op, &Ops::logprobs, &DeviceCalls::logprobs);
}

Outcome Backend::run_with_workspace(const mt_attention& op) const {
  if (ops_ == nullptr) {
    return call_with_workspace(calls_.attention, calls_.attention_workspace, op);
  }
  ops_->attention(op);
  return {0, 0};
}

Outcome Backend::run_with_workspace(const mt_sample& op) const {
  if (ops_ == nullptr) return call_with_workspace(calls_.sample, calls_.sample_workspace, op);
  ops_->sample(op);
  return {0, 0};
}

}  // namespace mt
