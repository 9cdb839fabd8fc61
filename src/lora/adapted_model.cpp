#include "lora/adapted_model.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <set>

#include "attention/tensor_source.h"
#include "base/error.h"
#include "lora/layer_origin.h"

namespace subspace {
namespace fs = std::filesystem;
namespace {

constexpr std::string_view kWeight = ".weight";
constexpr std::string_view kBias = ".bias";

/// "a.b.weight" -> canonical path of a.b, for the given ending; empty otherwise.
std::string stem(const std::string& name, std::string_view ending) {
  if (!name.ends_with(ending)) return "";
  return canonical_path(std::string_view(name).substr(0, name.size() - ending.size()));
}

/// Names that let every family begin, where the checkpoint is a configuration alone.
std::vector<std::string> names_of_no_weights() {
  return {"encoder.layer.0.attention.self.query.weight",
          "encoder.layer.0.attention.attention.query.weight", "h.0.attn.c_attn.weight",
          "transformer.layer.0.attention.q_lin.weight"};
}

std::unique_ptr<Checkpoint> open_base(const fs::path& folder) {
  std::error_code status;
  bool weights = false;
  for (const auto& entry : fs::directory_iterator(folder, status)) {
    const std::string name = entry.path().filename().string();
    weights = weights || name.ends_with(".safetensors") || name.ends_with(".bin") ||
              name == "model.safetensors.index.json";
  }
  if (weights || !fs::exists(folder / "config.json", status)) {
    return std::make_unique<Checkpoint>(folder);
  }
  return std::make_unique<Checkpoint>(folder, names_of_no_weights());
}

bool is_attention(const std::string& canonical) {
  for (const char* word : {"self_attn.", "attention.", "attn."}) {
    if (canonical.find(word) != std::string::npos) return true;
  }
  return false;
}

/// Optional tensors: those of the base, and those that the adapter brings.
bool is_there(const AdaptedModel& model, const std::string& name) {
  const Adapter& adapter = model.adapter();
  if (model.checkpoint().has(name) || adapter.whole().contains(canonical_path(name))) return true;
  const auto module = adapter.modules().find(stem(name, kBias));
  return module != adapter.modules().end() && !module->second.b_bias.empty();
}

}  // namespace

AdaptedModel::AdaptedModel(const fs::path& base, Adapter adapter)
    : adapter_(std::move(adapter)),
      checkpoint_(open_base(base)),
      family_(open_family(*checkpoint_)) {
  refuse_quantised();
  find_touched();
}

void AdaptedModel::refuse_quantised() const {
  if (!has_weights()) return;
  const std::string where = (checkpoint_->folder() / "config.json").string();
  const Fields config(checkpoint_->config(), where);
  auto quantisation = config.object_if("quantization_config");
  if (!quantisation && config.has("text_config")) {
    quantisation = config.object("text_config").object_if("quantization_config");
  }
  if (!quantisation) return;
  const std::string method = quantisation->string_or("quant_method", "?");
  if (method == "fp8" || method == "compressed-tensors") return;
  fail(ErrorCode::Unsupported,
       "{}: the base's weights are quantised ({}); terms with the base need the weights that the "
       "adapter was trained beside, dequantised: load it in transformers, model.dequantize(), "
       "model.save_pretrained(FOLDER), and give that FOLDER",
       where, method.substr(0, 80));
}

bool AdaptedModel::is_transposed(std::int64_t layer, const std::string& stored) const {
  const LayerOrigin origin = this->origin(layer);
  for (const auto field : {&AttentionLayer::q, &AttentionLayer::v, &AttentionLayer::o}) {
    const MatrixOrigin from = origin.matrix(field);
    if (origin.stored[static_cast<std::size_t>(from.stored)].name == stored) return from.transposed;
  }
  return false;
}

void AdaptedModel::check_shape(std::int64_t layer, const Family::Needed& stored,
                               const AdapterModule& module) const {
  // Either way round here; which it is the cutting knows.
  const auto fits = [&](std::size_t out, std::size_t in) {
    return stored.shape.size() == 2 && stored.shape[out] == module.out &&
           stored.shape[in] == module.in;
  };
  if (fits(0, 1) || fits(1, 0)) return;
  const bool transposed = is_transposed(layer, stored.name);
  const std::int64_t out = stored.shape.at(transposed ? 1 : 0);
  const std::int64_t in = transposed ? stored.shape.at(0) : stored.shape.back();
  const std::string& named = adapter_.config().base_model;
  fail(
      ErrorCode::InvalidShape,
      "layer {}: the adapter's '{}' is for a matrix of {} inputs and {} outputs (lora_A {}, lora_B "
      "{}); the base's '{}' has {} and {}. The adapter is for another model{}",
      layer, module.path, module.in, module.out, shape_text(adapter_.info(module.a).shape),
      shape_text(adapter_.info(module.b).shape), stored.name, in, out,
      named.empty() ? "" : " (base_model_name_or_path: " + named.substr(0, 200) + ")");
}

void AdaptedModel::find_touched() {
  const ModelShape& shape = family_->shape();
  std::set<std::string> seen;
  for (std::int64_t layer = 0; layer < shape.layers + shape.extra_layers; ++layer) {
    Touched touched;
    touched.layer = layer;
    MadeSource source(
        [&](const std::string& name, const std::vector<std::int64_t>& size) {
          const std::string module = stem(name, kWeight);
          if (const auto found = adapter_.modules().find(module);
              !module.empty() && found != adapter_.modules().end()) {
            check_shape(layer, {name, size}, found->second);
            touched.modules.push_back(module);
          }
          if (const std::string all = canonical_path(name); adapter_.whole().contains(all)) {
            touched.whole.push_back(all);
          }
          return at::empty(size, at::TensorOptions().dtype(at::kDouble).device(at::kMeta));
        },
        [this](const std::string& name) { return is_there(*this, name); });
    family_->assemble(layer, source);
    seen.insert(touched.modules.begin(), touched.modules.end());
    if (!touched.modules.empty() || !touched.whole.empty()) touched_.push_back(std::move(touched));
  }
  std::set<std::string> in_base;
  for (const std::string& name : checkpoint_->names()) in_base.insert(stem(name, kWeight));
  for (const auto& [path, module] : adapter_.modules()) {
    if (seen.contains(path)) continue;
    const std::int64_t layer = layer_in_path(path);
    const bool beyond = layer >= shape.layers + shape.extra_layers;
    if (is_attention(path) && (beyond || (has_weights() && !in_base.contains(path)))) {
      fail(
          ErrorCode::NotFound,
          "{}: the adapter changes '{}', which the base ({}, {} layers) does not have; the adapter "
          "is for another model{}",
          checkpoint_->folder().string(), module.path, shape.model_type, shape.layers,
          adapter_.config().base_model.empty()
              ? ""
              : " (base_model_name_or_path: " + adapter_.config().base_model.substr(0, 200) + ")");
    }
    outside_.push_back(module.path);
  }
  if (!outside_.empty()) {
    notes_.push_back(fmt::format(
        "{} adapted module(s) outside attention are left out ({}{}): what they write changes what "
        "later heads read",
        outside_.size(), outside_.front(), outside_.size() > 1 ? ", ..." : ""));
  }
  if (touched_.empty()) notes_.push_back("no attention layer of the base is changed");
}

std::vector<std::string> AdaptedModel::notes() const {
  std::vector<std::string> all = adapter_.notes();
  all.insert(all.end(), notes_.begin(), notes_.end());
  for (const std::string& note : family_->shape().notes) all.push_back("base: " + note);
  if (!has_weights()) {
    all.push_back(
        "the base's weights are not at hand: terms with them, tensors saved whole and the "
        "base's biases and norms are left out");
  }
  return all;
}

AttentionLayer AdaptedModel::load(std::int64_t layer, int threads, const at::Device& device) const {
  return family_->load(layer, threads, /*allow_nonfinite=*/false, device);
}

namespace {

/// Builds one LayerChange: every stored tensor of the adapter is read once and cut as the layer's
/// origin says.
class Cutting {
 public:
  Cutting(const AdaptedModel& model, std::int64_t layer, int threads)
      : model_(model),
        adapter_(model.adapter()),
        layer_(layer),
        threads_(threads),
        origin_(model.origin(layer)) {}

