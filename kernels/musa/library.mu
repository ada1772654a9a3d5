/* What a library of device kernels says of itself and of its devices; library.h has the contract.
 *
 * Knows no operation.
 */
#include "common.muh"

namespace {

int attribute(int* value, musaDeviceAttr which, int device) {
  return static_cast<int>(musaDeviceGetAttribute(value, which, device));
}

}  // namespace

int mt_device_abi_version(void) { return MT_ABI_VERSION; }

const char* mt_device_kind(void) {
#if defined(MT_EMULATED)
  return "emulated";
#elif defined(MT_NVIDIA)
  return "nvidia";
#else
  return "musa";
#endif
}

const char* mt_device_error(int code) {
  if (code == MT_DEVICE_UNSUPPORTED) return "no kernel for such shapes or dtypes";
  return musaGetErrorString(static_cast<musaError_t>(code));
}

int mt_device_facts(int device, mt_device_facts_t* facts) {
  int code = attribute(&facts->warp_size, musaDevAttrWarpSize, device);
  if (code == 0) {
    code = attribute(&facts->shared_bytes_per_block, musaDevAttrMaxSharedMemoryPerBlock, device);
  }
  if (code == 0) {
    code = attribute(&facts->multiprocessors, musaDevAttrMultiProcessorCount, device);
  }
#if defined(MT_NVIDIA)
  facts->arch = MT_MUSA_ARCH;
#else
  int major = 0, minor = 0;
  if (code == 0) code = attribute(&major, musaDevAttrComputeCapabilityMajor, device);
  if (code == 0) code = attribute(&minor, musaDevAttrComputeCapabilityMinor, device);
  facts->arch = 100 * major + 10 * minor;
#endif
  return code;
}
