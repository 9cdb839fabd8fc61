#include "lora/heads_run.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/headeronly/version.h>

#include <chrono>
#include <deque>
#include <future>
#include <map>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/interrupt.h"
#include "base/progress.h"
#include "base/version.h"
#include "lora/frames.h"
#include "spectrum/device_stream.h"

namespace subspace {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

void to_device(const at::Device& device, const std::vector<at::Tensor*>& tensors) {
  for (at::Tensor* tensor : tensors) {
    if (tensor->defined()) *tensor = tensor->to(device);
  }
}

AttentionLayer moved(AttentionLayer layer, const at::Device& device) {
  to_device(device, {&layer.q, &layer.q_rope, &layer.k, &layer.v, &layer.o, &layer.qa, &layer.kva,
                     &layer.kpe, &layer.ob, &layer.q_bias, &layer.k_bias, &layer.v_bias,
                     &layer.o_bias, &layer.qa_bias, &layer.kva_bias, &layer.kpe_bias});
  for (Norm* norm : {&layer.input, &layer.output, &layer.q_latent, &layer.kv_latent, &layer.q_head,
                     &layer.k_head}) {
    to_device(device, {&norm->weight, &norm->bias});
  }
  return layer;
}

LayerChange moved(LayerChange change, const at::Device& device) {
  for (MatrixChange* matrix : {&change.q, &change.q_rope, &change.k, &change.v, &change.o,
                               &change.qa, &change.kva, &change.kpe, &change.ob}) {
    to_device(device, {&matrix->a, &matrix->b, &matrix->gain, &matrix->full});
  }
  to_device(device, {&change.q_bias, &change.k_bias, &change.v_bias, &change.o_bias,
                     &change.qa_bias, &change.kva_bias, &change.kpe_bias});
  for (std::optional<Norm>* norm : {&change.input, &change.output, &change.q_latent,
                                    &change.kv_latent, &change.q_head, &change.k_head}) {
    if (*norm) to_device(device, {&(*norm)->weight, &(*norm)->bias});
  }
  return change;
}

/// Whether directions of what the layer reads count as data, or the embeddings, have them.
bool weighs(const AttentionLayer& layer, const HeadsOptions& options) {
  return !options.second_moment.empty() || (layer.index == 0 && options.embedding_moment.defined());
}

std::vector<std::string> approximations(const AttentionLayer& layer, const LayerChange& change,
                                        const HeadsOptions& options) {
  std::vector<std::string> flags;
  const auto flag = [&](bool is, const char* name) {
    if (is) flags.emplace_back(name);
  };
  flag(layer.q_head.kind != Norm::Kind::none || layer.k_head.kind != Norm::Kind::none,
       "QK:qk_norm");
  flag(layer.is_mla() && (change.qa.defined() || change.kva.defined()), "mla_rms");
  flag(layer.output.kind != Norm::Kind::none, "VO:post_norm");
  flag(!weighs(layer, options), "data_unweighted");
  flag(options.second_moment.empty() && weighs(layer, options), "tokens_alike");
  bool dora = false;
  for (const MatrixChange* matrix : {&change.q, &change.q_rope, &change.k, &change.v, &change.o,
                                     &change.qa, &change.kva, &change.kpe, &change.ob}) {
    dora |= matrix->gain.defined();
  }
  flag(dora, "dora");
  flag((change.input || change.output) && !options.fold_norm, "norm_not_folded");
  flag(layer.values_share_key && layer.rotary.layout != Rotary::Layout::none, "VO:values_rotated");
  flag((layer.is_mla() || layer.qa.defined()) &&
           (layer.qa_bias.defined() || layer.kva_bias.defined() || layer.kpe_bias.defined()),
       "latent_biases");
  return flags;
}

std::string range_text(const std::vector<std::int64_t>& offsets) {
  if (offsets.size() == 1) return std::to_string(offsets[0]);
  return fmt::format("mean of {} offsets, {} to {}", offsets.size(), offsets.front(),
                     offsets.back());
}

Json options_json(const HeadsOptions& options) {
  return {{"fold_norm", options.fold_norm},
          {"window", options.window},
          {"curve", options.curve},
          {"second_moment", options.second_moment.empty()
                                ? Json(nullptr)
                                : Json(options.second_moment.filename().string())},
          {"embedding_moment", options.embedding_moment.defined()},
          {"token_map", options.token_map.defined()}};
}

Json start_file(const char* format, const HeadsSource& source, const HeadsOptions& options) {
  Json json = Json::object();
  json["format"] = format;
  json["version"] = 1;
  json["program"] = {{"version", version()}, {"commit", git_commit()}, {"torch", TORCH_VERSION}};
  json["model"] = source.model;
  json["options"] = options_json(options);
  return json;
}

at::Tensor weight_of(const AttentionLayer& layer, const HeadsOptions& options) {
  if (!weighs(layer, options)) return {};
  if (options.second_moment.empty()) return moment_factor(options.embedding_moment);
  const std::int64_t width = layer.kva.defined() ? layer.kva.size(0) : layer.v.size(1);
  return second_moment_factor(options.second_moment, layer.index, width);
}

MetricOptions metric_options(const HeadsOptions& options) {
  MetricOptions out;
  out.window = options.window;
  out.curve = options.curve;
  return out;
}

bool has_biases(const AttentionLayer& layer, const LayerChange& change) {
  return !layer.is_mla() && !layer.qa.defined() &&
         (layer.q_bias.defined() || layer.k_bias.defined() || layer.v_bias.defined() ||
          change.q_bias.defined() || change.k_bias.defined() || change.v_bias.defined());
}

}  // namespace

