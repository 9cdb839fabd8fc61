#include "base/kept_memory.h"

#include <cstdlib>
#ifdef __GLIBC__
#include <malloc.h>
#endif

namespace subspace {

void keep_freed_memory() {
#ifdef __GLIBC__
  // The most that glibc takes from its own heaps: half of one of them.
  constexpr int kLargestBlock = 32 << 20, kKept = 1 << 30;
  mallopt(M_MMAP_THRESHOLD, kLargestBlock);
  mallopt(M_TRIM_THRESHOLD, kKept);
#endif
}

}  // namespace subspace
