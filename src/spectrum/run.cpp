#include "spectrum/run.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/headeronly/version.h>

#include <chrono>
#include <future>
#include <map>

#include "attention/family.h"
#include "attention/fused.h"
#include "base/atomic_file.h"
#include "base/error.h"
#include "base/interrupt.h"
#include "base/progress.h"
#include "base/version.h"
#include "spectrum/device_stream.h"
#include "spectrum/memory.h"
#include "spectrum/metrics.h"
#include "spectrum/result.h"

namespace subspace {
namespace fs = std::filesystem;
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

const char* scaling_name(HeadScaling scaling) {
  switch (scaling) {
    case HeadScaling::none:
      return "none";
    case HeadScaling::spectral:
      return "spectral";
    case HeadScaling::frobenius:
      return "frobenius";
  }
  return "none";
}

Json conventions_json(const std::string& name, const SpectraOptions& options) {
  Json json = Json::object();
  json["name"] = name;
  json["normalize"] = scaling_name(options.normalize);
  json["fold_norms"] = options.fold_norms;
  json["space"] = options.space == Space::model ? "model" : "latent";
  json["offsets"] = options.offsets;
  json["exact"] = options.exact;
  json["accuracy_floor"] = options.exact ? 0.0 : kAccuracyFloor;
  return json;
}

const char* layout_name(Rotary::Layout layout) {
  switch (layout) {
    case Rotary::Layout::none:
      return "none";
    case Rotary::Layout::half:
      return "half";
    case Rotary::Layout::interleaved:
      return "interleaved";
  }
  return "none";
}

class Run {
 public:
  explicit Run(const RunOptions& options)
      : options_(options), checkpoint_(options.model), family_(open_family(checkpoint_)) {
    choose_layers();
    create_folder(options_.out);
    lock_.emplace(options_.out);
    prepare_folder();
  }

  Json go() {
    const auto start = Clock::now();
    std::vector<std::int64_t> left;
    for (const std::int64_t layer : layers_) {
      if (!done(layer)) left.push_back(layer);
    }
    const auto already = static_cast<std::int64_t>(layers_.size() - left.size());
    if (already > 0)
      message(fmt::format("{} of {} layers were done already", already, layers_.size()));
    {
      Progress progress("layer", static_cast<std::int64_t>(layers_.size()), already);
      std::future<Loaded> next;
      if (!left.empty()) next = start_loading(left[0]);
      for (std::size_t i = 0; i < left.size(); ++i) {
        check_interrupted("finished layers are kept; --resume goes on from there");
        const auto begun = Clock::now();
        Loaded loaded = next.get();
        if (i + 1 < left.size()) next = start_loading(left[i + 1]);
        compute(loaded, begun);
        progress.step(fmt::format("layer {}: {}", left[i], format_seconds(seconds_since(begun))));
      }
    }
    check_interrupted("finished layers are kept; --resume goes on from there");
    return finish(seconds_since(start));
  }

 private:
  void choose_layers() {
    const ModelShape& shape = family_->shape();
    layers_ = options_.layers;
    if (layers_.empty()) {
      for (std::int64_t layer = 0; layer < shape.layers; ++layer) layers_.push_back(layer);
    }
    // Everything that headers can tell is checked before the first layer is computed: a missing
    // tensor of the last layer should not show after an hour.
    for (const std::int64_t layer : layers_) {
      std::uint64_t bytes = 0;
      for (const auto& needed : family_->needed(layer)) {
        const TensorInfo& info = checkpoint_.info(needed.name);
        if (info.shape != needed.shape) {
          fail(ErrorCode::InvalidShape,
               "{}: tensor '{}' has shape {}; expected {} from config.json",
               checkpoint_.shard_of(needed.name), needed.name, shape_text(info.shape),
               shape_text(needed.shape));
        }
        ++dtypes_[dtype_name(info.dtype)];
        bytes += sizeof(double) * static_cast<std::uint64_t>(info.elements());
      }
      layer_bytes_ = std::max(layer_bytes_, bytes);
    }
  }