  LayerChange run() {
    LayerChange out;
    out.index = layer_;
    low_rank(&AttentionLayer::q, out.q);
    low_rank(&AttentionLayer::q_rope, out.q_rope);
    low_rank(&AttentionLayer::k, out.k);
    low_rank(&AttentionLayer::v, out.v);
    low_rank(&AttentionLayer::o, out.o);
    low_rank(&AttentionLayer::qa, out.qa);
    low_rank(&AttentionLayer::kva, out.kva);
    low_rank(&AttentionLayer::kpe, out.kpe);
    low_rank(&AttentionLayer::ob, out.ob);
    differences(out);
    norms(out);
    return out;
  }

 private:
  /// What is needed of one adapted tensor, once a layer.
  struct Read {
    const AdapterModule* module = nullptr;
    at::Tensor a, b;                                       ///< [r, in], s B [out, r]
    at::Tensor gain;                                       ///< [out] or undefined
    std::vector<std::pair<at::Tensor, at::Tensor>> cut_a;  ///< indices -> the tensor cut by them
  };

  void low_rank(at::Tensor AttentionLayer::*field, MatrixChange& change) {
    if (!(origin_.rows.*field).defined()) return;
    const MatrixOrigin from = origin_.matrix(field);
    const Family::Needed& stored = origin_.stored[static_cast<std::size_t>(from.stored)];
    const auto module = adapter_.modules().find(stem(stored.name, kWeight));
    if (module == adapter_.modules().end()) return;
    Read& read = read_once(stored, module->second, from.transposed);
    change.a = cut_a(read, from.in);
    change.b = read.b.index_select(0, from.out.flatten())
                   .view({from.out.size(0), from.out.size(1), -1})
                   .transpose(1, 2)
                   .contiguous();
    if (read.gain.defined()) {
      change.gain = read.gain.index_select(0, from.out.flatten()).view_as(from.out);
    }
  }

