// The runtime's questions, and the controls that the emulated library exports.

#include "control.h"
#include "musa_runtime.h"
#include "shared_memory.h"
#include "status.h"

namespace mt_emulator {

Status& status() {
  static Status made;
  return made;
}

}  // namespace mt_emulator

musaError_t musaPeekAtLastError() { return mt_emulator::status().error; }

musaError_t musaGetLastError() {
  auto& m = mt_emulator::status();
  const musaError_t error = m.error;
  m.error = musaSuccess;
  return error;
}

const char* musaGetErrorString(musaError_t error) {
  const auto& m = mt_emulator::status();
  if (error == musaSuccess) return "no error";
  if (error == musaErrorInvalidValue) return "invalid value";
  return m.fault.empty() ? "unknown error" : m.fault.c_str();
}

musaError_t musaDeviceGetAttribute(int* value, musaDeviceAttr attribute, int device) {
  if (device != 0) return musaErrorInvalidValue;
  switch (attribute) {
    case musaDevAttrMaxSharedMemoryPerBlock:
      *value = static_cast<int>(mt_emulator::kSharedLimit);
      return musaSuccess;
    case musaDevAttrWarpSize:
      *value = mt_emulator::status().warp;
      return musaSuccess;
    case musaDevAttrMultiProcessorCount:
      *value = 1;
      return musaSuccess;
    case musaDevAttrComputeCapabilityMajor:
    case musaDevAttrComputeCapabilityMinor:
      *value = 0;
      return musaSuccess;
  }
  return musaErrorInvalidValue;
}

int mt_emulator_configure(uint64_t seed, int warp, int guard) {
  if (warp != 32 && warp != 128) return 1;
  const std::lock_guard<std::mutex> lock(mt_emulator::status().launching);
  auto& m = mt_emulator::status();
  m.seed = seed;
  m.warp = warp;
  m.guard = guard != 0;
  return 0;
}

const char* mt_emulator_fault(void) { return mt_emulator::status().fault.c_str(); }

int64_t mt_emulator_launches(void) { return mt_emulator::status().launches; }

void* mt_emulator_allocate(int64_t bytes, int64_t alignment) {
  if (bytes < 0 || alignment < 1) return nullptr;
  return mt_emulator::allocate_guarded(static_cast<size_t>(bytes), static_cast<size_t>(alignment));
}

void mt_emulator_free(void* pointer) { mt_emulator::free_guarded(pointer); }
