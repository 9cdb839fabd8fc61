#pragma once

namespace subspace::kernels {

/// Versions of a CPU kernel. Every kernel has the first two; a header says where there is a third.
enum class Isa { portable, avx2, avx512 };
/// True if this processor has it.
bool isa_available(Isa isa);
/// The faster of the first two that this processor has.
Isa best_isa();
/// The fastest of all that this processor has.
Isa widest_isa();

/// Who made the processor: libraries choose their kernels by it.
enum class Vendor { intel, other };
Vendor processor_vendor();

}  // namespace subspace::kernels
