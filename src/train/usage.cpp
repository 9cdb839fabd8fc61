#include "train/usage.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <cmath>

namespace subspace::train {

at::Tensor usage_of(const at::Tensor& counts) {
  const at::Tensor all = at::cat({counts, counts.sum(0, /*keepdim=*/true)}).to(at::kDouble);
  const at::Tensor shares = all / all.sum(1, /*keepdim=*/true).clamp_min(1);
  const at::Tensor used = (all > 0).to(at::kDouble).mean(1);
  return at::stack({used, -at::xlogy(shares, shares).sum(1)}, 1);
}

Json take_usage(const nn::Model& model) {
  const at::NoGradGuard no_gradient;
  const auto layers = model.expert_usage();
  Json out = Json::object();
  if (layers.empty()) return out;
  std::vector<at::Tensor> found;
  for (const auto& [layer, usage] : layers) {
    at::Tensor counts = usage->counts();
    found.push_back(usage_of(counts));
    counts.zero_();
  }
  const at::Tensor values = at::cat(found).to(at::kCPU);
  const auto* row = values.data_ptr<double>();
  for (const auto& [layer, usage] : layers) {
    const std::int64_t heads = usage->counts().size(0);
    const double most = std::log(static_cast<double>(usage->counts().size(1)));
    Json of_heads = {
        {"used", Json::array()}, {"entropy", Json::array()}, {"kl_uniform", Json::array()}};
    for (std::int64_t h = 0; h < heads; ++h, row += 2) {
      of_heads["used"].push_back(row[0]);
      of_heads["entropy"].push_back(row[1]);
      of_heads["kl_uniform"].push_back(most - row[1]);
    }
    Json& of_layer = out[std::to_string(layer)];
    of_layer = {{"used", row[0]}, {"entropy", row[1]}, {"kl_uniform", most - row[1]}};
    if (heads > 1) of_layer["heads"] = of_heads;
    row += 2;
  }
  return out;
}

}  // namespace subspace::train
