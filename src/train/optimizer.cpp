#include "train/optimizer.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include "base/error.h"
#include "kernels/adamw.h"
#include "nn/on_device.h"

namespace subspace::train {

Optimizer::Optimizer(const nn::Parameters& parameters, const Settings& settings)
    : Optimizer(parameters, settings, !parameters.all().front().value.is_cpu()) {}

Optimizer::Optimizer(const nn::Parameters& parameters, const Settings& settings, bool fused)
    : settings_(settings), fused_(fused) {
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
  if (fused_) make_runs();
}

/// The kernel's table of all tensors, and its state; the gradients become those of the parameters.
void Optimizer::make_runs() {
  std::vector<kernels::AdamwRun> runs;
  at::Tensor any;
  for (Group& group : groups_) {
    for (std::size_t i = 0; i < group.values.size(); ++i) {
      any = group.masters[i];
      group.values[i].mutable_grad() = group.gradients[i];
      const bool alias = any.is_alias_of(group.values[i]);
      for (std::int64_t begin = 0; begin < any.numel(); begin += kernels::kAdamwRun) {
        kernels::AdamwRun run;
        run.master = any.mutable_data_ptr<float>() + begin;
        run.gradient = group.gradients[i].mutable_data_ptr<float>() + begin;
        run.mean = group.means[i].mutable_data_ptr<float>() + begin;
        run.square = group.squares[i].mutable_data_ptr<float>() + begin;
        if (!alias) run.value = group.values[i].mutable_data_ptr<at::BFloat16>() + begin;
        run.count = std::min(kernels::kAdamwRun, any.numel() - begin);
        run.decay = static_cast<float>(group.decay);
        runs.push_back(run);
      }
    }
  }
  runs_count_ = static_cast<std::int64_t>(runs.size());
  const auto bytes = static_cast<std::int64_t>(runs.size() * sizeof(kernels::AdamwRun));
  runs_ = at::from_blob(runs.data(), {bytes}, at::kByte).to(any.device(), at::kByte, false, true);
  state_ = at::zeros({sizeof(kernels::AdamwState) / sizeof(float)}, any.options());
  partial_ = at::empty({runs_count_}, any.options().dtype(at::kDouble));
  // All tensors have taken the same steps: one number serves them.
  for (Group& group : groups_) {
    for (at::Tensor& steps : group.steps) steps = state_.select(0, 1);
  }
}

at::Tensor Optimizer::fused_step(const at::Tensor& learning_rate) {
  const kernels::Adamw p{.runs = static_cast<const kernels::AdamwRun*>(runs_.const_data_ptr()),
                         .count = runs_count_,
                         .learning_rate = learning_rate.const_data_ptr<float>(),
                         .state = static_cast<kernels::AdamwState*>(state_.mutable_data_ptr()),
                         .partial = partial_.mutable_data_ptr<double>(),
                         .beta1 = settings_.beta1,
                         .beta2 = settings_.beta2,
                         .eps = settings_.eps,
                         .max_norm = settings_.max_grad_norm,
                         .element = kernels::Element::bf16};
  nn::run(runs_, p);
  return state_.select(0, 0);
}

at::Tensor Optimizer::step(const at::Tensor& learning_rate) {
  if (fused_) return fused_step(learning_rate);
  return step(learning_rate.item<double>());
}

void Optimizer::collect() {
  if (fused_) return;
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
  if (fused_) return fused_step(at::full({}, learning_rate, state_.options()));
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
