#pragma once

#include <array>
#include <vector>

#include "lora/null.h"
#include "lora/rope_mean.h"
#include "lora/wiring.h"

namespace subspace {

/// Through which input of the later head the earlier one's output acts (Elhage et al. 2021).
enum class Mode { q, k, v };
inline constexpr std::array<Mode, 3> kModes = {Mode::q, Mode::k, Mode::v};
const char* mode_name(Mode mode);

/// Which side of a connection an adapter made: b base, n new; the writer first.
enum class Route { bn, nb, nn };
inline constexpr std::array<const char*, 3> kRouteNames = {"bn", "nb", "nn"};

/// a / b of norms: NaN where b is not above zero, for a score that has nothing to be relative to.
double quotient(double a, double b);

/// One head as a writer, M1 = V O, ready to be composed. M1' = V' O' with V' = V + dV and
/// O' = O + A B. left0 and left1 are the columns of T in [V | dV] = Q T (thin QR): Q is an isometry
/// and no norm sees it.
struct HeadWrite {
  at::Tensor left0, left1;  ///< [p, d_v]
  at::Tensor o, a, b;       ///< O [d_v, d], A [d_v, r], B [r, d]
  Spectrum2 base, adapted, delta;
};

/// One head as a reader, N2 = N F^T: in mode Q of the queries N = W_Q, F = W_K; K the other way
/// round; V N = W_V, F = W_O^T. right0, right1 are S in [F | dF]^T [F | dF] = S S^T, k rows each.
/// With a rotary embedding N2 = W_Q R(delta) W_K^T, the Gram matrix is the mean over the offsets
/// asked for, and every norm and inner product below is the root mean square or mean over them.
struct HeadRead {
  at::Tensor n, a, b;         ///< N [d, k], A [d, r], B [r, k]
  at::Tensor right0, right1;  ///< [k, p]
  Spectrum2 base, adapted, delta;
};

/// Eigenvalues of M^T M that are not zero, [rank] each, of the base's circuit, the adapted one and
/// their difference: what the null of a head's scores depends on beyond Spectrum2.
struct Energies {
  at::Tensor base, adapted, delta;
};
Energies energies_of(const HeadWrite& writer);
Energies energies_of(const HeadRead& reader);

HeadWrite head_write(const Wiring& wiring, std::int64_t head);
HeadRead head_read(const Wiring& wiring, std::int64_t head, Mode mode, const RopeMean& rope);

/// What an adapter does to the composition of two heads.
///
///   S  = ||M1 N2|| / (||M1|| ||N2||)      S1 the same of M1', N2'
///   S1_base = ||M1' N2'|| / (||M1|| ||N2||)
///   D  = M1' N2' - M1 N2 = M1 dN2 (bn) + dM1 N2 (nb) + dM1 dN2 (nn)
///   rho = ||D|| / (||M1|| ||N2||)         share_a = <a, D> / ||D||^2, which sum to one
///   lift_a = ||a||^2 d / (norms of its two factors)^2, mean 1 if their orientation is random
///   rho_interface: the same with the far ends left as they were (V and F of the base): what the
///   junction O, N alone does.
/// band, band1: the middle 95 % of S and of S1 under the Haar null of the heads' spectra.
/// p: chance of a lift as large under the Haar null, p_gamma = min(1, 3 min p).
/// NaN where a quotient has no meaning (no change, a factor that is zero).
struct PairScore {
  double s = 0, s1 = 0, s1_base = 0, rho = 0, rho_interface = 0, cos = 0;
  double p_s1 = 1, p_gamma = 1;
  std::array<double, 2> band{}, band1{};
  std::array<double, 3> share{}, lift{}, p{};
};

/// Scores of one pair, from cores of at most 2 d_v x 2 k; O(d d_v k) for the junction O N, which a
/// caller that has it (group blocks under GQA) may pass. No d x d matrix is formed and nothing is
/// found by subtracting: a change of 1e-9 keeps its digits.
///
/// S is Elhage et al.'s score ("A Mathematical Framework for Transformer Circuits", 2021) as
/// TransformerLens' all_composition_scores has it, for row vectors: N2 is W_QK, W_QK^T or W_VO.
PairScore composition_score(const HeadWrite& writer, const HeadRead& reader,
                            const at::Tensor& junction = {});

}  // namespace subspace
