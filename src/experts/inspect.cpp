#include "experts/inspect.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <optional>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/interrupt.h"
#include "base/progress.h"
#include "base/version.h"
#include "experts/clusters.h"
#include "experts/expert_spectra.h"
#include "experts/inspect_tables.h"
#include "experts/interpolation.h"
#include "experts/run_use.h"
#include "experts/tokens.h"
#include "experts/use.h"
#include "lora/token_words.h"
#include "spectrum/result.h"
#include "train/induction.h"
#include "train/run_state.h"

namespace subspace::experts {
namespace fs = std::filesystem;
namespace {

/// Where the weights are: the run's own, or those of its last checkpoint.
fs::path weights_of(const fs::path& run) {
  std::error_code status;
  if (fs::exists(run / "config.json", status)) return run;
  const auto steps = train::checkpoint_steps(run);
  if (!steps.empty()) return run / "checkpoints" / std::to_string(steps.back());
  if (!fs::exists(run / "run.json", status)) {
    fail(ErrorCode::NotFound,
         "{}: neither config.json nor run.json; expected a folder that `subspace train` has "
         "written, or a model in Hugging Face layout",
         run.string());
  }
  fail(ErrorCode::NotFound, "{}: no checkpoint yet; let the run come to its first", run.string());
}

/// How the run was trained says how many rows a pass has.
train::Settings settings_of_run(const fs::path& run) {
  std::error_code status;
  train::Settings settings;
  settings.batch_size = 32;
  if (!fs::exists(run / "run.json", status)) return settings;
  const Json json = read_json_file(run / "run.json");
  const std::string where = (run / "run.json").string();
  return train::read_settings(Fields(json, where).object("train").json(), where);
}

class Inspection {
 public:
  explicit Inspection(const InspectOptions& options)
      : options_(options), weights_(weights_of(options.run)) {
    const fs::path path = weights_ / "config.json";
    const auto config = nn::read_model_config(read_json_file(path), path.string());
    if (!config.moe && !config.neuron_experts) {
      fail(ErrorCode::Unsupported,
           "{}: a model without experts: its feed-forward layers are dense; expected "
           "feed_forward ethos, peer, molae or moe",
           path.string());
    }
    nn::Model::Options model;
    model.device = options.device;
    model_ = nn::load_model(weights_, model, options.threads);
    create_folder(options.out);
    lock_.emplace(options.out);
  }

  Json go() {
    result_ = facts();
    result_["training"] = use_while_training(options_.run);
    if (result_["training"].is_null()) {
      absent("training", "the run's metrics.jsonl says nothing of experts");
    }
    observe_data();
    inspect_layers();
    write();
    return result_;
  }

 private:
  const nn::ModelConfig& config() const { return model_->config(); }
  bool generated() const {
    return config().neuron_experts &&
           config().neuron_experts->kind == nn::NeuronExpertsConfig::Kind::ethos;
  }

  void absent(const char* what, const std::string& why) {
    result_["absent"].push_back({{"what", what}, {"why", why}});
  }

  Json facts() const {
    Json model = {{"feed_forward",
                   config().neuron_experts ? nn::kind_name(config().neuron_experts->kind) : "moe"},
                  {"layers", config().layers},
                  {"width", config().width},
                  {"vocabulary", config().vocab}};
    if (const auto& neurons = config().neuron_experts) {
      model["experts"] = neurons->experts;
      model["heads"] = neurons->heads;
      model["per_head"] = neurons->per_head;
      if (neurons->latent > 0) model["latent"] = neurons->latent;
      if (neurons->hidden > 0) model["hidden"] = neurons->hidden;
    } else {
      model["experts"] = config().moe->experts;
      model["heads"] = 1;
      model["per_head"] = config().moe->active;
    }
    const fs::path run = fs::absolute(options_.run).lexically_normal();
    const fs::path named = run.filename().empty() ? run.parent_path() : run;
    Json out = {{"format", "subspace-experts"}, {"version", 1}};
    out["program"] = {{"version", version()}, {"commit", git_commit()}};
    out["run"] = named.filename().string();
    if (weights_ != options_.run) out["step"] = std::stoll(weights_.filename().string());
    out["model"] = std::move(model);
    out["device"] = options_.device.str();
    out["data"] = nullptr;
    out["absent"] = Json::array();
    return out;
  }

