#include "train/settings.h"

#include <cmath>
#include <numbers>

#include "base/error.h"
#include "nn/config_fields.h"

namespace subspace::train {
namespace {

/// The names of `train`'s fields, as Settings has them.
bool is_setting(const std::string& name) { return to_json(Settings{}).contains(name); }

void set_field(Experiment& experiment, const std::string& text, const std::string& by) {
  const auto equals = text.find('=');
  if (equals == std::string::npos || equals == 0) {
    fail(ErrorCode::Usage, "--set {}: expected name=value", text);
  }
  const std::string name = text.substr(0, equals), value = text.substr(equals + 1);
  Json parsed = Json::parse(value, nullptr, /*allow_exceptions=*/false);
  if (parsed.is_discarded()) parsed = value;
  Json& object = is_setting(name)                 ? experiment.train
                 : experiment.adapter.is_object() ? experiment.adapter
                                                  : experiment.model;
  if (parsed.is_null()) {
    object.erase(name);
  } else {
    object[name] = parsed;
  }
  experiment.set_by[name] = fmt::format("{} {}", by, text);
}

/// What `read` gives; its error about a field that was set says so, for the file does not have it.
template <typename Read>
auto saying_what_was_set(const Experiment& experiment, const Read& read) {
  try {
    return read();
  } catch (const Error& error) {
    const std::string what = error.what();
    for (const auto& [name, by] : experiment.set_by) {
      if (what.find(fmt::format("field '{}'", name)) == std::string::npos) continue;
      fail(error.code(), "{} ('{}' comes from {})", what, name, by);
    }
    throw;
  }
}

}  // namespace

Experiment read_experiment(const std::filesystem::path& file, const std::vector<std::string>& sets,
                           const std::string& base, const std::string& by) {
  Experiment experiment;
  experiment.where = file.string();
  experiment.model = read_json_file(file);
  const Fields fields(experiment.model, experiment.where);
  experiment.train = fields.has("train") ? fields.object("train").json() : Json::object();
  experiment.model.erase("train");
  if (fields.has("adapter")) {
    experiment.adapter = fields.object("adapter").json();
    experiment.model.erase("adapter");
    if (base.empty()) {
      fail(ErrorCode::NotFound, "{}: an adapter needs the model it is for; give it with --base",
           experiment.where);
    }
    if (!experiment.model.empty()) {
      fail(ErrorCode::InvalidValue,
           "{}: field '{}'; an adapter's model is that of --base, so expected adapter and train",
           experiment.where, experiment.model.begin().key());
    }
    experiment.base = base;
    experiment.model = read_json_file(std::filesystem::path(base) / "config.json");
  } else if (!base.empty()) {
    fail(ErrorCode::InvalidValue,
         "{}: no object 'adapter'; --base is the model of an adapter, a model of its own has none",
         experiment.where);
  }
  apply_sets(experiment, sets, by);
  return experiment;
}

void apply_sets(Experiment& experiment, const std::vector<std::string>& sets,
                const std::string& by) {
  for (const std::string& text : sets) set_field(experiment, text, by);
}

Settings read_settings(const Experiment& experiment) {
  return saying_what_was_set(experiment,
                             [&] { return read_settings(experiment.train, experiment.where); });
}

nn::ModelConfig read_model(const Experiment& experiment) {
  return saying_what_was_set(
      experiment, [&] { return nn::read_model_config(experiment.model, experiment.where); });
}

Settings read_settings(const Json& train, const std::string& where) {
  nn::ConfigFields in(train, where + ": train");
  Settings out;
  out.batch_size = in.positive("batch_size");
  out.accumulate = in.positive_or("accumulate", out.accumulate);
  out.steps = in.positive("steps");
  auto share = [&](const char* name, double value) {
    const double number = in.not_negative_or(name, value);
    if (number > 1) in.contradiction(name, "expected a share from 0 to 1");
    return number;
  };
  if (!in.has("learning_rate")) {
    fail(ErrorCode::NotFound, "{}: no field 'learning_rate'; expected a number", in.where());
  }
  out.learning_rate = in.not_negative_or("learning_rate", 0);
  out.warmup = share("warmup", out.warmup);
  out.decay = in.choice_or("decay", out.decay, {"cosine", "linear", "none"});
  out.weight_decay = in.not_negative_or("weight_decay", out.weight_decay);
  out.beta1 = share("adam_beta1", out.beta1);
  out.beta2 = share("adam_beta2", out.beta2);
  out.eps = in.not_negative_or("adam_epsilon", out.eps);
  out.max_grad_norm = in.not_negative_or("max_grad_norm", out.max_grad_norm);
  out.mask_probability = share("mask_probability", out.mask_probability);
  if (out.mask_probability == 0) in.contradiction("mask_probability", "nothing to predict");
  out.separate_documents = in.boolean_or("separate_documents", out.separate_documents);
  out.log_every = in.positive_or("log_every", out.log_every);
  out.evaluate_every = in.count_or("evaluate_every", out.evaluate_every);
  out.checkpoint_every = in.count_or("checkpoint_every", out.checkpoint_every);
  out.evaluate_rows = in.count_or("evaluate_rows", out.evaluate_rows);
  out.keep_checkpoints = in.positive_or("keep_checkpoints", out.keep_checkpoints);
  out.seed = static_cast<std::uint64_t>(in.count_or("seed", 0));
  out.precision = in.choice_or("precision", out.precision, {"auto", "bfloat16", "float32"});
  in.finish_object("training", "docs/training.md");
  return out;
}

Json to_json(const Settings& s) {
  Json json = Json::object();
  json["batch_size"] = s.batch_size;
  json["accumulate"] = s.accumulate;
  json["steps"] = s.steps;
  json["learning_rate"] = s.learning_rate;
  json["warmup"] = s.warmup;
  json["decay"] = s.decay;
  json["weight_decay"] = s.weight_decay;
  json["adam_beta1"] = s.beta1;
  json["adam_beta2"] = s.beta2;
  json["adam_epsilon"] = s.eps;
  json["max_grad_norm"] = s.max_grad_norm;
  json["mask_probability"] = s.mask_probability;
  json["separate_documents"] = s.separate_documents;
  json["log_every"] = s.log_every;
  json["evaluate_every"] = s.evaluate_every;
  json["checkpoint_every"] = s.checkpoint_every;
  json["evaluate_rows"] = s.evaluate_rows;
  json["keep_checkpoints"] = s.keep_checkpoints;
  json["seed"] = s.seed;
  json["precision"] = s.precision;
  return json;
}

double learning_rate_at(const Settings& settings, std::int64_t step) {
  const auto steps = static_cast<double>(settings.steps);
  const double warm = std::floor(settings.warmup * steps);
  const auto now = static_cast<double>(step);
  if (now < warm) return settings.learning_rate * (now + 1) / warm;
  const double left = steps > warm ? (steps - now) / (steps - warm) : 1;
  if (settings.decay == "linear") return settings.learning_rate * left;
  if (settings.decay == "cosine") {
    return settings.learning_rate * 0.5 * (1 - std::cos(std::numbers::pi * left));
  }
  return settings.learning_rate;
}

}  // namespace subspace::train
