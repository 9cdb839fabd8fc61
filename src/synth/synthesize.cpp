#include "synth/synthesize.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>
#include <set>

#include "attention/family.h"
#include "base/atomic_file.h"
#include "base/error.h"
#include "base/interrupt.h"
#include "base/progress.h"
#include "base/version.h"
#include "kernels/over_batch.h"
#include "synth/encode.h"
#include "synth/matrix.h"
#include "synth/model_config.h"

namespace subspace {
namespace {

namespace fs = std::filesystem;

/// Files and folders to remove again unless everything went well.
class Scaffold {
 public:
  Scaffold() = default;
  Scaffold(const Scaffold&) = delete;
  Scaffold& operator=(const Scaffold&) = delete;
  ~Scaffold() {
    for (const fs::path& path : paths_) {
      try {
        remove_tree(path);
      } catch (const Error&) {
        // What went wrong before matters more.
      }
    }
  }
  void add(const fs::path& path) { paths_.push_back(path); }
  void keep() { paths_.clear(); }

 private:
  std::vector<fs::path> paths_;
};

/// One tensor of the checkpoint to be.
struct Planned {
  std::string name;
  std::vector<std::int64_t> shape;
  std::int64_t layer = 0;
  DType dtype = DType::F32;

  bool is_matrix() const { return shape.size() == 2; }
  bool scaled() const { return dtype == DType::F8_E4M3; }
  std::int64_t rows() const { return is_matrix() ? shape[0] : 1; }
  std::int64_t cols() const { return shape.back(); }
  std::int64_t scale_cols() const { return (cols() + kBlock - 1) / kBlock; }
  std::int64_t scale_rows() const { return (rows() + kBlock - 1) / kBlock; }
};

struct Plan {
  std::vector<Planned> tensors;
  ModelShape model;
};

/// What the family will ask for. It answers for a checkpoint, so it is shown one with the
/// configuration and, without any data, the names that make it ask for biases and the like.
Plan plan(const SynthOptions& options) {
  const fs::path probe = options.out / ".plan";
  Scaffold scaffold;
  scaffold.add(probe);
  create_folder(probe);
  write_file_atomically(probe / "config.json", options.config.dump(2));
  std::vector<SafetensorsWriter::Entry> entries;
  for (const std::string& name : implied_names(options.config)) {
    entries.push_back({name, DType::F32, {0}});
  }
  SafetensorsWriter(probe / "model.safetensors", entries).finish();
  const Checkpoint checkpoint(probe);
  const auto family = open_family(checkpoint);
  Plan plan{{}, family->shape()};
  std::set<std::string> seen;
  for (std::int64_t layer = 0; layer < plan.model.layers; ++layer) {
    for (const Family::Needed& needed : family->needed(layer)) {
      if (!seen.insert(needed.name).second) continue;
      const bool narrow = options.dtype == DType::F8_E4M3 && needed.shape.size() != 2;
      plan.tensors.push_back(
          {needed.name, needed.shape, layer, narrow ? DType::BF16 : options.dtype});
    }
  }
  return plan;
}

/// plan(), with messages that name the user's file and not ours.
Plan plan_naming_config(const SynthOptions& options) {
  try {
    return plan(options);
  } catch (const Error& error) {
    std::string text = error.what();
    for (const std::string& ours :
         {(options.out / ".plan" / "config.json").string(), std::string("the configuration"),
          (options.out / ".plan").string()}) {
      if (text.starts_with(ours)) text = options.config_name + text.substr(ours.size());
    }
    throw Error(error.code(), text);
  }
}

/// The map of `subspace spectra` whose stack is this very matrix, or nothing.
std::string stack_name(const Planned& tensor, const ModelShape& model) {
  static const std::vector<std::pair<const char*, const char*>> usual = {
      {".q_proj.weight", "Q"},     {".k_proj.weight", "K"},
      {".v_proj.weight", "V"},     {".o_proj.weight", "O"},
      {".query.weight", "Q"},      {".key.weight", "K"},
      {".value.weight", "V"},      {".attention.output.dense.weight", "O"},
      {".q_lin.weight", "Q"},      {".k_lin.weight", "K"},
      {".v_lin.weight", "V"},      {".out_lin.weight", "O"},
      {".attn.c_proj.weight", "O"}};
  static const std::vector<std::pair<const char*, const char*>> latent = {
      {".q_a_proj.weight", "QA"}, {".o_proj.weight", "O"}};
  static const std::vector<std::pair<const char*, const char*>> output_latent = {
      {".q_a_proj.weight", "QA"}, {".kv_proj.weight", "K"}, {".o_b_proj.weight", "OB"}};
  const auto& names = model.attention == "MLA"                     ? latent
                      : model.attention == "grouped output latent" ? output_latent
                                                                   : usual;
  for (const auto& [suffix, map] : names) {
    if (tensor.name.ends_with(suffix)) return fmt::format("layers.{}.{}.stack", tensor.layer, map);
  }
  return {};
}

bool is_norm(const std::string& name) {
  return name.ends_with(".weight") &&
         (name.find("norm") != std::string::npos || name.find("Norm") != std::string::npos ||
          name.find("ln_") != std::string::npos);
}

class Maker {
 public:
  Maker(const SynthOptions& options, const ModelShape& model)
      : options_(options),
        model_(model),
        std_(Fields(options.config, options.config_name).number_or("initializer_range", 0.02)) {
    if (!(std_ > 0 && std_ < 1e3)) {
      fail(ErrorCode::InvalidValue, "{}: initializer_range is {}; expected a positive number",
           options.config_name, std_);
    }
  }

