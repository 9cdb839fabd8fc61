#include "experts/neighbours.h"

#include <ATen/ATen.h>

namespace subspace::experts {
namespace {

constexpr std::int64_t kQueries = 256, kNearest = 8, kExamples = 6;

Json quantiles_of(const at::Tensor& values) {
  Json out = Json::array();
  for (const double q : {0.05, 0.25, 0.5, 0.75, 0.95}) {
    out.push_back(values.quantile(q).item<double>());
  }
  return out;
}

/// The most used of all, or the first few where nothing was counted.
at::Tensor examples_of(const at::Tensor& counts, std::int64_t experts, const at::Tensor& like) {
  const std::int64_t few = std::min(kExamples, experts);
  if (!counts.defined()) return at::arange(few, like.options().dtype(at::kLong));
  return std::get<1>(counts.sort(/*stable=*/true, 0, /*descending=*/true))
      .narrow(0, 0, few)
      .to(like.device());
}

Json example_json(const at::Tensor& experts, const Nearest& found, const at::Tensor& counts) {
  Json out = Json::array();
  auto named = [&](std::int64_t expert) {
    Json one = {{"expert", expert}};
    if (counts.defined()) one["choices"] = counts[expert].item<std::int64_t>();
    return one;
  };
  for (std::int64_t i = 0; i < experts.size(0); ++i) {
    Json entry = named(experts[i].item<std::int64_t>());
    for (std::int64_t j = 0; j < found.experts.size(1); ++j) {
      Json one = named(found.experts[i][j].item<std::int64_t>());
      one["cosine"] = found.cosines[i][j].item<double>();
      entry["nearest"].push_back(one);
    }
    out.push_back(entry);
  }
  return out;
}

}  // namespace

Neighbourhood::Neighbourhood(const ExpertTensors& tensors) : tensors_(tensors) {
  const at::Tensor& latents = tensors.latents();
  at::Tensor sum;
  by_pieces(latents, [&](std::int64_t, const at::Tensor& piece) {
    const at::Tensor part = tensors.read(piece).sum(0, /*keepdim=*/true);
    sum = sum.defined() ? sum + part : part;
  });
  mean_ = sum / static_cast<double>(latents.size(0));
}

at::Tensor Neighbourhood::units(const at::Tensor& vectors) const {
  const at::Tensor away = vectors - mean_;
  return (away / away.norm(2, 1, /*keepdim=*/true).clamp_min(1e-300)).to(at::kFloat);
}

Nearest Neighbourhood::nearest(const at::Tensor& queries, const at::Tensor& itself,
                               std::int64_t count, const at::Tensor& latents) const {
  const at::Tensor unit = units(queries);
  const at::Tensor& all = latents.defined() ? latents : tensors_.latents();
  const std::int64_t kept = std::min(count, all.size(0) - 1);
  Nearest out;
  by_pieces(all, [&](std::int64_t begin, const at::Tensor& piece) {
    at::Tensor cosines = at::matmul(unit, units(tensors_.read(piece)).t());
    at::Tensor experts =
        at::arange(begin, begin + piece.size(0), itself.options()).expand(cosines.sizes());
    cosines = cosines.masked_fill(experts == itself.unsqueeze(1), -2);
    if (out.cosines.defined()) {
      cosines = at::cat({out.cosines, cosines}, 1);
      experts = at::cat({out.experts, experts}, 1);
    }
    const auto [best, place] = cosines.topk(std::min(kept, cosines.size(1)), 1);
    out.cosines = best;
    out.experts = experts.gather(1, place);
  });
  return out;
}

Json neighbours_of_experts(const ExpertTensors& tensors, const Neighbourhood& neighbourhood,
                           const at::Tensor& counts) {
  const at::Tensor& latents = tensors.latents();
  const std::int64_t experts = latents.size(0), side = tensors.config.side();
  const at::Tensor queries = sampled(experts, kQueries, latents);
  const Nearest found =
      neighbourhood.nearest(tensors.read(latents.index_select(0, queries)), queries, kNearest);
  const at::Tensor own = queries.unsqueeze(1);
  const at::Tensor shared = (found.experts.floor_divide(side) == own.floor_divide(side))
                                .logical_or(found.experts % side == own % side);

  const at::Tensor twin = Gaussian(latents).draw(experts, 4);
  const Nearest by_chance =
      neighbourhood.nearest(tensors.read(twin.index_select(0, queries)), queries, 1, twin);
  const at::Tensor examples = examples_of(counts, experts, latents);
  const Nearest shown =
      neighbourhood.nearest(tensors.read(latents.index_select(0, examples)), examples, kNearest);
  return {
      {"of", tensors.z.defined() ? "generated vectors" : "vectors that read"},
      {"queries", queries.size(0)},
      {"cosines", quantiles_of(found.cosines.select(1, 0))},
      {"chance", quantiles_of(by_chance.cosines.select(1, 0))},
      {"shared_key", shared.to(at::kDouble).mean().item<double>()},
      {"shared_key_by_chance", 2.0 / static_cast<double>(side + 1)},
      {"examples", example_json(examples.to(at::kCPU),
                                {shown.cosines.to(at::kCPU), shown.experts.to(at::kCPU)}, counts)}};
}

}  // namespace subspace::experts
