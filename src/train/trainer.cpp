#include "train/trainer.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <chrono>
#include <cmath>
#include <cstdlib>
#include <future>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/interrupt.h"
#include "base/progress.h"
#include "base/version.h"
#include "train/device_info.h"
#include "train/engine.h"
#include "train/flops.h"
#include "train/memory.h"
#include "train/provenance.h"
#include "train/run_state.h"
#include "train/usage.h"

namespace subspace::train {
namespace fs = std::filesystem;
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

nn::ModelConfig model_to_train(const Experiment& experiment) {
  nn::ModelConfig config = read_model(experiment);
  if (config.dropout > 0) {
    fail(ErrorCode::Unsupported,
         "{}: dropout {} is asked for, which training here does not have; set attention_dropout, "
         "attention_probs_dropout_prob and hidden_dropout_prob to 0",
         experiment.where, config.dropout);
  }
  return config;
}

void be_deterministic() {
  at::globalContext().setDeterministicAlgorithms(true, false);
  // Memory that nobody has written yet need not be the same: nothing reads it.
  at::globalContext().setDeterministicFillUninitializedMemory(false);
  // cuBLAS keeps to one order of sums only with workspaces of a size it is told.
  setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", /*overwrite=*/0);
}

class Run {
 public:
  Run(const Experiment& experiment, std::shared_ptr<const Dataset> data, const RunOptions& options)
      : options_(options),
        config_(model_to_train(experiment)),
        settings_(read_settings(experiment)),
        dtype_(chosen_dtype(settings_, options.device)),
        batches_(options.batches ? options.batches(config_, settings_)
                                 : open_batches(std::move(data), config_, settings_)) {
    if (experiment.adapter.is_object()) {
      adapter_ = nn::read_adapter_config(experiment.adapter, experiment.where);
    }
    experiment_ = experiment;
    create_folder(options_.out);
    lock_.emplace(options_.out);
    const std::int64_t begin = prepare_folder();
    if (options_.deterministic) be_deterministic();
    if (!options_.device.is_cpu()) {
      // A stream of its own: what is recorded as a graph may not be on the default one.
      stream_.reset_stream(c10::impl::VirtualGuardImpl(options_.device.type())
                               .getStreamFromGlobalPool(options_.device));
    }
    try {
      set_up(begin);
    } catch (const std::exception& error) {
      if (!is_out_of_memory(error)) throw;
      fail(ErrorCode::Io, "{}",
           no_memory_for_model(config_, settings_, options_.device, adapter_.has_value()));
    }
    first_unread_ = at_.step;
    last_good_ = begin;
    metrics_.emplace(options_.out / "metrics.jsonl", at_.step);
    peak_ = peak_flops(device_name(options_.device), dtype_);
    flops_ = training_flops(model_->parameters(), config_, settings_);
  }

  Json go() {
    if (at_.step == 0) {
      const std::int64_t count = model_->parameters().count();
      message(fmt::format("{} parameters ({:.1f} M); {} steps of {} x {} rows", count,
                          static_cast<double>(count) / 1e6, settings_.steps, settings_.accumulate,
                          settings_.batch_size));
    }
    Progress progress("step", settings_.steps, at_.step);
    started_ = Clock::now();
    logged_ = at_;
    auto next = prepare(at_.step);
    while (at_.step < settings_.steps) {
      compute(next);
      const bool last = at_.step == settings_.steps;
      if (last || at_.step % settings_.log_every == 0) log(progress);
      if (engine_->full()) read_losses();
      if (due(settings_.evaluate_every, last)) evaluate_now();
      if (interrupted() || due(settings_.checkpoint_every, last)) save();
      check_interrupted("a checkpoint is written; --resume goes on from there");
    }
    if (adapter_) {
      nn::save_adapter(*model_, *adapter_, experiment_.base, options_.out);
    } else {
      nn::save_model(*model_, options_.out);
    }
    return last_metrics_;
  }

 private:
  void set_up(std::int64_t begin) {
    nn::Model::Options model;
    model.device = options_.device;
    model.dtype = dtype_;
    model.seed = settings_.seed;
    model.adapter = adapter_;
    model_.emplace(config_, model);
    if (adapter_) nn::require_targets(*model_, *adapter_);
    if (!experiment_.base.empty() && begin == 0) {
      model_->parameters().load(Checkpoint(experiment_.base), options_.threads,
                                model_->new_tensors());
    }
    optimizer_.emplace(model_->parameters(), settings_);
    engine_.emplace(*model_, *optimizer_, settings_, options_.device, dtype_);
    if (begin > 0) {
      at_ = load_checkpoint(options_.out, begin, *model_, *optimizer_, options_.threads);
      message(fmt::format("goes on behind step {}", begin));
    }
  }

  bool due(std::int64_t every, bool last) const {
    return last || (every > 0 && at_.step % every == 0);
  }

  Json identity() const {
    Json json = Json::object();
    json["model"] = config_.json;
    json["train"] = to_json(settings_);
    json["data"] = batches_->id();
    if (adapter_) json["adapter"] = experiment_.adapter;
    if (adapter_) json["base"] = experiment_.base;
    json["dtype"] = dtype_name(dtype_);
    return json;
  }

