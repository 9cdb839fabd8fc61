#include "kernels/isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <cstring>

namespace subspace::kernels {

bool isa_available(Isa isa) {
  if (isa == Isa::portable) return true;
#if defined(__x86_64__)
  // clang 14's builtin does not know "f16c": leaf 1 of cpuid says it, in bit 29 of ecx.
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  const bool f16c = __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx >> 29 & 1) != 0;
  const bool avx2 = f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (isa == Isa::avx2) return avx2;
  return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
  return false;
#endif
}

Isa best_isa() {
  static const Isa best = isa_available(Isa::avx2) ? Isa::avx2 : Isa::portable;
  return best;
}

Isa widest_isa() {
  static const Isa widest = isa_available(Isa::avx512) ? Isa::avx512 : best_isa();
  return widest;
}

Vendor processor_vendor() {
#if defined(__x86_64__)
  unsigned eax = 0, name[3] = {};
  if (__get_cpuid(0, &eax, &name[0], &name[2], &name[1]) != 0 &&
      std::memcmp(name, "GenuineIntel", sizeof name) == 0) {
    return Vendor::intel;
  }
#endif
  return Vendor::other;
}

}  // namespace subspace::kernels