namespace {

/// A layer from reading to what is written of it, with the seconds that each stage took.
struct Work {
  AttentionLayer layer;
  LayerChange change;
  std::vector<CircuitProducts> products;
  std::vector<HeadVectors> vectors;  ///< of each circuit, if they were asked for
  LayerResult result;
  Json shared, entries;
  std::map<std::string, double> seconds;
};

/// Adds the time until its end to a stage.
class Stage {
 public:
  Stage(Work& work, const char* name) : total_(work.seconds[name]), start_(Clock::now()) {}
  ~Stage() { total_ += seconds_since(start_); }
  Stage(const Stage&) = delete;
  Stage& operator=(const Stage&) = delete;

 private:
  double& total_;
  Clock::time_point start_;
};

/// Everything that takes sums over the model's width; the matrices are needed no more.
void multiply(Work& work, const HeadsOptions& options, const MetricOptions& given) {
  MetricOptions metrics = given;
  const at::Tensor weight = weight_of(work.layer, options);
  if (weight.defined()) metrics.weight = weight.to(options.device);
  const AttentionLayer layer = moved(work.layer, options.device);
  const LayerChange change = moved(work.change, options.device);
  work.layer = {}, work.change = {};
  LayerResult& result = work.result;
  result.layer = layer.index;
  result.offset_mode = range_text(options.window);
  result.curve = options.curve;
  result.approx = approximations(layer, change, options);
  CircuitOptions how;
  how.fold_norm = options.fold_norm;
  {
    const Stage stage(work, "products");
    for (const Circuit& circuit : circuits(layer, change, how)) {
      work.products.push_back(metric_products(circuit, metrics));
      work.vectors.emplace_back();
      if (options.vectors > 0) work.vectors.back() = head_vectors(circuit, options.vectors);
    }
    if (options.token_map.defined()) {
      const Circuit vo = circuits(layer, change, {.fold_norm = true}).back();
      result.copying_tokens = copying_of_tokens(vo, options.token_map.to(options.device));
    }
    if (has_biases(layer, change)) {
      how.homogeneous = true;
      result.bias = bias_metrics(circuits(layer, change, how));
    }
    synchronize(options.device);
  }
  const Stage stage(work, "transfer");
  fetch(work.products);
}

void find_results(Work& work, const HeadsOptions& options, const MetricOptions& metrics) {
  std::vector<Frames> frames;
  {
    const Stage stage(work, "frames");
    for (const CircuitProducts& products : work.products) frames.push_back(frames_of(products));
  }
  const Stage stage(work, "heads");
  for (std::size_t c = 0; c < frames.size(); ++c) {
    const CircuitProducts& products = work.products[c];
    work.result.circuits.push_back({circuit_metrics(products, frames[c], metrics),
                                    shared_bases(products, frames[c]),
                                    std::move(work.vectors[c]),
                                    {}});
    CircuitResult& found = work.result.circuits.back();
    if (options.gain_free) {
      found.gain_free = gain_free_intruders(frames[c], gain_of(found.metrics));
    }
  }
  work.products.clear();
}

void describe(Work& work) {
  const Stage stage(work, "json");
  work.shared = shared_json(work.result);
  work.entries = heads_json(work.result);
}

/// Layers one after another through reading, products and results: each stage works on a layer
/// while the next ones work on those before it.
class Pipeline {
 public:
  Pipeline(const HeadsSource& source, const HeadsOptions& options)
      : source_(source),
        options_(options),
        metrics_(metric_options(options)),
        threads_(at::get_num_threads()),
        stream_(options.device) {
    const auto layers = static_cast<int>(options.layers.size());
    const int most = options.layers_at_once > 0 ? options.layers_at_once
                     : options.device.is_cpu()  ? std::min(threads_, kOnCpu)
                                                : threads_;
    at_once_ = std::max(1, std::min(most, layers));
    early_ = !options.device.is_cpu();
  }
  ~Pipeline() {
    running_.clear();
    if (at_once_ > 1) at::set_num_threads(threads_);
  }
  Pipeline(const Pipeline&) = delete;
  Pipeline& operator=(const Pipeline&) = delete;