  /// The step to go on from. What is asked for must be what the folder holds.
  std::int64_t prepare_folder() {
    const fs::path path = options_.out / "run.json";
    create_folder(options_.out / "checkpoints");
    if (!fs::exists(path)) {
      if (from_weights()) check_tokenizer(experiment_.base, batches_->tokenizer());
      Json run = identity();
      if (from_weights()) {
        run["base"] = experiment_.base;
        run["base_sha256"] = weights_sha256(experiment_.base);
      }
      run["program"] = {{"version", version()}, {"commit", git_commit()}, {"compiler", compiler()}};
      run["device"] = options_.device.str();
      run["tokenizer"] = batches_->tokenizer();
      write_file_atomically(path, run.dump(2) + "\n");
      return 0;
    }
    if (!options_.resume) {
      fail(ErrorCode::InvalidValue,
           "{}: holds a run already; --resume goes on with it, or choose another --out",
           options_.out.string());
    }
    const auto steps = checkpoint_steps(options_.out);
    refuse_changes(read_json_file(path), !steps.empty());
    batches_->verify();
    return steps.empty() ? 0 : steps.back();
  }

  /// Whether the model begins with the weights of another and is trained whole.
  bool from_weights() const { return !experiment_.base.empty() && !adapter_; }

  /// Of what a run's folder says, all that decides its numbers must be as it is now.
  void refuse_changes(const Json& before, bool begun) {
    Json was = Json::object();
    for (const char* name : {"model", "train", "data", "adapter", "dtype"}) {
      if (before.contains(name)) was[name] = before.at(name);
    }
    if (adapter_ && before.contains("base")) was["base"] = before.at("base");
    const std::string found = first_difference(was, identity());
    if (!found.empty()) {
      fail(ErrorCode::InvalidValue, "{}: cannot be resumed: {}; take the former, or another --out",
           options_.out.string(), found);
    }
    const Fields run(before, (options_.out / "run.json").string());
    const std::string old = run.string_or("base_sha256", "");
    if (!old.empty() && experiment_.base.empty()) {  // it need not be said again
      experiment_.base = run.string("base");
      if (begun) return;
    }
    const std::string now = from_weights() ? weights_sha256(experiment_.base) : "";
    if (old == now) return;
    auto shown = [](const std::string& hash) {
      return hash.empty() ? "none that it knows of" : "those of SHA-256 " + hash.substr(0, 8);
    };
    fail(ErrorCode::InvalidValue,
         "{}: cannot be resumed: the weights that it began with were {} and are now {} ({}); take "
         "the former, or another --out",
         options_.out.string(), shown(old), shown(now),
         from_weights() ? experiment_.base : "random");
  }

  /// The passes of a step, made on another thread while the step before is computed.
  std::future<std::vector<Batch>> prepare(std::int64_t step) const {
    return std::async(std::launch::async, [this, step] {
      std::vector<Batch> passes;
      for (std::int64_t part = 0; part < settings_.accumulate; ++part) {
        const Batch pass = batches_->training(step, part);
        passes.push_back(options_.device.is_cpu() ? pass : pass.pinned());
      }
      return passes;
    });
  }

  /// The step whose passes are `next`, which then becomes that of the step behind.
  void compute(std::future<std::vector<Batch>>& next) {
    std::vector<Batch> passes;
    try {
      passes = next.get();
      if (at_.step + 1 < settings_.steps) next = prepare(at_.step + 1);
      step(passes);
    } catch (const std::exception& error) {
      if (!is_out_of_memory(error)) throw;
      out_of_memory(passes);
    }
  }

  void step(const std::vector<Batch>& passes) {
    std::int64_t count = 0;
    for (const Batch& pass : passes) {
      count += pass.count;
      at_.tokens += pass.tokens;
    }
    const double share = 1 / static_cast<double>(std::max<std::int64_t>(1, count));
    for (const Batch& pass : passes) engine_->pass(pass, share);
    engine_->step(learning_rate_at(settings_, at_.step));
    ++at_.step;
  }

  /// Says what would have fitted. The step that did not is lost, the checkpoints are not.
  [[noreturn]] void out_of_memory(const std::vector<Batch>& passes) {
    // Without a device's limit to meet, trying out smaller passes could take all of the machine.
    const bool try_out = !options_.device.is_cpu() && !passes.empty();
    const std::int64_t rows = try_out ? engine_->rows_that_fit(passes.front()) : -1;
    fail(ErrorCode::Io, "step {}: {}. {}", at_.step + 1,
         no_memory_for_rows(settings_, options_.device, rows), last_checkpoint());
  }

  std::string last_checkpoint() const {
    if (last_good_ == 0) return "There is no checkpoint yet";
    return fmt::format(
        "The last good checkpoint is {}; `train --from` it begins a new run, of other settings, "
        "with its weights",
        (options_.out / "checkpoints" / std::to_string(last_good_)).string());
  }

