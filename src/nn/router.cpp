#include "nn/router.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <cmath>

namespace subspace::nn {
namespace {

constexpr double kBatchNormEps = 1e-5, kBatchNormMomentum = 0.1;

}  // namespace

at::Tensor BatchNorm::operator()(const at::Tensor& x, bool training) const {
  // Statistics and their parameters in float32 at least, whatever x is: a mean over tens of
  // thousands of rows is more than bfloat16 can hold.
  const at::ScalarType kept = mean.scalar_type();
  return at::batch_norm(x, weight.to(kept), bias.to(kept), mean, variance, training,
                        kBatchNormMomentum, kBatchNormEps, /*cudnn_enabled=*/false);
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
  at::Tensor q = query_(x);
  if (norm_) q = (*norm_)(q, training);
  const at::Tensor halves = q.view({x.size(0), heads_, 2, -1});
  return choose_experts(keys_[0](halves.select(2, 0)), keys_[1](halves.select(2, 1)), per_head_);
}

}  // namespace subspace::nn
