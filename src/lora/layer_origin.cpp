#include "lora/layer_origin.h"

#include <ATen/ATen.h>

#include <cmath>

#include "base/error.h"

namespace subspace {
namespace {

// A row number carries the number of its tensor above it; both are exact in a double. Recipes that
// add one to a norm's weight (Gemma) do not reach the upper part.
constexpr double kTensorStep = 4294967296.0;  // 2^32

/// Whether the numbers change along an axis. A view that repeats one number says so by its stride.
bool varies(const at::Tensor& numbers, std::int64_t axis) {
  if (numbers.size(axis) < 2 || numbers.stride(axis) == 0) return false;
  return !at::equal(numbers.select(axis, 0), numbers.select(axis, numbers.size(axis) - 1)) ||
         !at::equal(numbers, numbers.select(axis, 0).unsqueeze(axis).expand_as(numbers));
}

/// [h, n] -> [1, n] if all heads have the same.
at::Tensor once(const at::Tensor& indices) {
  const bool same = indices.size(0) > 1 &&
                    at::equal(indices, indices.select(0, 0).unsqueeze(0).expand_as(indices));
  return (same ? indices.narrow(0, 0, 1) : indices).to(at::kLong).contiguous();
}

}  // namespace

std::int64_t LayerOrigin::stored_of(const at::Tensor& field) const {
  at::Tensor first = field;
  while (first.dim() > 0) first = first.select(0, 0);
  return static_cast<std::int64_t>(std::floor(first.item<double>() / kTensorStep));
}

MatrixOrigin LayerOrigin::matrix(at::Tensor AttentionLayer::*field) const {
  at::Tensor r = rows.*field, c = columns.*field;
  if (r.dim() == 2) {
    r = r.unsqueeze(0);
    c = c.unsqueeze(0);
  }
  MatrixOrigin origin;
  origin.stored = static_cast<std::int64_t>(std::floor(r[0][0][0].item<double>() / kTensorStep));
  const bool straight = varies(r, 2) || varies(c, 1);
  origin.transposed = varies(r, 1) || varies(c, 2);
  if (straight && origin.transposed) {
    fail(ErrorCode::Internal, "a recipe mixes rows and columns of '{}' in one matrix",
         stored.at(static_cast<std::size_t>(origin.stored)).name);
  }
  r = (origin.transposed ? r.select(2, 0) : r.select(1, 0)) -
      static_cast<double>(origin.stored) * kTensorStep;
  c = origin.transposed ? c.select(1, 0) : c.select(2, 0);
  if (r.min().item<double>() < 0 || r.max().item<double>() >= kTensorStep) {
    fail(ErrorCode::Internal, "a recipe mixes '{}' and another tensor in one matrix",
         stored.at(static_cast<std::size_t>(origin.stored)).name);
  }
  origin.in = once(origin.transposed ? r : c);
  origin.out = once(origin.transposed ? c : r);
  return origin;
}

LayerOrigin trace_layer(const Family& family, std::int64_t layer,
                        const std::function<bool(const std::string&)>& has) {
  LayerOrigin origin;
  auto numbers = [&](bool of_rows) {
    std::int64_t tensor = 0;
    MadeSource source(
        [&, of_rows](const std::string& name, const std::vector<std::int64_t>& shape) {
          if (of_rows) origin.stored.push_back({name, shape});
          const double begin = of_rows ? static_cast<double>(tensor++) * kTensorStep : 0;
          const std::size_t axis = of_rows || shape.size() < 2 ? 0 : 1;
          std::vector<std::int64_t> alone(shape.size(), 1);
          alone[axis] = shape[axis];
          return (at::arange(shape[axis], at::kDouble) + begin).view(alone).expand(shape);
        },
        has);
    return family.assemble(layer, source);
  };
  origin.rows = numbers(true);
  origin.columns = numbers(false);
  return origin;
}

AttentionLayer layer_norms(const Family& family, const Checkpoint& model, std::int64_t layer) {
  LoadingSource stored(model, /*threads=*/1, /*allow_nonfinite=*/false);
  MadeSource source(
      [&](const std::string& name, const std::vector<std::int64_t>& shape) {
        if (shape.size() > 1) return at::zeros({}, at::kDouble).expand(shape);
        return stored.get(name, shape);
      },
      [&](const std::string& name) { return model.has(name); });
  return family.assemble(layer, source);
}

}  // namespace subspace