  /// Reads what the device has been computing since the last time; NaN stops the run here.
  void read_losses() {
    for (const Engine::Result& result : engine_->read()) {
      loss_ = result.loss;
      norm_ = result.norm;
      if (!(std::isfinite(loss_) && std::isfinite(norm_))) stop(first_unread_);
      ++first_unread_;
    }
  }

  [[noreturn]] void stop(std::int64_t step) {
    std::string where;
    for (std::int64_t part = 0; part < settings_.accumulate && where.empty(); ++part) {
      where =
          model_->first_nonfinite(batches_->training(step, part).to(options_.device, dtype_).input);
    }
    const std::int64_t later = at_.step - step - 1;  // the device was ahead of who reads its losses
    const std::string weights =
        later == 0 ? "" : fmt::format(", with the weights of {} steps later", later);
    fail(ErrorCode::NotFinite,
         "step {}: loss {} and gradient norm {}; {}. The step changed no weight. {}. A lower "
         "learning_rate, longer warmup or smaller max_grad_norm may help",
         step + 1, number(loss_), number(norm_),
         where.empty() ? "every layer's output is finite" + weights + ", so the gradient overflowed"
                       : "the first output that is not finite" + weights + " is that of " + where,
         last_checkpoint());
  }

  /// NaN has no sign that means anything.
  static std::string number(double value) {
    return std::isnan(value) ? "nan" : fmt::format("{}", value);
  }

  void log(Progress& progress) {
    read_losses();
    const double seconds = seconds_since(started_);
    const double window = std::max(seconds - logged_seconds_, 1e-9);
    const auto steps = static_cast<double>(at_.step - logged_.step);
    const auto tokens = static_cast<double>(at_.tokens - logged_.tokens);
    last_metrics_ = Json::object();
    last_metrics_["step"] = at_.step;
    last_metrics_["loss"] = loss_;
    last_metrics_["lr"] = learning_rate_at(settings_, at_.step - 1);
    last_metrics_["grad_norm"] = norm_;
    last_metrics_["tokens"] = at_.tokens;
    last_metrics_["tokens_per_second"] = tokens / window;
    // Rows of sentences are of any length: what they cost is not known beforehand.
    std::string achieved;
    if (config_.labels == 0) {
      const double per_second = flops_ * steps / window;
      last_metrics_["flops_per_second"] = per_second;
      if (peak_ > 0) last_metrics_["flops_share"] = per_second / peak_;
      achieved = "  " + flops_text(per_second, peak_);
    }
    last_metrics_["seconds"] = at_.seconds + seconds;
    const Json usage = take_usage(*model_);
    if (!usage.empty()) last_metrics_["experts"] = usage;
    metrics_->add(last_metrics_);
    progress.step(fmt::format("loss {:.4f}  {:.1f} k tokens/s{}", loss_,
                              last_metrics_["tokens_per_second"].get<double>() / 1e3, achieved),
                  at_.step);
    logged_ = at_;
    logged_seconds_ = seconds;
  }

  void evaluate_now() {
    if (!batches_->held_out(0)) return;
    const Evaluation found = evaluated();
    metrics_->add({{"step", at_.step}, {"eval", to_json(found)}});
    message(fmt::format("step {}: held-out loss {:.4f}, {}", at_.step, found.loss,
                        found.classes ? fmt::format("accuracy {:.2f} %", 100 * found.accuracy)
                                      : fmt::format("perplexity {:.2f}", std::exp(found.loss))));
  }

  /// An evaluation that fails loses no step.
  Evaluation evaluated() {
    try {
      return evaluate(*model_, *batches_, options_.device, settings_.evaluate_rows);
    } catch (const Error& error) {
      save();
      fail(error.code(), "step {}: {}. {}", at_.step, error.what(), last_checkpoint());
    }
  }

  void save() {
    read_losses();
    Progressed now = at_;
    now.seconds += seconds_since(started_);
    save_checkpoint(options_.out, *model_, *optimizer_, now, settings_.keep_checkpoints);
    last_good_ = at_.step;
  }

  const RunOptions& options_;
  c10::OptionalStreamGuard stream_;
  nn::ModelConfig config_;
  Settings settings_;
  Experiment experiment_;
  std::optional<nn::AdapterConfig> adapter_;
  c10::ScalarType dtype_;
  std::unique_ptr<Batches> batches_;
  std::optional<FolderLock> lock_;
  std::optional<nn::Model> model_;
  std::optional<Optimizer> optimizer_;
  std::optional<Engine> engine_;
  std::optional<MetricsFile> metrics_;
  double flops_ = 0;  // of a step
  double peak_ = 0;   // of the device, a second; 0: not known

  Progressed at_;
  Clock::time_point started_;
  std::int64_t first_unread_ = 0, last_good_ = 0;
  double loss_ = 0, norm_ = 0;
  Json last_metrics_;
  Progressed logged_;  // at the last logged step
  double logged_seconds_ = 0;
};

}  // namespace

Json train(const Experiment& experiment, std::shared_ptr<const Dataset> data,
           const RunOptions& options) {
  return Run(experiment, std::move(data), options).go();
}

}  // namespace subspace::train
