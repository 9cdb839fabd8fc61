#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "lora/low_rank.h"

namespace subspace {

/// The leading singular vectors u'_j of an adapted matrix on one of its sides, against all of the
/// base's there.
struct IntruderSide {
  at::Tensor similarity;  ///< [k] max over groups g of |P_g u'_j|: the largest cosine
  at::Tensor nearest;     ///< [k] int64, that group's first direction: 0 is the base's strongest
  at::Tensor inside;      ///< [k] |P u'_j|, P on the base's span: 1 where the base has full rank
};

struct ModuleIntruders {
  at::Tensor base, adapted,
      delta;  ///< [<= k] leading singular values; delta undefined: not low rank
  double fro_base = 0, fro_delta = 0;
  std::int64_t base_rank = 0;
  IntruderSide output, input;  ///< left and right singular vectors of a matrix [out, in]
};

/// What random updates do on one side: means over the draws.
struct RandomSide {
  at::Tensor similarity;          ///< [k]
  std::vector<double> intruders;  ///< for each threshold
};
struct RandomUpdates {
  RandomSide output, input;
};

/// How many of the k directions are intruders: similarity < cosine. The published count has k = 10
/// and the output side.
std::int64_t intruders(const IntruderSide& side, double cosine);

/// Neighbouring singular values that differ by less than this part of themselves are one group:
/// the rounding of weights stored in float32 decides what single vectors of it are.
inline constexpr double kSameValue = 1e-6;

/// Which way the adapted matrix is decomposed. For tests: without it the size decides.
enum class IntruderRoute { automatic, search, dense };

/// Intruder dimensions of a whole matrix (Shuttleworth, Andreas, Torralba and Sharma, "LoRA vs Full
/// Fine-tuning: An Illusion of Equivalence", arXiv 2410.21228): leading singular vectors of W'
/// whose cosine with every singular vector of W is below a threshold.
///
///   W = U S V^T,   W' = W + L R^T = [U U_L] (diag(S) + L_c R_c^T) [V V_R]^T,   L_c = [U U_L]^T L
///
/// W [out, in] (float64 on the CPU) is decomposed once, by the library's SVD. In its coordinates W'
/// is diagonal plus rank r; its k leading vectors come from a small search space (Davidson's
/// method, preconditioned by the diagonal), and their cosines with the base's are their own
/// coordinates. Directions of W below max(out, in) eps s_1 are none of the base's.
///
/// Cost: O(out in n) for W, n the smaller side; O((out + in) r) a step of a search, a few dozen
/// steps. Values are accurate to about n eps s_1, cosines to that over the gap between the values
/// concerned, at least 1e-6 of them. Throws InvalidShape (a change of another shape), NotFinite.
class ModuleSpectrum {
 public:
  explicit ModuleSpectrum(const at::Tensor& w, std::int64_t count = 10,
                          IntruderRoute route = IntruderRoute::automatic);

  /// Against W + left right^T, left [out, r] and right [in, r].
  ModuleIntruders with(const LowRank& change) const;
  /// Against a matrix whose difference has no low rank (DoRA's magnitudes, matrices saved whole),
  /// which is decomposed as well.
  ModuleIntruders with(const at::Tensor& adapted) const;
  /// Against W + X diag(delta) Y^T with X and Y random orthonormal frames, `draws` times: updates
  /// as strong as this one that know nothing of W. The same seed gives the same draws.
  RandomUpdates random(const at::Tensor& delta, std::span<const double> cosines, std::int64_t draws,
                       std::uint64_t seed) const;

 private:
  ModuleIntruders start() const;
  IntruderSide side_of(const at::Tensor& coordinates) const;
  void check_shape(std::int64_t out, std::int64_t in) const;

  std::int64_t out_, in_, count_;
  IntruderRoute route_;
  at::Tensor weight_, u_, s_, v_;  ///< [out, n], [n] descending and above the floor, [in, n]
  at::Tensor group_, first_;       ///< [n] int64: a direction's group; [groups] its first direction
};

}  // namespace subspace
