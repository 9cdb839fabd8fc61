// The property of what reads adapters: P22.

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <filesystem>
#include <map>
#include <regex>

#include "base/atomic_file.h"
#include "base/json.h"
#include "checkpoint/safetensors.h"
#include "lora/adapted_model.h"
#include "lora/selftest_cases.h"

namespace subspace::selftest {
namespace {

namespace fs = std::filesystem;

/// A folder of its own, removed with all that is in it.
class Folder {
 public:
  Folder() {
    static std::atomic<int> next{0};
    path_ = fs::temp_directory_path() / fmt::format("subspace-selftest-{}-{}", ::getpid(), next++);
    create_folder(path_);
  }
  ~Folder() {
    try {
      remove_tree(path_);
    } catch (const std::exception&) {  // a folder left behind is no error of the algebra
    }
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

using Tensors = std::map<std::string, at::Tensor>;

void write_tensors(const fs::path& file, const Tensors& tensors) {
  std::vector<SafetensorsWriter::Entry> entries;
  for (const auto& [name, x] : tensors) entries.push_back({name, DType::F64, x.sizes().vec()});
  SafetensorsWriter writer(file, entries);
  for (const auto& [name, x] : tensors) {
    const at::Tensor bytes = x.contiguous();
    writer.append(name, bytes.data_ptr<double>(), bytes.nbytes());
  }
  writer.finish();
}

/// One matrix of GPT-2, stored [in, out] (Conv1D), and its adapter, as the rules of PEFT have them.
struct Conv1D {
  at::Tensor weight, a, b, magnitude;
  double scale = 0;

  /// Row vectors: W' = (W + s (B A)^T) diag(m / |column|), or without DoRA W + s (B A)^T.
  at::Tensor merged() const {
    const at::Tensor sum = weight + scale * at::matmul(b, a).t();
    return magnitude.defined() ? sum * (magnitude / sum.norm(2, 0)) : sum;
  }
};

/// What PEFT does: re.match(r"(.*\.)?(KEY)$", path) over the keys in their order.
std::int64_t looked_up(const Json& patterns, const std::string& path, std::int64_t otherwise) {
  for (const auto& [key, value] : patterns.items()) {
    if (std::regex_match(path, std::regex("(.*\\.)?(" + key + ")"))) {
      return value.get<std::int64_t>();
    }
  }
  return otherwise;
}

/// Some of the keys that could match, in any order, each with a number: often several match.
Json random_patterns(Draw& draw) {
  std::vector<std::string> keys = {"c_attn", "attn\\.c_proj",     "h\\.1\\.attn\\..*",
                                   "c_.*",   "0\\.attn\\.c_attn", "ttn\\.c_attn",
                                   "mlp"};
  Json out = Json::object();
  for (std::int64_t left = draw.whole(0, 4); left > 0; --left) {
    const auto place = keys.begin() + draw.whole(0, static_cast<std::int64_t>(keys.size()) - 1);
    out[*place] = draw.whole(1, 5);
    keys.erase(place);
  }
  return out;
}

/// A GPT-2 of two layers with an adapter on c_attn (q, k and v fused) and c_proj, read back from
/// its files, cut into heads and merged, against the stored matrices merged and then cut.
double loaded_adapters(std::uint64_t seed) {
  Draw draw(seed);
  const std::int64_t heads = draw.whole(1, 3), width = draw.whole(2, 4), d = heads * width;
  const bool rslora = draw.whole(0, 1) == 1, dora = draw.whole(0, 1) == 1;
  const Json ranks = random_patterns(draw), alphas = random_patterns(draw);
  Tensors base, adapter;
  std::map<std::string, Conv1D> matrices;
  for (const char* layer : {"h.0.", "h.1."}) {
    for (const char* norm : {"ln_1.weight", "ln_1.bias"}) {
      base[layer + std::string(norm)] = draw.normal({d});
    }
    for (const auto& [name, out] : {std::pair{"attn.c_attn", 3 * d}, {"attn.c_proj", d}}) {
      const std::string path = layer + std::string(name);
      Conv1D& matrix = matrices[path];
      const std::int64_t rank = looked_up(ranks, "transformer." + path, 2);
      const auto alpha = static_cast<double>(looked_up(alphas, "transformer." + path, 3));
      matrix.scale = alpha / (rslora ? std::sqrt(static_cast<double>(rank)) : double(rank));
      matrix.weight = base[path + ".weight"] = draw.normal({d, out});
      base[path + ".bias"] = draw.normal({out});
      const std::string key = "base_model.model.transformer." + path;
      matrix.a = adapter[key + ".lora_A.weight"] = draw.normal({rank, d});
      matrix.b = adapter[key + ".lora_B.weight"] = draw.normal({out, rank});
      if (dora) {
        matrix.magnitude = adapter[key + ".lora_magnitude_vector"] = draw.normal({out}).abs() + 0.5;
      }
    }
  }
  const Folder model, changed;
  const Json config = {{"model_type", "gpt2"}, {"n_embd", d}, {"n_layer", 2}, {"n_head", heads}};
  const Json lora = {{"peft_type", "LORA"},   {"r", 2},
                     {"lora_alpha", 3},       {"fan_in_fan_out", true},
                     {"bias", "none"},        {"target_modules", {"c_attn", "attn.c_proj"}},
                     {"use_rslora", rslora},  {"use_dora", dora},
                     {"rank_pattern", ranks}, {"alpha_pattern", alphas}};
  write_file_atomically(model.path() / "config.json", config.dump());
  write_tensors(model.path() / "model.safetensors", base);
  write_file_atomically(changed.path() / "adapter_config.json", lora.dump());
  write_tensors(changed.path() / "adapter_model.safetensors", adapter);

  const AdaptedModel read(model.path(), Adapter(changed.path()));
  double worst = 0;
  for (std::int64_t layer = 0; layer < 2; ++layer) {
    const AttentionLayer found = subspace::merged(read.load(layer, 1), read.change(layer, 1));
    const std::string block = fmt::format("h.{}.attn.", layer);
    const at::Tensor fused = matrices.at(block + "c_attn").merged();
    const auto cut = [&](std::int64_t part) {
      return fused.narrow(1, part * d, d).view({d, heads, width}).transpose(0, 1);
    };
    const at::Tensor output = matrices.at(block + "c_proj").merged().view({heads, width, d});
    worst = std::max({worst, error_of(found.q, cut(0)), error_of(found.k, cut(1)),
                      error_of(found.v, cut(2)), error_of(found.o, output)});
  }
  return worst;
}

}  // namespace

std::vector<Property> loader_properties() {
  return {{"P22", "files: rsLoRA, patterns of rank and alpha, Conv1D, DoRA's magnitudes", 1e-13,
           loaded_adapters}};
}

}  // namespace subspace::selftest