  /// Appends the tensor, and its scales if it has any; returns its entry for expected.json.
  Json write(const Planned& tensor, SafetensorsWriter& writer) {
    const std::uint64_t key = tensor_key(options_.seed, tensor.name);
    if (!tensor.is_matrix()) {
      std::vector<double> row(static_cast<std::size_t>(tensor.cols()));
      const bool norm = is_norm(tensor.name);
      gaussian_row(key, 0, norm ? 0.1 : std_, tensor.cols(), row.data());
      // Gemma stores what it adds to one.
      const double centre = norm && !model_.model_type.starts_with("gemma") ? 1 : 0;
      for (double& value : row) value += centre;
      append(tensor, writer, [&](std::int64_t, double* out) { std::ranges::copy(row, out); });
      return {};
    }
    Json entry = {{"shape", tensor.shape}};
    if (const std::string stack = stack_name(tensor, model_); !stack.empty()) {
      entry["is"] = stack;
    }
    const auto s = options_.spectrum.values(tensor.name, tensor.rows(), tensor.cols(), std_);
    double squares;
    if (s) {
      const at::Tensor w =
          matrix_with_spectrum(key, tensor.rows(), tensor.cols(), *s, options_.threads);
      const double* values = w.data_ptr<double>();
      squares = append(tensor, writer, [&](std::int64_t row, double* out) {
        std::copy_n(values + row * tensor.cols(), tensor.cols(), out);
      });
      entry["rank"] = s->size();
      entry["singular_values"] = *s;
    } else {
      squares = append(tensor, writer, [&](std::int64_t row, double* out) {
        gaussian_row(key, row, std_, tensor.cols(), out);
      });
      entry["gaussian_std"] = std_;
    }
    entry["rounding_error"] = std::sqrt(squares);
    return entry;
  }

 private:
  /// Makes, rounds and writes the rows, some bands of 128 at a time; returns the sum of squared
  /// rounding errors, added up in the order of bands whoever made them.
  template <typename Row>
  double append(const Planned& tensor, SafetensorsWriter& writer, const Row& make_row) const {
    const std::int64_t rows = tensor.rows();
    const auto cols = static_cast<std::size_t>(tensor.cols());
    const std::size_t row_bytes = cols * static_cast<std::size_t>(dtype_size(tensor.dtype));
    const std::int64_t bands = tensor.scale_rows();
    const std::int64_t together = 2 * options_.threads;
    std::vector<float> scales(static_cast<std::size_t>(bands * tensor.scale_cols()));
    std::vector<double> squares(static_cast<std::size_t>(bands));
    const auto held = static_cast<std::size_t>(std::min(together * kBlock, rows));
    std::vector<double> values(held * cols);
    std::vector<std::byte> bytes(held * row_bytes);
    for (std::int64_t first = 0; first < bands; first += together) {
      check_interrupted("nothing was kept");
      const std::int64_t count = std::min(together, bands - first);
      kernels::over_batch(count, options_.threads, [&](std::int64_t b) {
        const std::int64_t begin = (first + b) * kBlock;
        const std::int64_t height = std::min(kBlock, rows - begin);
        double* const band = values.data() + static_cast<std::size_t>(b * kBlock) * cols;
        for (std::int64_t i = 0; i < height; ++i) {
          make_row(begin + i, band + static_cast<std::size_t>(i) * cols);
        }
        squares[static_cast<std::size_t>(first + b)] =
            encode_rows(band, height, tensor.cols(), tensor.dtype,
                        bytes.data() + static_cast<std::size_t>(b * kBlock) * row_bytes,
                        scales.data() + (first + b) * tensor.scale_cols());
      });
      const std::int64_t done = std::min(count * kBlock, rows - first * kBlock);
      writer.append(tensor.name, bytes.data(), static_cast<std::size_t>(done) * row_bytes);
    }
    if (tensor.scaled()) {
      writer.append(tensor.name + "_scale_inv", scales.data(), scales.size() * sizeof(float));
    }
    return std::accumulate(squares.begin(), squares.end(), 0.0);
  }

