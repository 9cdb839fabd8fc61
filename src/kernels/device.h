#pragma once

#include <cstdint>

namespace subspace::kernels {

/// Where a kernel's pointers live. Kernels never allocate: every pointer, scratch included, is the
/// caller's.
enum class Device { cpu, cuda };

/// A CUDA stream as an opaque pointer, so that headers need no CUDA (nullptr: the default stream).
using Stream = void*;

}  // namespace subspace::kernels