  Read& read_once(const Family::Needed& stored, const AdapterModule& module, bool transposed) {
    Read& read = read_[stored.name];
    if (read.module) return read;
    check_shape(stored, module, transposed);
    read.module = &module;
    read.a = adapter_.a(module).flatten(1);
    read.b = adapter_.b(module).flatten(1);
    if (!module.magnitude.empty()) read.gain = gain(stored, read, transposed);
    return read;
  }

  void check_shape(const Family::Needed& stored, const AdapterModule& module,
                   bool transposed) const {
    const std::int64_t out = stored.shape.at(transposed ? 1 : 0);
    const std::int64_t in = stored.shape.at(transposed ? 0 : 1);
    if (module.in == in && module.out == out) return;
    fail(
        ErrorCode::InvalidShape,
        "layer {}: the adapter's '{}' is for a matrix of {} inputs and {} outputs; the base's '{}' "
        "has {} and {}. The adapter is for another model",
        layer_, module.path, module.in, module.out, stored.name, in, out);
  }

  static at::Tensor cut_a(Read& read, const at::Tensor& in) {
    for (const auto& [indices, cut] : read.cut_a) {
      if (at::equal(indices, in)) return cut;
    }
    // [r, h n] -> [h, n, r]
    const at::Tensor cut = read.a.index_select(1, in.flatten())
                               .view({-1, in.size(0), in.size(1)})
                               .permute({1, 2, 0})
                               .contiguous();
    read.cut_a.emplace_back(in, cut);
    return cut;
  }

  /// DoRA: m_j over the norm of column j of W + A B, in row vectors.
  at::Tensor gain(const Family::Needed& stored, const Read& read, bool transposed) const {
    if (!model_.has_weights()) {
      fail(ErrorCode::NotFound,
           "layer {}: '{}' is DoRA, whose gains are relative to the base's weights, which are not "
           "at hand; give the base (--base)",
           layer_, read.module->path);
    }
    at::Tensor weight = base_tensor(stored);
    if (transposed) weight = weight.t();
    const at::Tensor norm = at::addmm(weight, read.b, read.a).norm(2, 1);
    const at::Tensor magnitude = adapter_.tensor(read.module->magnitude).flatten();
    at::Tensor gain = magnitude / norm;
    if (!gain.isfinite().all().item<bool>()) {
      fail(ErrorCode::NotFinite,
           "layer {}: '{}': a column of the base and B A together is zero, which DoRA cannot scale",
           layer_, read.module->path);
    }
    return gain;
  }

  at::Tensor base_tensor(const Family::Needed& stored) const {
    return LoadingSource(model_.checkpoint(), threads_, false).get(stored.name, stored.shape);
  }

