#include "train/finetune.h"

#include <cmath>
#include <fstream>

#include "base/atomic_file.h"
#include "base/error.h"
#include "train/provenance.h"
#include "train/sweep_table.h"

namespace subspace::train {
namespace fs = std::filesystem;
namespace {

/// The base's configuration as one of a model that classifies.
Json classifier_config(const fs::path& base, const std::vector<std::string>& classes) {
  const fs::path path = base / "config.json";
  Json json = read_json_file(path);
  const std::string type = Fields(json, path.string()).string("model_type");
  if (type != "bert" && type != "subspace_encoder") {
    fail(ErrorCode::InvalidValue,
         "{}: model_type '{}' is no encoder of texts; fine-tuning takes bert or subspace_encoder",
         path.string(), type);
  }
  json["architectures"] = {type == "bert" ? "BertForSequenceClassification"
                                          : "SubspaceEncoderForSequenceClassification"};
  json.erase("num_labels");
  json["id2label"] = json["label2id"] = Json::object();
  for (std::size_t i = 0; i < classes.size(); ++i) {
    json["id2label"][std::to_string(i)] = classes[i];
    json["label2id"][classes[i]] = i;
  }
  return json;
}

Json default_training() {
  return {{"batch_size", 32},     {"learning_rate", 1e-4}, {"warmup", 0.1},  {"decay", "linear"},
          {"weight_decay", 0.01}, {"max_grad_norm", 1.0},  {"log_every", 50}};
}

/// Evaluations of a run behind its epochs, and what the last step said.
Json numbers_of(const fs::path& run, std::int64_t steps_per_epoch) {
  Json numbers = Json::object(), epochs = Json::array(), last;
  std::ifstream lines(run / "metrics.jsonl");
  for (std::string line; std::getline(lines, line);) {
    const Json json = parse_json(line, (run / "metrics.jsonl").string());
    if (!json.contains("eval")) {
      last = json;
      continue;
    }
    numbers = json.at("eval");
    const double epoch = json.at("step").get<double>() / static_cast<double>(steps_per_epoch);
    epochs.push_back(
        {{"epoch", epoch}, {"accuracy", numbers.at("accuracy")}, {"loss", numbers.at("loss")}});
  }
  numbers["steps"] = last.at("step");
  numbers["training_loss"] = last.at("loss");
  numbers["seconds"] = last.at("seconds");
  numbers["epochs"] = std::move(epochs);
  return numbers;
}

class Finetuning {
 public:
  explicit Finetuning(const FinetuneOptions& options) : options_(options) {
    if (options.data->held_out() == nullptr) {
      fail(ErrorCode::NotFound,
           "the data has no held-out rows to classify; prepare it with a valid split");
    }
    const TokenizerMeta& tokenizer = options.data->meta().tokenizer;
    check_tokenizer(options.base, {{"name", tokenizer.name}, {"sha256", tokenizer.sha256}});
    weights_ = weights_sha256(options.base);
    if (options.resume) options.data->verify();  // what finished seeds were made from
    create_folder(options.out);
  }

  Json go() {
    Json result = Json::object();
    result["base"] = options_.base.string();
    result["data"] = options_.data->meta().id;
    result["classes"] = options_.data->meta().classes;
    result["runs"] = Json::array();
    for (const std::uint64_t seed : options_.seeds) {
      result["runs"].push_back(of_seed(seed));
      add_intervals(result);
      write(result);
    }
    return result;
  }

 private:
  Json of_seed(std::uint64_t seed) const {
    const fs::path folder = options_.out / fmt::format("seed_{}", seed);
    const Experiment experiment = finetuning(options_, seed);
    const Json asked_for = {{"model", experiment.model},
                            {"train", experiment.train},
                            {"data", options_.data->meta().id},
                            {"base_sha256", weights_}};
    if (options_.resume && fs::exists(folder / "result.json")) {
      Json before = read_json_file(folder / "result.json");
      require_same_request(folder, before, asked_for);
      return before;
    }
    RunOptions run;
    run.out = folder;
    run.device = options_.device;
    run.threads = options_.threads;
    run.resume = options_.resume;
    run.deterministic = options_.deterministic;
    train(experiment, options_.data, run);
    Json json = {{"asked_for", asked_for}, {"seed", seed}};
    json.update(numbers_of(folder, experiment.train.at("evaluate_every").get<std::int64_t>()));
    write_file_atomically(folder / "result.json", json.dump(1) + "\n");
    remove_tree(folder / "checkpoints");
    return json;
  }

  static void add_intervals(Json& result) {
    for (const char* name : {"accuracy", "loss"}) {
      std::vector<double> values;
      for (const Json& run : result.at("runs")) values.push_back(run.at(name).get<double>());
      result[name] = to_json(interval(values));
    }
  }

  void write(const Json& result) const {
    std::string rows = "seed,accuracy,loss,examples,steps,training_loss,seconds\n";
    for (const Json& run : result.at("runs")) {
      rows +=
          fmt::format("{},{},{},{},{},{},{}\n", run.at("seed").dump(), run.at("accuracy").dump(),
                      run.at("loss").dump(), run.at("examples").dump(), run.at("steps").dump(),
                      run.at("training_loss").dump(), run.at("seconds").dump());
    }
    write_file_atomically(options_.out / "result.json", result.dump(1) + "\n");
    write_file_atomically(options_.out / "result.csv", rows);
  }

  const FinetuneOptions& options_;
  std::string weights_;  // SHA-256 of the base's
};

}  // namespace

Experiment finetuning(const FinetuneOptions& options, std::uint64_t seed) {
  Experiment experiment;
  experiment.where = "finetune";
  experiment.base = options.base.string();
  experiment.model = classifier_config(options.base, options.data->meta().classes);
  experiment.train = default_training();
  apply_sets(experiment, options.sets);
  Json& train = experiment.train;
  train["seed"] = seed;
  auto whole = [&](const char* name, std::int64_t absent) {
    return train.contains(name) && train.at(name).is_number_integer()
               ? std::max<std::int64_t>(1, train.at(name).get<std::int64_t>())
               : absent;
  };
  const std::int64_t rows = options.data->split("train").rows();
  const std::int64_t per_step = whole("batch_size", 32) * whole("accumulate", 1);
  const std::int64_t epoch = (rows + per_step - 1) / per_step;
  const auto steps = static_cast<std::int64_t>(
      std::ceil(options.epochs * static_cast<double>(rows) / static_cast<double>(per_step)));
  if (!train.contains("steps")) train["steps"] = std::max<std::int64_t>(1, steps);
  for (const char* name : {"evaluate_every", "checkpoint_every"}) {
    if (!train.contains(name)) train[name] = epoch;
  }
  return experiment;
}

Json finetune(const FinetuneOptions& options) { return Finetuning(options).go(); }

}  // namespace subspace::train
