// Which builds of the hot sources this module holds, and which of them this CPU can run.
//
// Knows nothing of the kernels. Asks the CPU through the compiler's own CPUID support, which also
// checks that the operating system saves the wide registers.

#include "isa_builds.h"

#include <vector>

#include "isa.h"

#if defined(MT_HAVE_AVX2)
#include <cpuid.h>
#endif
#if defined(MT_HAVE_AMX)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace mt {

#if defined(MT_HAVE_AVX2)
static bool has_avx2() {
  // clang up to 18 knows no name for f16c. Its registers are those of avx2, which is asked below.
  unsigned a = 0, b = 0, c = 0, d = 0;
  const unsigned f16c = 1u << 29;
  if (!__get_cpuid(1, &a, &b, &c, &d) || (c & f16c) == 0) return false;
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("bmi2");
}
#endif

#if defined(MT_HAVE_AVX512)
static bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl");
}
#endif

#if defined(MT_HAVE_AVX512BF16)
static bool has_avx512bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }
#endif

#if defined(MT_HAVE_AMX)
static bool has_amx() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!has_avx512bf16() || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  const unsigned tile = 1u << 24, bf16 = 1u << 22;
  if ((d & tile) == 0 || (d & bf16) == 0) return false;
#if defined(__linux__)
  // Linux saves the tiles only for a process that asked: ARCH_REQ_XCOMP_PERM, XTILEDATA.
  return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#else
  return false;
#endif
}
#endif

#if defined(MT_HAVE_AVX512BF16)
// Whether products of bf16 are slower than multiplying widened numbers. On Intel's CPUs with AMX, of
// which the tiles may be withheld, they take about two cycles, in which there is time for four
// products of floats: 110 GFLOP/s a core instead of 170. AMD's take one, with half the floats.
static bool has_slow_dot_products() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __builtin_cpu_is("intel") && __get_cpuid_count(7, 0, &a, &b, &c, &d) &&
         (d & 1u << 22) != 0;
}
#endif

static std::vector<IsaBuild> slowest_first() {
  std::vector<IsaBuild> builds;
  builds.push_back({"portable", portable::compiled_for(), true, portable::ops()});
#if defined(MT_HAVE_AVX2)
  __builtin_cpu_init();
  builds.push_back({"avx2", avx2::compiled_for(), has_avx2(), avx2::ops()});
#endif
#if defined(MT_HAVE_AVX512)
  builds.push_back({"avx512", avx512::compiled_for(), has_avx512(), avx512::ops()});
#endif
#if defined(MT_HAVE_AVX512BF16)
  const auto at = has_slow_dot_products() ? builds.end() - 1 : builds.end();
  const char* compiled_for = avx512bf16::compiled_for();
  builds.insert(at, {"avx512bf16", compiled_for, has_avx512bf16(), avx512bf16::ops()});
#endif
#if defined(MT_HAVE_AMX)
  builds.push_back({"amx", amx::compiled_for(), has_amx(), amx::ops()});
#endif
  return builds;
}

const IsaBuild* isa_builds(int* count) {
  static const std::vector<IsaBuild> builds = slowest_first();
  *count = static_cast<int>(builds.size());
  return builds.data();
}

}  // namespace mt