  fs::path part(std::int64_t layer, const char* extension) const {
    return options_.out / "layers" / fmt::format("{}.{}", layer, extension);
  }

  /// The JSON is written after the values, so it says that both were whole. The values are looked
  /// at all the same: a folder may have been copied, by something that stopped half way.
  bool done(std::int64_t layer) const {
    if (!fs::exists(part(layer, "json"))) return false;
    try {
      const SafetensorsFile values(part(layer, "safetensors"));
      return !values.header().tensors.empty();
    } catch (const Error& error) {
      message(fmt::format("layer {} is computed again: {}", layer, error.what()));
      return false;
    }
  }

  Json identity() const {
    Json shards = Json::object();
    for (const std::string& shard : checkpoint_.shards()) {
      std::error_code status;
      const auto size = fs::file_size(options_.model / shard, status);
      if (status) continue;  // a shard of other layers may be absent
      const auto changed = fs::last_write_time(options_.model / shard, status);
      shards[shard] = {{"bytes", std::uint64_t{size}},
                       {"changed", status ? 0 : changed.time_since_epoch().count()}};
    }
    Json json = Json::object();
    json["version"] = version();
    json["conventions"] = conventions_json(options_.conventions, options_.spectra);
    json["mark_nonfinite"] = options_.spectra.mark_nonfinite;
    json["device"] = options_.device.is_cpu() ? "cpu" : "cuda";
    json["config"] = checkpoint_.config();
    json["shards"] = std::move(shards);
    return json;
  }

  void prepare_folder() {
    const fs::path path = options_.out / "run.json";
    const bool exists = fs::exists(path) || fs::exists(options_.out / "summary.json");
    if (exists && options_.force) {
      for (const char* name : {"run.json", "summary.json", "spectra.safetensors", "ranks.csv"}) {
        fs::remove(options_.out / name);
      }
      remove_tree(options_.out / "layers");
    } else if (exists && !options_.resume) {
      fail(ErrorCode::InvalidValue,
           "{}: holds results already; --resume keeps what is done and goes on, --force starts "
           "again, or choose another --out",
           options_.out.string());
    } else if (exists) {
      const Json before = fs::exists(path) ? read_json_file(path) : Json::object();
      const Json now = identity();
      for (const auto& [key, value] : now.items()) {
        if (!before.contains(key) || before.at(key) != value) {
          fail(ErrorCode::InvalidValue,
               "{}: cannot be resumed: '{}' differs from the earlier run's; --force starts again",
               options_.out.string(), key);
        }
      }
    }
    create_folder(options_.out / "layers");
    remove_partial_files();
    if (!fs::exists(path)) write_file_atomically(path, identity().dump(1) + "\n");
  }

  /// What a killed run left half written. The lock says that nobody else is writing.
  void remove_partial_files() const {
    for (const fs::path& folder : {options_.out, options_.out / "layers"}) {
      std::vector<fs::path> partial;
      for (const auto& entry : fs::directory_iterator(folder)) {
        const std::string name = entry.path().filename().string();
        if (name.find(".partial.") != std::string::npos) partial.push_back(entry.path());
      }
      for (const fs::path& path : partial) fs::remove(path);
    }
  }

  struct Loaded {
    AttentionLayer layer;
    std::uint64_t bytes = 0;
  };

  std::future<Loaded> start_loading(std::int64_t layer) {
    return std::async(std::launch::async, [this, layer] {
      // One layer is loaded at a time, so the difference is this layer's.
      const std::uint64_t before = checkpoint_.bytes_read();
      Loaded loaded;
      const OwnStream stream(options_.device);
      loaded.layer =
          family_->load(layer, options_.threads, options_.spectra.mark_nonfinite, options_.device);
      stream.finish();
      loaded.bytes = checkpoint_.bytes_read() - before;
      return loaded;
    });
  }

