#pragma once

#include <cstdint>

#include "attention/family.h"
#include "base/json.h"
#include "spectrum/layer_spectra.h"

namespace subspace {

/// Bytes of this process that are in memory now, and the most that ever were.
std::uint64_t resident_memory();
std::uint64_t peak_memory();

/// What a run on the CPU holds at most, in bytes, beyond `resident` before it begins:
///   2 layers of `layer_bytes` (the one in work, the one being decoded); a third where norms are
///   folded or maps carried to model space, which makes new matrices;
///   3 squares of the model's width (a Gram matrix, LAPACK's copy, its blocks);
///   8 squares a head (Gram matrices and factors of fused maps);
///   512 MiB for the libraries: buffers, and their code as it is paged in.
/// Zero where no bound is stated: --exact forms the fused maps.
std::uint64_t memory_bound(const ModelShape& shape, const SpectraOptions& options,
                           std::uint64_t layer_bytes, std::uint64_t resident);

/// summary.json's "memory": peak, bound (null on a GPU or with --exact) and its words.
Json memory_json(std::uint64_t bound, std::uint64_t layer_bytes);

}  // namespace subspace