  void observe_data() {
    if (options_.data.empty()) {
      const char* why = "no text was given; --data DIR has some";
      absent("usage", why);
      absent("tokens", why);
      return;
    }
    const auto batches = train::open_folder(options_.data, config(), settings_of_run(options_.run));
    observation_ = observe(*model_, *batches, options_.tokens);
    const at::Tensor& index = observation_->layers.front().index;
    result_["data"] = {{"id", batches->id()},
                       {"held_out", observation_->held_out},
                       {"rows", observation_->rows},
                       {"tokens", index.size(0)}};
    if (!observation_->tokens.defined()) {
      absent("tokens", "the model reads images, which have no tokens");
      return;
    }
    try {
      vocabulary_ = read_vocabulary(options_.data);
    } catch (const Error& error) {
      if (error.code() != ErrorCode::NotFound) throw;
      message("tokens are shown by their numbers: the data's folder has no vocabulary");
    }
  }

  void inspect_layers() {
    if (config().moe) {
      const char* why =
          "the experts of a mixture are networks of many neurons behind one router: they have "
          "neither latents nor product keys";
      for (const char* what : {"spectra", "clusters", "neighbours", "interpolation"}) {
        absent(what, why);
      }
    } else if (!generated()) {
      absent("interpolation",
             "these experts are stored, not generated: between two of them lies a straight line");
    }
    result_["layers"] = Json::array();
    const auto layers = model_->expert_usage();
    Progress progress("layer", static_cast<std::int64_t>(layers.size()));
    for (std::size_t i = 0; i < layers.size(); ++i) {
      check_interrupted("nothing was written");
      result_["layers"].push_back(
          layer_json_of(layers[i].layer, observation_ ? &observation_->layers[i] : nullptr));
      progress.step("");
    }
  }

  Json layer_json_of(std::int64_t layer, const Observed* observed) {
    Json out = {{"layer", layer}};
    at::Tensor counts;
    if (observed != nullptr) {
      out["usage"] = use_of_experts(observed->counts);
      counts = observed->counts.sum(0);
      if (observation_->tokens.defined()) {
        out["tokens"] = tokens_of_experts(*observed, observation_->tokens, vocabulary_);
      }
    }
    if (config().moe) return out;
    const ExpertTensors tensors = expert_tensors(*model_, layer);
    std::vector<MapSpectra> spectra = expert_spectra(tensors);
    out["maps"] = layer_json(layer, spectra, random_).at("maps");
    spectra_.emplace_back(layer, std::move(spectra));
    out["clusters"] = clusters_of_experts(tensors, counts);
    const Neighbourhood neighbourhood(tensors);
    out["neighbours"] = neighbours_of_experts(tensors, neighbourhood, counts);
    if (generated()) {
      out["interpolation"] = interpolation_of_experts(
          tensors, neighbourhood, observed != nullptr ? observed->x : at::Tensor());
    }
    return out;
  }

  void write() const {
    if (!spectra_.empty()) {
      std::vector<std::pair<std::string, at::Tensor>> values;
      for (const auto& [layer, maps] : spectra_) {
        for (const MapSpectra& map : maps) {
          values.emplace_back(fmt::format("layers.{}.{}.stack", layer, map.map), map.stack);
        }
      }
      nn::write_tensors(options_.out / "spectra.safetensors", values);
      write_file_atomically(options_.out / "ranks.csv", ranks_csv(result_.at("layers")));
    }
    if (observation_) {
      std::vector<std::pair<std::string, at::Tensor>> counts;
      for (const Observed& layer : observation_->layers) {
        counts.emplace_back(fmt::format("layers.{}.counts", layer.layer), layer.counts);
      }
      nn::write_tensors(options_.out / "counts.safetensors", counts);
    }
    for (const auto& [name, text] : inspect_tables(result_)) {
      write_file_atomically(options_.out / name, text);
    }
    write_file_atomically(options_.out / "experts.json",
                          result_.dump(1, ' ', false, Json::error_handler_t::replace) + "\n");
  }

  const InspectOptions& options_;
  fs::path weights_;
  std::unique_ptr<nn::Model> model_;
  std::optional<FolderLock> lock_;
  std::optional<Observation> observation_;
  std::vector<std::string> vocabulary_;
  RandomSpectra random_;
  std::vector<std::pair<std::int64_t, std::vector<MapSpectra>>> spectra_;
  Json result_;
};

}  // namespace

Json inspect_experts(const InspectOptions& options) {
  const at::NoGradGuard no_gradient;
  return Inspection(options).go();
}

}  // namespace subspace::experts
