// Steps of training, by the trainer's own engine on batches like a masked or causal language
// model's: tokens a second, model FLOP use, memory. bench/train_step.py puts the baselines beside
// it.
//
//   bench/train_engine [CONFIG] [--set name=value]... [--device cuda] [--steps N] [--no-graphs]
//     [--profile]  one step more between cudaProfilerStart and Stop, launch by launch
//
// Prints one JSON object.

#include <ATen/ATen.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cmath>
#include <cstdio>

#include "base/random.h"
#include "nn/fused.h"
#include "nn/fused_attention.h"
#include "train/engine.h"
#include "train/flops.h"

#ifdef SUBSPACE_CUDA
#include <c10/cuda/CUDACachingAllocator.h>
#include <cuda_profiler_api.h>
#endif

namespace subspace {
namespace {

struct Arguments {
  std::string config = "configs/tiny-encoder-mla-o.json", device = "auto", precision = "auto",
              fused = "gpu", attention = "fastest";
  std::int64_t logits_mib = 0, cache_mib = 0;
  std::vector<std::string> sets;
  int steps = 50, warmup = 5, repeats = 3;
  bool eager = false, profile = false;
};

/// A pass of random tokens, fewer of high numbers as in text; 15 % masked for a masked model.
train::Batch make_batch(const nn::ModelConfig& model, const train::Settings& settings,
                        std::uint64_t seed) {
  Random random(seed, 3);
  const std::int64_t rows = settings.batch_size, length = model.positions;
  at::Tensor tokens = at::empty({rows, length}, at::kInt);
  std::vector<std::int64_t> places, targets;
  const auto vocabulary = static_cast<double>(model.vocab);
  for (std::int64_t i = 0; i < rows * length; ++i) {
    auto token = static_cast<std::int32_t>(std::pow(vocabulary, random.uniform())) - 1;
    const bool masked = model.task == nn::Task::masked_lm;
    if (!masked || random.uniform() < settings.mask_probability) {
      places.push_back(i);
      targets.push_back(token);
      if (masked && random.uniform() < 0.8) token = 103;
    }
    tokens.data_ptr<std::int32_t>()[i] = token;
  }
  train::Batch batch;
  batch.input.tokens = tokens;
  batch.count = static_cast<std::int64_t>(targets.size());
  batch.tokens = rows * length;
  if (model.task == nn::Task::masked_lm) {
    while (places.size() % 256 != 0) {
      places.push_back(0);
      targets.push_back(-100);
    }
    batch.predicted = at::tensor(places, at::kLong);
  }
  batch.targets = at::tensor(targets, at::kLong);
  return batch;
}

void wait(c10::Device device) {
  if (device.is_cpu()) return;
  c10::impl::VirtualGuardImpl(device.type()).synchronizeDevice(device.index());
}

class Bench {
 public:
  explicit Bench(const Arguments& arguments)
      : arguments_(arguments),
        device_(arguments.device != "auto" ? arguments.device
                : at::hasCUDA()            ? "cuda"
                                           : "cpu"),
        experiment_(train::read_experiment(arguments.config, arguments.sets)),
        config_(nn::read_model_config(experiment_.model, arguments.config)),
        settings_(train::read_settings(experiment_.train, arguments.config)) {
    if (!device_.is_cpu()) {
      if (!device_.has_index()) device_.set_index(0);
      stream_.reset_stream(
          c10::impl::VirtualGuardImpl(device_.type()).getStreamFromGlobalPool(device_));
    }
    nn::fuse(arguments.fused == "never"    ? nn::Fuse::never
             : arguments.fused == "always" ? nn::Fuse::always
                                           : nn::Fuse::on_gpu);
    nn::set_attention_kernel(arguments.attention == "cudnn"   ? nn::AttentionKernel::cudnn
                             : arguments.attention == "flash" ? nn::AttentionKernel::flash
                                                              : nn::AttentionKernel::fastest);
    if (arguments.logits_mib > 0) {
      nn::set_logits_bytes(arguments.logits_mib << 20,
                           (arguments.cache_mib > 0 ? arguments.cache_mib : arguments.logits_mib)
                               << 20);
    }
    dtype_ = arguments.precision == "float32" || device_.is_cpu() ? at::kFloat : at::kBFloat16;
    nn::Model::Options options;
    options.device = device_;
    options.dtype = dtype_;
    model_.emplace(config_, options);
    optimizer_.emplace(model_->parameters(), settings_);
    engine_.emplace(*model_, *optimizer_, settings_, device_, dtype_, !arguments.eager);
    for (std::uint64_t i = 0; i < 4; ++i) {
      const train::Batch batch = make_batch(config_, settings_, i);
      batches_.push_back(device_.is_cpu() ? batch : batch.pinned());
    }
  }

