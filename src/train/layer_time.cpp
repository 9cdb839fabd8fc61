#include "train/layer_time.h"

#include <ATen/ATen.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <chrono>
#include <functional>

#include "nn/attention.h"
#include "train/device_info.h"
#include "train/optimizer.h"

namespace subspace::train {
namespace {

using Clock = std::chrono::steady_clock;

double milliseconds_of(const std::function<void()>& pass) {
  const auto start = Clock::now();
  pass();
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

}  // namespace

Json layer_time(const Experiment& experiment, c10::Device device, double seconds) {
  const nn::ModelConfig config = read_model(experiment);
  const Settings settings = read_settings(experiment);
  nn::Parameters::Options options;
  options.tensor = at::TensorOptions(device).dtype(chosen_dtype(settings, device));
  options.range = config.initializer_range;
  options.seed = settings.seed;
  // As in training: a stream of its own, and gradients that are summed in float32 on a GPU.
  c10::OptionalStreamGuard stream;
  if (!device.is_cpu()) {
    stream.reset_stream(c10::impl::VirtualGuardImpl(device.type()).getStreamFromGlobalPool(device));
  }
  nn::Parameters parameters(options);
  const nn::Attention layer(parameters, config, "model.layers.0.");
  const Optimizer gradients(parameters, settings);
  const std::int64_t tokens = config.tokens();
  nn::PassContext pass;
  pass.training = true;
  pass.rotary = nn::RotaryTable(config.attention.rotary, tokens, options.tensor)
                    .at_positions(tokens, at::Tensor());
  const at::Tensor x =
      at::randn({settings.batch_size, tokens, config.width}, options.tensor).requires_grad_();
  const at::Tensor gradient = at::randn_like(x);
  auto once = [&] {
    layer(x, pass).backward(gradient);
    // One number read back: everything before it has then been computed.
    return x.grad().flatten()[0].item<double>();
  };
  for (int i = 0; i < 3; ++i) once();
  std::vector<double> times;
  const auto start = Clock::now();
  while (times.size() < 5 || Clock::now() - start < std::chrono::duration<double>(seconds)) {
    times.push_back(milliseconds_of(once));
  }
  std::sort(times.begin(), times.end());
  auto quantile = [&](double share) {
    return times[static_cast<std::size_t>(share * static_cast<double>(times.size() - 1))];
  };
  Json out = Json::object();
  out["milliseconds"] = quantile(0.5);
  out["milliseconds_low"] = quantile(0.25);
  out["milliseconds_high"] = quantile(0.75);
  out["passes"] = times.size();
  out["microseconds_per_token"] =
      1000 * quantile(0.5) / static_cast<double>(settings.batch_size * tokens);
  out["parameters"] = parameters.count();
  return out;
}

}  // namespace subspace::train