  /// A tensor saved whole, of the shape that the base's has; undefined if there is none.
  at::Tensor saved(const std::string& name, const std::vector<std::int64_t>& shape) const {
    const auto found = adapter_.whole().find(canonical_path(name));
    if (found == adapter_.whole().end() || !model_.has_weights()) return {};
    if (adapter_.info(found->second).shape != shape) {
      fail(ErrorCode::InvalidShape,
           "layer {}: the adapter saved '{}' as {}; the base's '{}' is {}. The adapter is for "
           "another model",
           layer_, found->second, shape_text(adapter_.info(found->second).shape), name,
           shape_text(shape));
    }
    return adapter_.tensor(found->second);
  }

  /// How a stored tensor differs from the base's, but for B A; undefined if it does not.
  at::Tensor difference(const std::string& name, const std::vector<std::int64_t>& shape) const {
    at::Tensor out = saved(name, shape);
    if (out.defined() && model_.checkpoint().has(name)) out = out - base_tensor({name, shape});
    const auto module = adapter_.modules().find(stem(name, kBias));
    if (module != adapter_.modules().end() && !module->second.b_bias.empty()) {
      const at::Tensor added =
          adapter_.tensor(module->second.b_bias).view(shape) * module->second.scale;
      out = out.defined() ? out + added : added;
    }
    return out;
  }

  /// Matrices saved whole and changed biases: the recipe, run on differences.
  void differences(LayerChange& out) {
    std::set<std::string> changed;
    MadeSource source(
        [&](const std::string& name, const std::vector<std::int64_t>& shape) {
          const at::Tensor difference = this->difference(name, shape);
          if (!difference.defined()) return at::zeros({}, at::kDouble).expand(shape);
          changed.insert(name);
          return difference;
        },
        [this](const std::string& name) { return is_there(model_, name); });
    const AttentionLayer differing = model_.family().assemble(layer_, source);
    auto take = [&](at::Tensor AttentionLayer::*field, at::Tensor& to) {
      const at::Tensor& from = origin_.rows.*field;
      if (!from.defined()) return;
      const auto stored = static_cast<std::size_t>(origin_.stored_of(from));
      if (changed.contains(origin_.stored[stored].name)) to = (differing.*field).contiguous();
    };
    take(&AttentionLayer::q, out.q.full);
    take(&AttentionLayer::q_rope, out.q_rope.full);
    take(&AttentionLayer::k, out.k.full);
    take(&AttentionLayer::v, out.v.full);
    take(&AttentionLayer::o, out.o.full);
    take(&AttentionLayer::qa, out.qa.full);
    take(&AttentionLayer::kva, out.kva.full);
    take(&AttentionLayer::kpe, out.kpe.full);
    take(&AttentionLayer::ob, out.ob.full);
    take(&AttentionLayer::q_bias, out.q_bias);
    take(&AttentionLayer::k_bias, out.k_bias);
    take(&AttentionLayer::v_bias, out.v_bias);
    take(&AttentionLayer::o_bias, out.o_bias);
    take(&AttentionLayer::qa_bias, out.qa_bias);
    take(&AttentionLayer::kva_bias, out.kva_bias);
    take(&AttentionLayer::kpe_bias, out.kpe_bias);
  }

  /// Norms of which weight or bias was saved: the recipe, run on what the adapted model has.
  void norms(LayerChange& out) {
    if (adapter_.whole().empty() || !model_.has_weights()) return;
    MadeSource source(
        [&](const std::string& name, const std::vector<std::int64_t>& shape) {
          at::Tensor tensor = saved(name, shape);
          if (tensor.defined()) return tensor;
          const bool small = shape.size() == 1 && model_.checkpoint().has(name);
          return small ? base_tensor({name, shape}) : at::zeros({}, at::kDouble).expand(shape);
        },
        [this](const std::string& name) { return is_there(model_, name); });
    const AttentionLayer adapted = model_.family().assemble(layer_, source);
    auto is_saved = [&](const at::Tensor& from) {
      if (!from.defined()) return false;
      const auto stored = static_cast<std::size_t>(origin_.stored_of(from));
      return adapter_.whole().contains(canonical_path(origin_.stored[stored].name));
    };
    auto take = [&](Norm AttentionLayer::*field, std::optional<Norm>& to) {
      const Norm& from = origin_.rows.*field;
      if (is_saved(from.weight) || is_saved(from.bias)) to = adapted.*field;
    };
    take(&AttentionLayer::input, out.input);
    take(&AttentionLayer::output, out.output);
    take(&AttentionLayer::q_latent, out.q_latent);
    take(&AttentionLayer::kv_latent, out.kv_latent);
    take(&AttentionLayer::q_head, out.q_head);
    take(&AttentionLayer::k_head, out.k_head);
  }