  /// Calls done(work) for every layer in turn.
  template <typename Done>
  void run(const Done& done) {
    const std::vector<std::int64_t>& layers = options_.layers;
    std::future<Work> next;
    if (!layers.empty()) next = start_reading(layers.front());
    for (std::size_t i = 0; i < layers.size(); ++i) {
      check_interrupted("nothing is written before the last layer is done");
      Work work = next.get();
      if (i + 1 < layers.size()) next = start_reading(layers[i + 1]);
      running_.push_back(start_finding(std::move(work)));
      while (running_.size() >= static_cast<std::size_t>(at_once_)) take(done);
    }
    while (!running_.empty()) take(done);
    check_interrupted("nothing is written before the last layer is done");
  }

 private:
  /// Each layer that is worked on is in memory. Two threads with a layer each wait for nobody; with
  /// half a layer each they wait at the end of every step.
  static constexpr int kOnCpu = 2;

  std::future<Work> start_reading(std::int64_t layer) {
    return std::async(std::launch::async, [this, layer] {
      const auto stream = stream_.use();
      Work work;
      {
        const Stage stage(work, "read");
        auto change = std::async(std::launch::async, [&] { return source_.change(layer); });
        work.layer = source_.load(layer);
        work.change = change.get();
        synchronize(options_.device);
      }
      if (early_) multiply(work, options_, metrics_);
      return work;
    });
  }

  std::future<Work> start_finding(Work work) {
    const bool alone = at_once_ == 1;
    return std::async(alone ? std::launch::deferred : std::launch::async,
                      [this, alone, work = std::move(work)]() mutable {
                        // Of the calling thread alone.
                        if (!alone) at::set_num_threads((threads_ + at_once_ - 1) / at_once_);
                        if (!early_) multiply(work, options_, metrics_);
                        find_results(work, options_, metrics_);
                        describe(work);
                        return std::move(work);
                      });
  }

  template <typename Done>
  void take(const Done& done) {
    Work work = running_.front().get();
    running_.pop_front();
    done(work);
  }

  const HeadsSource& source_;
  const HeadsOptions& options_;
  MetricOptions metrics_;
  int threads_, at_once_ = 1;
  bool early_ = false;
  DeviceStream stream_;
  std::deque<std::future<Work>> running_;
};

}  // namespace

LayerResult layer_heads(const AttentionLayer& layer, const LayerChange& change,
                        const HeadsOptions& options) {
  const MetricOptions metrics = metric_options(options);
  Work work;
  work.layer = layer, work.change = change;
  multiply(work, options, metrics);
  find_results(work, options, metrics);
  return std::move(work.result);
}

Json run_lora_heads(const HeadsSource& source, const HeadsOptions& options) {
  create_folder(options.out);
  const auto start = Clock::now();
  Json json = start_file("subspace-lora-heads", source, options);
  Json layers = Json::array(), heads = Json::array(), seconds = Json::array();
  std::vector<LayerResult> results;
  std::map<std::string, double> stages;
  Progress progress("layer", static_cast<std::int64_t>(options.layers.size()));
  Pipeline(source, options).run([&](Work& work) {
    double own = 0;
    for (const auto& [stage, time] : work.seconds) {
      stages[stage] += time;
      own += time;
    }
    if (options.on_layer) options.on_layer(work.result, work.entries);
    layers.push_back(std::move(work.shared));
    for (Json& entry : work.entries) heads.push_back(std::move(entry));
    seconds.push_back(own - work.seconds["read"]);
    progress.step(fmt::format("layer {}: {}", work.result.layer, format_seconds(own)));
    results.push_back(std::move(work.result));
  });
  json["times"] = {{"total_seconds", seconds_since(start)},
                   {"layer_seconds", std::move(seconds)},
                   {"stage_seconds", stages}};
  json["layers"] = std::move(layers);
  json["heads"] = std::move(heads);
  // Nothing is left to do beside them.
  std::future<void> table = std::async(std::launch::async, [&] {
    write_file_atomically(options.out / "heads.csv", heads_csv(json.at("heads")));
  });
  std::future<void> entries = std::async(std::launch::async, [&] {
    write_file_atomically(options.out / "heads.json", json.dump() + "\n");
  });
  write_head_values(options.out / "heads.safetensors", results);
  table.get();
  entries.get();
  return json;
}