  void compute(Loaded& loaded, Clock::time_point begun) {
    AttentionLayer& layer = loaded.layer;
    const std::int64_t index = layer.index;
    const LayerMaps result = layer_spectra(layer, options_.spectra);
    layer = AttentionLayer{};
    Json entry = layer_json(index, result.maps, random_);
    entry["notes"] = result.notes;
    write_layer_values(part(index, "safetensors"), index, result.maps);
    entry["seconds"] = seconds_since(begun);
    entry["bytes_read"] = loaded.bytes;
    write_file_atomically(part(index, "json"), entry.dump() + "\n");
    if (options_.on_layer) options_.on_layer(entry);
  }

  Json model_json() {
    const ModelShape& shape = family_->shape();
    const std::vector<std::int64_t> first = {layers_.empty() ? 0 : layers_.front()};
    Json model = Json::object();
    model["name"] = options_.model_name;
    model["family"] = shape.family;
    model["model_type"] = shape.model_type;
    model["attention"] = shape.attention;
    model["layers"] = shape.layers;
    model["hidden_size"] = shape.hidden_size;
    model["heads"] = shape.heads;
    model["kv_groups"] = shape.kv_groups;
    model["dims"] = shape.dims;
    model["dtypes"] = dtypes_;
    const Rotary rotary = family_->rotary(first[0]);
    model["rope"] = {{"layout", layout_name(rotary.layout)}, {"dims", rotary.dims}};
    return model;
  }

  Json finish(double seconds) {
    Json entries = Json::array(), layer_seconds = Json::array();
    std::uint64_t bytes_read = 0;
    std::vector<fs::path> parts;
    for (const std::int64_t layer : layers_) {
      Json entry = read_json_file(part(layer, "json"), {std::size_t{512} << 20, 64});
      layer_seconds.push_back(entry.at("seconds"));
      bytes_read += entry.at("bytes_read").get<std::uint64_t>();
      entry.erase("seconds");
      entry.erase("bytes_read");
      entries.push_back(std::move(entry));
      parts.push_back(part(layer, "safetensors"));
    }
    join_values(parts, options_.out / "spectra.safetensors");
    write_file_atomically(options_.out / "ranks.csv", ranks_csv(entries));

    Json summary = Json::object();
    summary["format"] = "subspace-spectra";
    summary["version"] = 1;
    summary["program"] = {{"version", version()},
                          {"commit", git_commit()},
                          {"compiler", compiler()},
                          {"torch", TORCH_VERSION},
                          {"instruction_sets", instruction_sets()}};
    summary["model"] = model_json();
    summary["conventions"] = conventions_json(options_.conventions, options_.spectra);
    summary["device"] = options_.device.is_cpu() ? fmt::format("cpu ({} threads)", options_.threads)
                                                 : options_.device.str();
    summary["times"] = {{"total_seconds", seconds}, {"layer_seconds", layer_seconds}};
    summary["bytes_read"] = bytes_read;
    summary["bytes_in_checkpoint"] = checkpoint_.total_bytes();
    const Json memory =
        memory_json(options_.device.is_cpu()
                        ? memory_bound(family_->shape(), options_.spectra, layer_bytes_, resident_)
                        : 0,
                    layer_bytes_);
    summary["peak_memory_bytes"] = memory.at("peak_bytes");
    summary["memory"] = memory;
    summary["taus"] = kTaus;
    summary["ranks_stated"] = stated_ranks(16385);
    summary["layers"] = std::move(entries);
    write_file_atomically(options_.out / "summary.json", summary.dump() + "\n");
    return summary;
  }

  const RunOptions& options_;
  Checkpoint checkpoint_;
  std::unique_ptr<Family> family_;
  std::vector<std::int64_t> layers_;
  std::map<std::string, std::int64_t> dtypes_;  // how many of the tensors that are read
  std::uint64_t layer_bytes_ = 0;               // of the largest layer, as float64
  const std::uint64_t resident_ = resident_memory();
  std::optional<FolderLock> lock_;
  RandomSpectra random_;
};

}  // namespace

Json run_spectra(const RunOptions& options) { return Run(options).go(); }

}  // namespace subspace