  const AdaptedModel& model_;
  const Adapter& adapter_;
  std::int64_t layer_;
  int threads_;
  LayerOrigin origin_;
  std::map<std::string, Read> read_;
};

}  // namespace

LayerOrigin AdaptedModel::origin(std::int64_t layer) const {
  return trace_layer(*family_, layer,
                     [this](const std::string& name) { return is_there(*this, name); });
}

std::vector<std::pair<std::string, std::string>> AdaptedModel::cut_from(std::int64_t layer) const {
  const LayerOrigin origin = this->origin(layer);
  std::vector<std::pair<std::string, std::string>> from;
  auto add = [&](const char* name, const at::Tensor& field) {
    if (!field.defined()) return;
    const auto stored = static_cast<std::size_t>(origin.stored_of(field));
    from.emplace_back(name, stem(origin.stored[stored].name, kWeight));
  };
  add("q", origin.rows.q);
  add("q_rope", origin.rows.q_rope);
  add("k", origin.rows.k);
  add("v", origin.rows.v);
  add("o", origin.rows.o);
  add("qa", origin.rows.qa);
  add("kva", origin.rows.kva);
  add("kpe", origin.rows.kpe);
  add("ob", origin.rows.ob);
  return from;
}

LayerChange AdaptedModel::change(std::int64_t layer, int threads) const {
  const bool any = std::any_of(touched_.begin(), touched_.end(),
                               [&](const Touched& one) { return one.layer == layer; });
  if (!any) {
    LayerChange none;
    none.index = layer;
    return none;
  }
  return Cutting(*this, layer, threads).run();
}

std::optional<fs::path> find_base(const Adapter& adapter, const std::string& given,
                                  std::string& why) {
  if (!given.empty()) return resolve_model(given);
  const AdapterConfig& config = adapter.config();
  if (config.base_model.empty()) {
    why = "adapter_config.json names no base; give one by --base";
    return std::nullopt;
  }
  try {
    std::error_code status;
    const bool folder = fs::is_directory(config.base_model, status);
    return resolve_model(config.base_model +
                         (folder || config.revision.empty() ? "" : "@" + config.revision));
  } catch (const Error& error) {
    why = fmt::format(
        "the base '{}' is neither a folder nor in the Hugging Face cache; give it by "
        "--base (a folder with its config.json alone is enough for some)",
        config.base_model.substr(0, 200));
    return std::nullopt;
  }
}

AttentionLayer merged(const AttentionLayer& base, const LayerChange& change) {
  AttentionLayer out = base;
  auto matrix = [](at::Tensor& weight, const MatrixChange& by) {
    if (!by.defined() || !weight.defined()) return;
    at::Tensor sum = weight;
    if (by.a.defined()) {
      const at::Tensor product = at::matmul(by.a, by.b);
      sum = sum + (weight.dim() == 2 ? product.squeeze(0) : product);
    }
    if (by.gain.defined()) {
      sum = sum * (weight.dim() == 2 ? by.gain : by.gain.unsqueeze(1));
    }
    if (by.full.defined()) sum = sum + by.full;
    weight = sum;
  };
  matrix(out.q, change.q);
  matrix(out.q_rope, change.q_rope);
  matrix(out.k, change.k);
  matrix(out.v, change.v);
  matrix(out.o, change.o);
  matrix(out.qa, change.qa);
  matrix(out.kva, change.kva);
  matrix(out.kpe, change.kpe);
  matrix(out.ob, change.ob);
  auto bias = [](at::Tensor& to, const at::Tensor& by) {
    if (by.defined()) to = to.defined() ? to + by : by;
  };
  bias(out.q_bias, change.q_bias);
  bias(out.k_bias, change.k_bias);
  bias(out.v_bias, change.v_bias);
  bias(out.o_bias, change.o_bias);
  bias(out.qa_bias, change.qa_bias);
  bias(out.kva_bias, change.kva_bias);
  bias(out.kpe_bias, change.kpe_bias);
  auto norm = [](Norm& to, const std::optional<Norm>& by) {
    if (by) to = *by;
  };
  norm(out.input, change.input);
  norm(out.output, change.output);
  norm(out.q_latent, change.q_latent);
  norm(out.kv_latent, change.kv_latent);
  norm(out.q_head, change.q_head);
  norm(out.k_head, change.k_head);
  return out;
}

}  // namespace subspace
