#include "kernels/isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace subspace::kernels {

bool isa_available(Isa isa) {
  if (isa == Isa::portable) return true;
#if defined(__x86_64__)
  // clang 14's builtin does not know "f16c": leaf 1 of cpuid says it, in bit 29 of ecx.
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  const bool f16c = __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx >> 29 & 1) != 0;
  return f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return false;
#endif
}

Isa best_isa() {
  static const Isa best = isa_available(Isa::avx2) ? Isa::avx2 : Isa::portable;
  return best;
}

}  // namespace subspace::kernels
