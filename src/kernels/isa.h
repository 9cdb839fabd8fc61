#pragma once

namespace subspace::kernels {

/// Versions of a CPU kernel.
enum class Isa { portable, avx2 };
/// True if this processor has it.
bool isa_available(Isa isa);
/// The fastest that this processor has.
Isa best_isa();

}  // namespace subspace::kernels
