#include "nn/router.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "ops/ops.h"

namespace subspace::nn {
namespace {

constexpr double kBatchNormEps = 1e-5, kBatchNormMomentum = 0.1;

Halves halves_of(const at::Tensor& queries, std::int64_t heads) {
  const at::Tensor both = queries.view({queries.size(0), heads, 2, -1});
  return {both.select(2, 0), both.select(2, 1)};
}

}  // namespace

Halves BatchNorm::operator()(const at::Tensor& x, std::int64_t heads, bool training) const {
  if (x.scalar_type() == at::kDouble) {
    return halves_of(at::batch_norm(x, weight, bias, mean, variance, training, kBatchNormMomentum,
                                    kBatchNormEps, /*cudnn_enabled=*/false),
                     heads);
  }
  at::Tensor of_rows = mean, spread = variance;
  if (training) {
    std::tie(of_rows, spread) = ops::column_moments(x.detach());
    const auto rows = static_cast<double>(x.size(0));
    mean.lerp_(of_rows, kBatchNormMomentum);
    variance.lerp_(spread * (rows / std::max(rows - 1, 1.0)), kBatchNormMomentum);
  }
  const auto [first, second] =
      ops::batch_norm_halves(x, weight.to(at::kFloat), bias.to(at::kFloat), of_rows, spread, heads,
                             kBatchNormEps, /*of_batch=*/training);
  return {first, second};
}

BatchNorm batch_norm(Parameters& parameters, const std::string& name, std::int64_t width) {
  return {parameters.norm(name + ".weight", {width}), parameters.bias({{name + ".bias", {width}}}),
          parameters.buffer(name + ".running_mean", {width}),
          parameters.buffer(name + ".running_var", {width}, Init::ones)};
}

ProductKeyRouter::ProductKeyRouter(Parameters& parameters, const NeuronExpertsConfig& config,
                                   std::int64_t width, const std::string& base)
    : heads_(config.heads), per_head_(config.per_head) {
  const std::int64_t queries = config.heads * config.query;
  query_ = linear(parameters, base + "query", queries, width, /*bias=*/true);
  if (config.query_norm) norm_ = batch_norm(parameters, base + "query_norm", queries);
  for (int side = 0; side < 2; ++side) {
    keys_[side].weight = parameters.weight(fmt::format("{}keys.{}.weight", base, side),
                                           {config.side(), config.query / 2},
                                           std::sqrt(2.0 / static_cast<double>(config.query)));
  }
}

Selections ProductKeyRouter::operator()(const at::Tensor& x, bool training) const {
  const at::Tensor q = query_(x);
  const Halves halves = norm_ ? (*norm_)(q, heads_, training) : halves_of(q, heads_);
  return choose_experts(keys_[0](halves[0]), keys_[1](halves[1]), per_head_);
}

}  // namespace subspace::nn
