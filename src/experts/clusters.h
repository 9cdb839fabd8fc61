#pragma once

#include "base/json.h"
#include "experts/vectors.h"

namespace subspace::experts {

/// Rows in `clusters` groups by Lloyd's algorithm from k-means++ (Arthur and Vassilvitskii 2007):
/// each row goes to the nearest centre, each centre to the mean of its rows, 25 times at most. A
/// centre that no row is nearest to stays where it is.
struct Clustering {
  at::Tensor centres;  ///< [clusters, w]
  at::Tensor of_row;   ///< [rows] int64
  double within = 0;   ///< sum of squared distances to the centres
};
Clustering cluster(const at::Tensor& rows, std::int64_t clusters, std::uint64_t seed);

/// Whether experts' latents (stored ones: the vectors they read with) form groups. Of up to 8192
/// experts:
///
///   explained(k)   1 - within(k) / within(1), k = 2, 4, .. 64; chance: the same of a Gaussian twin
///   map            the two directions of largest variance, up to 1500 experts: x, y, choices,
///                  group, expert; `axes`: their shares of the variance
///   groups         of up to 8: experts (share), choices (share)
///
/// Latents that are one cloud, however stretched, explain as much as the twin; groups explain more.
/// `counts` [N] int64 of all heads, or undefined: then nothing is said of choices.
Json clusters_of_experts(const ExpertTensors& tensors, const at::Tensor& counts);

}  // namespace subspace::experts