namespace {

struct Loaded {
  AttentionLayer layer;
  LayerChange change;
};

std::future<Loaded> start_loading(const HeadsSource& source, std::int64_t layer) {
  return std::async(std::launch::async, [&source, layer] {
    return Loaded{source.load(layer), source.change(layer)};
  });
}

/// Calls work(loaded) for every layer in turn, with the next one on its way.
template <typename Work>
void for_each_layer(const HeadsSource& source, const HeadsOptions& options, Work work) {
  Progress progress("layer", static_cast<std::int64_t>(options.layers.size()));
  std::future<Loaded> next;
  if (!options.layers.empty()) next = start_loading(source, options.layers.front());
  for (std::size_t i = 0; i < options.layers.size(); ++i) {
    check_interrupted("nothing is written before the last layer is done");
    const auto begun = Clock::now();
    const Loaded loaded = next.get();
    if (i + 1 < options.layers.size()) next = start_loading(source, options.layers[i + 1]);
    work(loaded);
    progress.step(
        fmt::format("layer {}: {}", options.layers[i], format_seconds(seconds_since(begun))));
  }
  check_interrupted("nothing is written before the last layer is done");
}

/// One head of rope.json.
Json rope_entry(const CircuitMetrics& m, const LayerResult& layer, std::int64_t head) {
  const auto ratio = [](double a, double b) {
    return b > 0 && std::isfinite(a / b) ? Json(a / b) : Json(nullptr);
  };
  Json entry = {{"layer", layer.layer},
                {"head", head},
                {"circuit", m.circuit},
                {"approx", approx_json(layer, m.circuit)}};
  Json sizes = Json::array();
  const at::Tensor curve = m.curve[head];
  for (std::int64_t j = 0; j < curve.size(0); ++j) {
    sizes.push_back(
        ratio(std::sqrt(curve[j][1].item<double>()), std::sqrt(curve[j][0].item<double>())));
  }
  entry["rel_fro"] = std::move(sizes);
  std::vector<std::string> names = m.terms;
  names.push_back("delta");
  for (std::size_t t = 0; t < names.size(); ++t) {
    const at::Tensor energies = m.frequency[head][static_cast<std::int64_t>(t)];
    const double whole = energies.sum().item<double>();
    Json shares = Json::array();
    for (std::int64_t f = 0; f < energies.size(0); ++f) {
      shares.push_back(ratio(energies[f].item<double>(), whole));
    }
    entry["freq_share"][names[t]] = std::move(shares);
  }
  return entry;
}

std::string rope_csv(const Json& json) {
  std::string text = "layer,head,circuit,offset,rel_fro\n";
  const Json& offsets = json.at("offsets");
  for (const Json& head : json.at("heads")) {
    for (std::size_t j = 0; j < offsets.size(); ++j) {
      const Json& value = head.at("rel_fro")[j];
      text += fmt::format("{},{},{},{},{}\n", head.at("layer").get<std::int64_t>(),
                          head.at("head").get<std::int64_t>(),
                          head.at("circuit").get<std::string>(), offsets[j].get<std::int64_t>(),
                          value.is_null() ? "" : fmt::format("{:.9g}", value.get<double>()));
    }
  }
  return text;
}

}  // namespace

Json run_lora_rope(const HeadsSource& source, const HeadsOptions& options) {
  create_folder(options.out);
  Json json = start_file("subspace-lora-rope", source, options);
  json["offsets"] = options.curve;
  Json heads = Json::array(), frequencies = Json::object();
  MetricOptions metrics = metric_options(options);
  metrics.spectra = metrics.eigenvalues = false;
  metrics.frequencies = true;
  for_each_layer(source, options, [&](const Loaded& loaded) {
    const AttentionLayer layer = moved(loaded.layer, options.device);
    const LayerChange change = moved(loaded.change, options.device);
    const at::Tensor weight = weight_of(layer, options);
    if (weight.defined()) metrics.weight = weight.to(options.device);
    LayerResult result;
    result.layer = layer.index;
    result.approx = approximations(layer, change, options);
    for (const Circuit& circuit : circuits(layer, change, {.fold_norm = options.fold_norm})) {
      if (circuit.rotary.layout == Rotary::Layout::none) continue;
      const CircuitMetrics m = circuit_metrics(circuit, metrics);
      frequencies[std::to_string(layer.index)] = circuit.rotary.frequencies;
      for (std::int64_t head = 0; head < circuit.heads; ++head) {
        heads.push_back(rope_entry(m, result, head));
      }
    }
  });
  if (heads.empty()) {
    fail(ErrorCode::InvalidValue,
         "no layer has a rotary position embedding, so nothing depends on an offset; lora heads "
         "has all there is");
  }
  json["frequencies"] = std::move(frequencies);
  json["heads"] = std::move(heads);
  write_file_atomically(options.out / "rope.csv", rope_csv(json));
  write_file_atomically(options.out / "rope.json", json.dump() + "\n");
  return json;
}

}  // namespace subspace
