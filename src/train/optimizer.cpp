#include "train/optimizer.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include "base/error.h"

namespace subspace::train {

Optimizer::Optimizer(const nn::Parameters& parameters, const Settings& settings)
    : settings_(settings) {
  const at::NoGradGuard no_gradient;
  for (const nn::Parameter& parameter : parameters.all()) {
    if (!parameter.trained) continue;
    Group& group = groups_[parameter.decays ? 0 : 1];
    const at::Tensor& value = parameter.value;
    const bool narrow = value.element_size() < 4;
    const at::Tensor master = narrow ? value.detach().to(at::kFloat) : value.detach();
    group.names.push_back(parameter.name());
    group.values.push_back(value);
    group.masters.push_back(master);
    group.gradients.push_back(at::zeros_like(master));
    group.means.push_back(at::zeros_like(master));
    group.squares.push_back(at::zeros_like(master));
    group.steps.push_back(at::zeros({}, master.options().dtype(at::kFloat)));
  }
  groups_[0].decay = settings.weight_decay;
}

void Optimizer::collect() {
  const at::NoGradGuard no_gradient;
  for (Group& group : groups_) {
    if (group.values.empty()) continue;
    std::vector<at::Tensor> sums, gradients;
    for (std::size_t i = 0; i < group.values.size(); ++i) {
      at::Tensor& gradient = group.values[i].mutable_grad();
      if (!gradient.defined()) continue;  // an expert that no token chose
      sums.push_back(group.gradients[i]);
      gradients.push_back(gradient.to(group.gradients[i].scalar_type()));
      gradient.reset();
    }
    if (!sums.empty()) at::_foreach_add_(sums, gradients);
  }
}

at::Tensor Optimizer::step(double learning_rate) {
  const at::NoGradGuard no_gradient;
  std::vector<at::Tensor> norms;
  for (const Group& group : groups_) {
    if (group.values.empty()) continue;
    for (const at::Tensor& norm : at::_foreach_norm(group.gradients, 2)) norms.push_back(norm);
  }
  const at::Tensor norm = at::stack(norms).norm();
  const at::Tensor bad = at::isfinite(norm).logical_not().to(at::kFloat);
  for (Group& group : groups_) {
    if (group.values.empty()) continue;
    if (settings_.max_grad_norm > 0) {
      // (norm + 1e-6) as PyTorch's clip_grad_norm_ has it.
      at::_foreach_mul_(group.gradients, (settings_.max_grad_norm / (norm + 1e-6)).clamp_max(1.0));
    }
    at::_foreach_add_(group.steps, 1);
    at::_fused_adamw_(group.masters, group.gradients, group.means, group.squares, {}, group.steps,
                      learning_rate, settings_.beta1, settings_.beta2, group.decay, settings_.eps,
                      /*amsgrad=*/false, /*maximize=*/false, /*grad_scale=*/{}, bad);
    at::_foreach_sub_(group.steps, std::vector<at::Tensor>(group.steps.size(), bad));
    at::_foreach_zero_(group.gradients);
    for (std::size_t i = 0; i < group.values.size(); ++i) {
      if (!group.masters[i].is_alias_of(group.values[i])) {
        group.values[i].copy_(group.masters[i]);
      }
    }
  }
  return norm;
}

std::vector<std::pair<std::string, at::Tensor>> Optimizer::state() const {
  std::vector<std::pair<std::string, at::Tensor>> out;
  for (const Group& group : groups_) {
    for (std::size_t i = 0; i < group.values.size(); ++i) {
      out.emplace_back("exp_avg." + group.names[i], group.means[i]);
      out.emplace_back("exp_avg_sq." + group.names[i], group.squares[i]);
      out.emplace_back("step." + group.names[i], group.steps[i]);
      if (!group.masters[i].is_alias_of(group.values[i])) {
        out.emplace_back("master." + group.names[i], group.masters[i]);
      }
    }
  }
  return out;
}

void Optimizer::load(const SafetensorsFile& file) {
  const at::NoGradGuard no_gradient;
  for (auto& [name, tensor] : state()) {
    const at::Tensor found = nn::read_tensor(file, name);
    if (found.sizes() != tensor.sizes()) {
      fail(ErrorCode::InvalidShape, "{}: tensor '{}' belongs to another model",
           file.path().string(), name);
    }
    at::Tensor target = tensor;
    target.copy_(found);
  }
  for (Group& group : groups_) {
    for (std::size_t i = 0; i < group.values.size(); ++i) {
      if (!group.masters[i].is_alias_of(group.values[i])) group.values[i].copy_(group.masters[i]);
    }
  }
}

}  // namespace subspace::train
