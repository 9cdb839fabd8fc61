#include "lora/adapted_modules.h"

#include <ATen/ATen.h>

#include <utility>

#include "attention/tensor_source.h"
#include "base/error.h"
#include "lora/layer_origin.h"

namespace subspace {
namespace {

constexpr std::pair<const char*, at::Tensor AttentionLayer::*> kMatrices[] = {
    {"q", &AttentionLayer::q},     {"q_rope", &AttentionLayer::q_rope},
    {"k", &AttentionLayer::k},     {"v", &AttentionLayer::v},
    {"o", &AttentionLayer::o},     {"qa", &AttentionLayer::qa},
    {"kva", &AttentionLayer::kva}, {"kpe", &AttentionLayer::kpe},
    {"ob", &AttentionLayer::ob}};

/// "a.b.weight" -> canonical path of a.b.
std::string module_path(const std::string& tensor) {
  static constexpr std::string_view kEnding = ".weight";
  if (!tensor.ends_with(kEnding)) return "";
  return canonical_path(std::string_view(tensor).substr(0, tensor.size() - kEnding.size()));
}

/// What the adapter does to the module; false if nothing.
bool describe(const Adapter& adapter, AdaptedModule& module) {
  const auto found = adapter.modules().find(module.path);
  if (found != adapter.modules().end()) {
    module.kind = found->second.magnitude.empty() ? "lora" : "dora";
    module.rank = found->second.rank;
    module.alpha = found->second.alpha;
    module.scale = found->second.scale;
    return true;
  }
  module.kind = "whole";
  return adapter.whole().contains(canonical_path(module.stored.name));
}

void check_size(const AdaptedModule& module, std::int64_t out, std::int64_t in) {
  if (module.out == out && module.in == in) return;
  fail(ErrorCode::InvalidShape,
       "layer {}: the adapter's '{}' is for a matrix of {} inputs and {} outputs; the base's '{}' "
       "has {} and {}. The adapter is for another model",
       module.layer, module.path, in, out, module.stored.name, module.in, module.out);
}

at::Tensor upright(const at::Tensor& stored, const AdaptedModule& module) {
  return module.transposed ? stored.t().contiguous() : stored;
}

/// DoRA: rows of the sum, brought to the lengths m.
at::Tensor rescaled(const at::Tensor& sum, const at::Tensor& magnitude,
                    const AdaptedModule& module) {
  const at::Tensor gain = magnitude.flatten() / sum.norm(2, 1);
  if (!gain.isfinite().all().item<bool>()) {
    fail(ErrorCode::NotFinite,
         "layer {}: '{}': a row of the base and B A together is zero, which DoRA cannot scale",
         module.layer, module.path);
  }
  return sum * gain.unsqueeze(1);
}

}  // namespace

std::vector<AdaptedModule> adapted_modules(const AdaptedModel& model, std::int64_t layer) {
  const LayerOrigin origin = model.origin(layer);
  std::vector<AdaptedModule> all(origin.stored.size());
  for (const auto& [name, field] : kMatrices) {
    if (!(origin.rows.*field).defined()) continue;
    const MatrixOrigin from = origin.matrix(field);
    AdaptedModule& module = all[static_cast<std::size_t>(from.stored)];
    module.stored = origin.stored[static_cast<std::size_t>(from.stored)];
    module.transposed = from.transposed;
    module.matrices.emplace_back(name);
  }
  std::vector<AdaptedModule> adapted;
  for (AdaptedModule& module : all) {
    if (module.matrices.empty() || module.stored.shape.size() != 2) continue;
    module.layer = layer;
    module.path = module_path(module.stored.name);
    module.out = module.stored.shape[module.transposed ? 1 : 0];
    module.in = module.stored.shape[module.transposed ? 0 : 1];
    if (describe(model.adapter(), module)) adapted.push_back(std::move(module));
  }
  return adapted;
}

ModuleWeights module_weights(const AdaptedModel& model, const AdaptedModule& module, int threads) {
  if (!model.has_weights()) {
    fail(ErrorCode::NotFound, "'{}': the base's weights are not at hand; give the base (--base)",
         module.path);
  }
  const Adapter& adapter = model.adapter();
  ModuleWeights weights;
  weights.base = upright(LoadingSource(model.checkpoint(), threads, false)
                             .get(module.stored.name, module.stored.shape),
                         module);
  if (module.kind == "whole") {
    const std::string& key = adapter.whole().at(canonical_path(module.stored.name));
    weights.adapted = upright(adapter.tensor(key), module);
    check_size(module, weights.adapted.size(0), weights.adapted.size(1));
    return weights;
  }
  const AdapterModule& found = adapter.modules().at(module.path);
  check_size(module, found.out, found.in);
  const at::Tensor b = adapter.b(found).flatten(1), a = adapter.a(found).flatten(1);
  if (module.kind == "lora") {
    weights.change = {b, a.t()};
  } else {
    weights.adapted =
        rescaled(at::addmm(weights.base, b, a), adapter.tensor(found.magnitude), module);
  }
  return weights;
}

}  // namespace subspace
