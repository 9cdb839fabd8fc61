#include "experts/clusters.h"

#include <ATen/ATen.h>

#include "base/random.h"

namespace subspace::experts {
namespace {

constexpr std::int64_t kClustered = 8192, kDrawn = 1500, kGroups = 8;
constexpr int kRounds = 25;

/// Squared distances of rows to centres, [rows, centres].
at::Tensor squared_distances(const at::Tensor& rows, const at::Tensor& centres) {
  const at::Tensor products = at::matmul(rows, centres.t());
  return (rows.square().sum(1, true) - 2 * products + centres.square().sum(1)).clamp_min_(0);
}

/// Centres among the rows, each chosen in proportion to its squared distance to the ones before.
at::Tensor first_centres(const at::Tensor& rows, std::int64_t clusters, std::uint64_t seed) {
  Random random(seed, /*stream=*/5);
  std::vector<std::int64_t> chosen;
  at::Tensor nearest;
  for (std::int64_t i = 0; i < clusters; ++i) {
    const at::Tensor weights =
        i == 0 ? at::ones({rows.size(0)}, rows.options()) : nearest.clamp_min(1e-300);
    const at::Tensor sums = weights.cumsum(0);
    const at::Tensor wanted = sums[-1] * random.uniform();
    const auto place = (sums < wanted).sum().item<std::int64_t>();
    chosen.push_back(std::min(place, rows.size(0) - 1));
    const at::Tensor away = squared_distances(rows, rows.narrow(0, chosen.back(), 1)).squeeze(1);
    nearest = i == 0 ? away : at::minimum(nearest, away);
  }
  return rows.index_select(0, at::tensor(chosen, at::kLong).to(rows.device()));
}

Json explained(const at::Tensor& rows, const at::Tensor& twin) {
  Json out = {{"clusters", Json::array()}, {"explained", Json::array()}, {"chance", Json::array()}};
  const double whole = cluster(rows, 1, 0).within, of_twin = cluster(twin, 1, 0).within;
  for (std::int64_t k = 2; k <= 64 && 4 * k <= rows.size(0); k *= 2) {
    out["clusters"].push_back(k);
    out["explained"].push_back(whole > 0 ? 1 - cluster(rows, k, 1).within / whole : 0);
    out["chance"].push_back(of_twin > 0 ? 1 - cluster(twin, k, 1).within / of_twin : 0);
  }
  return out;
}

/// Two directions of largest variance, [w, 2], and their shares of it.
std::pair<at::Tensor, Json> principal_axes(const at::Tensor& rows, const Gaussian& gaussian) {
  const at::Tensor covariance = at::matmul(gaussian.factor, gaussian.factor.t());
  const auto [values, vectors] = at::linalg_eigh(covariance);
  const std::int64_t w = rows.size(1), shown = std::min<std::int64_t>(2, w);
  const at::Tensor all = values.sum().clamp_min(1e-300);
  return {vectors.narrow(1, w - shown, shown).flip(1),
          doubles_of(values.narrow(0, w - shown, shown).flip(0) / all)};
}

}  // namespace

Clustering cluster(const at::Tensor& rows, std::int64_t clusters, std::uint64_t seed) {
  Clustering out;
  out.centres = first_centres(rows, clusters, seed);
  for (int round = 0; round < kRounds; ++round) {
    const at::Tensor before = out.of_row;
    out.of_row = squared_distances(rows, out.centres).argmin(1);
    if (before.defined() && at::equal(before, out.of_row)) break;
    const at::Tensor sums = at::zeros_like(out.centres).index_add_(0, out.of_row, rows);
    const at::Tensor sizes = out.of_row.bincount({}, clusters).unsqueeze(1);
    out.centres = at::where(sizes > 0, sums / sizes.clamp_min(1), out.centres);
  }
  const auto nearest = std::get<0>(squared_distances(rows, out.centres).min(1));
  out.within = nearest.sum().item<double>();
  return out;
}

Json clusters_of_experts(const ExpertTensors& tensors, const at::Tensor& counts) {
  const at::Tensor experts = sampled(tensors.latents().size(0), kClustered, tensors.latents());
  const at::Tensor rows = tensors.latents().index_select(0, experts);
  const Gaussian gaussian(rows);
  Json out = explained(rows, gaussian.draw(rows.size(0), 3));
  out["of"] = tensors.z.defined() ? "latents" : "vectors that read";
  out["experts"] = rows.size(0);

  const std::int64_t groups = std::min(kGroups, std::max<std::int64_t>(1, rows.size(0) / 4));
  const Clustering found = cluster(rows, groups, 1);
  at::Tensor chosen;
  if (counts.defined()) chosen = counts.to(rows.device()).index_select(0, experts).to(at::kDouble);
  for (std::int64_t g = 0; g < groups; ++g) {
    const at::Tensor mine = (found.of_row == g).to(at::kDouble);
    Json group = {{"experts", mine.mean().item<double>()}};
    if (chosen.defined()) {
      group["choices"] = ((chosen * mine).sum() / chosen.sum().clamp_min(1)).item<double>();
    }
    out["groups"].push_back(group);
  }

  const auto [axes, shares] = principal_axes(rows, gaussian);
  const at::Tensor shown = sampled(rows.size(0), kDrawn, rows);
  const at::Tensor places =
      at::matmul(rows.index_select(0, shown) - gaussian.mean, axes).to(at::kCPU);
  out["axes"] = shares;
  out["map"] = {{"expert", integers_of(experts.index_select(0, shown))},
                {"group", integers_of(found.of_row.index_select(0, shown))},
                {"x", doubles_of(places.select(1, 0))},
                {"y", doubles_of(places.select(1, places.size(1) - 1))}};
  if (chosen.defined()) {
    out["map"]["choices"] = integers_of(chosen.index_select(0, shown));
  }
  return out;
}

}  // namespace subspace::experts