  const SynthOptions& options_;
  const ModelShape& model_;
  double std_;
};

std::vector<SafetensorsWriter::Entry> entries_of(std::span<const Planned> tensors) {
  std::vector<SafetensorsWriter::Entry> entries;
  for (const Planned& tensor : tensors) {
    entries.push_back({tensor.name, tensor.dtype, tensor.shape});
    if (tensor.scaled()) {
      entries.push_back(
          {tensor.name + "_scale_inv", DType::F32, {tensor.scale_rows(), tensor.scale_cols()}});
    }
  }
  return entries;
}

void refuse_existing_model(const fs::path& out) {
  for (const auto& entry : fs::directory_iterator(out)) {
    const fs::path name = entry.path().filename();
    if (name == "config.json" || name.extension() == ".safetensors") {
      fail(ErrorCode::InvalidValue,
           "{}: already holds {}, part of a model; name another folder or remove that one",
           out.string(), name.string());
    }
  }
}

std::uint64_t bytes_of(const SafetensorsWriter::Entry& entry) {
  std::int64_t bytes = dtype_size(entry.dtype);
  for (const std::int64_t extent : entry.shape) bytes *= extent;
  return static_cast<std::uint64_t>(bytes);
}

}  // namespace

Json synthesize(const SynthOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  create_folder(options.out);
  const FolderLock lock(options.out);
  refuse_existing_model(options.out);
  const Plan plan = plan_naming_config(options);
  std::vector<std::string> matrices;
  std::int64_t values = 0;
  for (const Planned& tensor : plan.tensors) {
    if (tensor.is_matrix()) matrices.push_back(tensor.name);
    values += tensor.rows() * tensor.cols();
  }
  options.spectrum.check_all_used(matrices);

  Scaffold scaffold;
  Maker maker(options, plan.model);
  Progress progress("layer", plan.model.layers);
  const std::span<const Planned> all(plan.tensors);
  Json expected = Json::object();
  Json weight_map = Json::object();
  std::uint64_t bytes = 0;
  std::size_t count = 0, at = 0;
  for (std::int64_t layer = 0; layer < plan.model.layers; ++layer) {
    const std::size_t begin = at;
    while (at < all.size() && all[at].layer == layer) ++at;
    const auto tensors = all.subspan(begin, at - begin);
    const std::string file =
        plan.model.layers == 1
            ? "model.safetensors"
            : fmt::format("model-{:05}-of-{:05}.safetensors", layer + 1, plan.model.layers);
    const auto entries = entries_of(tensors);
    for (const auto& entry : entries) {
      weight_map.get_ref<Json::object_t&>().emplace_back(entry.name, file);
      bytes += bytes_of(entry);
    }
    count += entries.size();
    scaffold.add(options.out / file);
    SafetensorsWriter writer(options.out / file, entries, {{"format", "pt"}});
    for (const Planned& tensor : tensors) {
      Json entry = maker.write(tensor, writer);
      if (!entry.is_null()) {
        expected.get_ref<Json::object_t&>().emplace_back(tensor.name, std::move(entry));
      }
    }
    writer.finish();
    progress.step(file);
  }

  auto write_json = [&](const char* name, const Json& json) {
    scaffold.add(options.out / name);
    write_file_atomically(options.out / name, json.dump(1) + "\n");
  };
  write_json("expected.json",
             {{"format", "subspace-expected"},
              {"version", 1},
              {"seed", options.seed},
              {"spectrum", options.spectrum.text()},
              {"dtype", dtype_name(options.dtype)},
              {"note",
               "singular_values are those before elements were rounded to dtype; rounding_error is "
               "the Frobenius norm of what rounding changed, and no singular value of the stored "
               "matrix differs from the listed one by more. Values not listed are zero. 'is' names "
               "the entry of spectra.safetensors that is this matrix."},
              {"tensors", std::move(expected)}});
  if (plan.model.layers > 1) {
    write_json("model.safetensors.index.json",
               {{"metadata", {{"total_size", bytes}}}, {"weight_map", std::move(weight_map)}});
  }
  // Last, because a folder is a model from then on.
  Json config = options.config;
  config["synthetic"] = {{"program", fmt::format("subspace {}", version())},
                         {"seed", options.seed},
                         {"spectrum", options.spectrum.text()},
                         {"note", "random weights, and only those that attention reads"}};
  write_json("config.json", config);
  scaffold.keep();
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  return {{"out", options.out.string()},
          {"model_type", plan.model.model_type},
          {"layers", plan.model.layers},
          {"tensors", count},
          {"values", values},
          {"bytes", bytes},
          {"seconds", took.count()}};
}

}  // namespace subspace
