#pragma once

#include <vector>

#include "base/json.h"
#include "experts/vectors.h"

namespace subspace::experts {

/// The `count` rows of a table nearest to each query by the cosine of what they differ from the
/// mean by, largest first. A query's own row, `itself` (-1: none), is no neighbour.
struct Nearest {
  at::Tensor cosines;  ///< [queries, count]
  at::Tensor experts;  ///< [queries, count] int64
};

/// What experts read with, for finding neighbours: vectors are made a few thousand at a time.
class Neighbourhood {
 public:
  explicit Neighbourhood(const ExpertTensors& tensors);
  /// Nearest among the experts with `latents` [N, ..] (undefined: all of the layer) to query
  /// vectors [Q, width] as ExpertTensors::read gives them.
  Nearest nearest(const at::Tensor& queries, const at::Tensor& itself, std::int64_t count,
                  const at::Tensor& latents = {}) const;
  const at::Tensor& mean() const { return mean_; }

 private:
  at::Tensor units(const at::Tensor& vectors) const;

  const ExpertTensors& tensors_;
  at::Tensor mean_;  // [1, width]
};

/// Nearest experts, of up to 256 sampled ones and of the most used:
///
///   of            what is compared
///   cosines       quantiles {0.05, 0.25, 0.5, 0.75, 0.95} of the cosine to the nearest, and
///   chance        the same among as many experts of a Gaussian twin's latents
///   shared_key    share of the 8 nearest that have one of the two keys in common with the expert,
///   shared_key_by_chance = 2 / (n + 1)
///   examples      [{expert, choices, nearest: [{expert, cosine, choices}]}], the most used first
///
/// 2 256 N width operations for each of the two. `counts` as in clusters_of_experts.
Json neighbours_of_experts(const ExpertTensors& tensors, const Neighbourhood& neighbourhood,
                           const at::Tensor& counts);

}  // namespace subspace::experts
