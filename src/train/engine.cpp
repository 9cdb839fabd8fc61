#include "train/engine.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <fmt/ranges.h>

#include <limits>

#include "base/error.h"
#include "train/memory.h"

#ifdef __GLIBC__
#include <malloc.h>
#endif

namespace subspace::train {
namespace {

/// A step on the CPU frees and asks for the same large tensors again and again. glibc gives each
/// back to the system at once, and the kernel then clears every page anew: a tenth of a step.
void keep_freed_memory() {
#ifdef __GLIBC__
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, std::numeric_limits<int>::max());
  mallopt(M_TOP_PAD, 64 << 20);
#endif
}

constexpr std::int64_t kHistory = 1024;

/// What a recorded pass depends on: which tensors there are, and their shapes.
std::string signature(const Batch& batch) {
  std::string text;
  for (const at::Tensor* tensor : batch.tensors()) {
    text += tensor->defined() ? fmt::format("{} ", fmt::join(tensor->sizes(), "x")) : "- ";
  }
  return text;
}

Batch first_rows(const Batch& batch, std::int64_t rows) {
  Batch out = batch;
  for (at::Tensor* tensor :
       {&out.input.tokens, &out.input.segments, &out.input.positions, &out.input.pixels}) {
    if (tensor->defined()) *tensor = tensor->narrow(0, 0, rows);
  }
  // As many targets of each row as before, wherever they are.
  const std::int64_t all =
      (batch.input.pixels.defined() ? batch.input.pixels : batch.input.tokens).size(0);
  const std::int64_t targets = std::max<std::int64_t>(1, out.targets.size(0) * rows / all);
  out.targets = out.targets.narrow(0, 0, targets);
  if (out.predicted.defined()) {
    const std::int64_t places = out.input.tokens.numel();
    out.predicted = out.predicted.narrow(0, 0, targets).clamp_max(places - 1);
  }
  return out;
}

}  // namespace

Engine::Engine(nn::Model& model, Optimizer& optimizer, const Settings& settings, c10::Device device,
               c10::ScalarType dtype, bool graphs)
    : model_(model),
      optimizer_(optimizer),
      settings_(settings),
      device_(device),
      dtype_(dtype),
      graphs_(graphs && DeviceGraph::possible(device)) {
  const auto options = at::TensorOptions().dtype(at::kFloat).device(device);
  share_ = at::zeros({}, options);
  rate_ = at::zeros({}, options);
  loss_ = at::zeros({}, options);
  result_ = at::zeros({2}, options);
  history_ = at::zeros({kHistory, 2}, options);
  if (graphs_) pool_.emplace();
  if (device_.is_cpu()) keep_freed_memory();
}

void Engine::send(at::Tensor& to, double value) {
  if (device_.is_cpu()) {
    to.fill_(value);
    return;
  }
  // A tensor of its own each time: the copy may run long after this returns.
  at::Tensor pinned = at::empty({}, at::TensorOptions().dtype(at::kFloat).pinned_memory(true));
  *pinned.data_ptr<float>() = static_cast<float>(value);
  to.copy_(pinned, /*non_blocking=*/true);
}

void Engine::compute(const Batch& batch) {
  at::Tensor auxiliary;
  const at::Tensor rows =
      model_.config().image
          ? model_.hidden(batch.input, /*training=*/true, &auxiliary).select(1, 0)
          : model_.hidden_rows(batch.input, batch.predicted, /*training=*/true, &auxiliary);
  const at::Tensor loss = model_.scaled_loss(rows, batch.targets, share_);
  const at::Tensor whole =
      auxiliary.defined() ? loss + auxiliary / static_cast<double>(settings_.accumulate) : loss;
  whole.backward();
  optimizer_.collect();
  const at::NoGradGuard no_gradient;
  loss_.add_(loss.detach());
}

void Engine::replay_pass(const Batch& batch) {
  Recorded& recorded = passes_[signature(batch)];
  if (++recorded.seen == 1) {
    compute(batch.to(device_, dtype_));
    return;
  }
  if (!recorded.graph.recorded()) {
    recorded.inputs = batch.to(device_, dtype_);
    recorded.graph.record(*pool_, [&] { compute(recorded.inputs); });
  } else {
    batch.copy_into(recorded.inputs);
  }
  recorded.graph.replay();
}

void Engine::pass(const Batch& batch, double share) {
  send(share_, share);
  if (graphs_) {
    replay_pass(batch);
  } else {
    compute(batch.to(device_, dtype_));
  }
}

void Engine::finish() {
  const at::NoGradGuard no_gradient;
  const at::Tensor norm = optimizer_.step(rate_);
  result_.copy_(at::stack({loss_, norm.to(at::kFloat)}));
  loss_.zero_();
  model_.after_step();
}

void Engine::step(double learning_rate) {
  send(rate_, learning_rate);
  if (!graphs_ || finished_ == 0) {
    finish();
  } else {
    if (!finish_.recorded()) finish_.record(*pool_, [&] { finish(); });
    finish_.replay();
  }
  ++finished_;
  history_.select(0, unread_++).copy_(result_);
}

bool Engine::full() const { return unread_ == kHistory; }

std::vector<Engine::Result> Engine::read() {
  const at::Tensor values = history_.narrow(0, 0, unread_).to(at::kCPU);
  std::vector<Result> out;
  const auto* value = values.data_ptr<float>();
  for (std::int64_t i = 0; i < unread_; ++i) out.push_back({value[2 * i], value[2 * i + 1]});
  unread_ = 0;
  return out;
}

std::int64_t Engine::rows_that_fit(const Batch& batch) {
  passes_.clear();
  finish_ = DeviceGraph();
  const at::Tensor& input = batch.input.pixels.defined() ? batch.input.pixels : batch.input.tokens;
  for (std::int64_t rows = input.size(0) / 2; rows > 0; rows /= 2) {
    try {
      compute(first_rows(batch, rows).to(device_, dtype_));
      return rows;
    } catch (const std::exception& error) {
      if (!is_out_of_memory(error)) throw;
    }
  }
  return 0;
}

}  // namespace subspace::train