  Json run() {
    for (int i = 0; i < arguments_.warmup; ++i) step(i);
    Json json = Json::object();
    json["first_loss"] = engine_->read().front().loss;
    std::vector<double> seconds;
    for (int repeat = 0; repeat < arguments_.repeats; ++repeat) {
      wait(device_);
      const auto start = std::chrono::steady_clock::now();
      for (int i = 0; i < arguments_.steps; ++i) step(i);
      wait(device_);
      seconds.push_back(
          std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() /
          arguments_.steps);
      json["loss"] = engine_->read().back().loss;
    }
    std::sort(seconds.begin(), seconds.end());
    const double middle = seconds[seconds.size() / 2];
    const auto tokens =
        static_cast<double>(settings_.batch_size * settings_.accumulate * config_.positions);
    json["ms_per_step"] = 1e3 * middle;
    json["ms_least"] = 1e3 * seconds.front();
    json["ms_most"] = 1e3 * seconds.back();
    json["tokens_per_second"] = tokens / middle;
    json["model_tflops"] =
        train::training_flops(model_->parameters(), config_, settings_) / middle / 1e12;
    json["parameters"] = model_->parameters().count();
#ifdef SUBSPACE_CUDA
    if (device_.is_cuda()) {
      const auto stats = c10::cuda::CUDACachingAllocator::getDeviceStats(device_.index());
      json["gib"] = static_cast<double>(stats.reserved_bytes[0].peak) / (1 << 30);
      if (arguments_.profile) profile();
    }
#endif
    return json;
  }

 private:
  void step(int i) {
    double count = 0;
    for (std::int64_t part = 0; part < settings_.accumulate; ++part) {
      count += static_cast<double>(batch(i + part).count);
    }
    for (std::int64_t part = 0; part < settings_.accumulate; ++part) {
      engine_->pass(batch(i + part), 1 / count);
    }
    engine_->step(1e-4);
  }
  const train::Batch& batch(std::int64_t i) const {
    return batches_[static_cast<std::size_t>(i) % batches_.size()];
  }

#ifdef SUBSPACE_CUDA
  void profile() {
    train::Engine eager(*model_, *optimizer_, settings_, device_, dtype_, false);
    for (int i = 0; i < 2; ++i) {
      eager.pass(batch(0), 1e-3);
      eager.step(1e-4);
    }
    wait(device_);
    cudaProfilerStart();
    eager.pass(batch(0), 1e-3);
    eager.step(1e-4);
    wait(device_);
    cudaProfilerStop();
  }
#endif

  const Arguments& arguments_;
  c10::Device device_;
  c10::OptionalStreamGuard stream_;
  train::Experiment experiment_;
  nn::ModelConfig config_;
  train::Settings settings_;
  c10::ScalarType dtype_ = at::kFloat;
  std::optional<nn::Model> model_;
  std::optional<train::Optimizer> optimizer_;
  std::optional<train::Engine> engine_;
  std::vector<train::Batch> batches_;
};

}  // namespace
}  // namespace subspace

int main(int argc, char** argv) {
  subspace::Arguments arguments;
  CLI::App app("Steps of training: tokens a second.");
  app.add_option("config", arguments.config);
  app.add_option("--set", arguments.sets)->allow_extra_args(false);
  app.add_option("--device", arguments.device);
  app.add_option("--precision", arguments.precision);
  app.add_option("--fused", arguments.fused)->check(CLI::IsMember({"never", "gpu", "always"}));
  app.add_option("--attention", arguments.attention)
      ->check(CLI::IsMember({"fastest", "cudnn", "flash"}));
  app.add_option("--logits-mib", arguments.logits_mib, "of logits at a time; 0: as in training");
  app.add_option("--cache-mib", arguments.cache_mib, "of them before their loss is taken");
  app.add_option("--steps", arguments.steps);
  app.add_option("--warmup", arguments.warmup);
  app.add_option("--repeats", arguments.repeats);
  app.add_flag("--no-graphs", arguments.eager);
  app.add_flag("--profile", arguments.profile);
  CLI11_PARSE(app, argc, argv);
  try {
    std::printf("%s\n", subspace::Bench(arguments).run().dump().c_str());
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
