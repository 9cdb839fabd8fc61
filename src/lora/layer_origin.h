#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "attention/family.h"
#include "attention/tensor_source.h"

namespace subspace {

/// Where a matrix of an AttentionLayer, [h, in, out], comes from: rows and columns of one stored
/// tensor. Indices that are the same for all heads stand once.
struct MatrixOrigin {
  std::int64_t stored = -1;  ///< index into LayerOrigin::stored
  bool transposed = false;   ///< stored as [in, out] (Conv1D), not [out, in] as nn.Linear has it
  at::Tensor in;             ///< [1 or h, in] int64, along the stored input axis
  at::Tensor out;            ///< [1 or h, out] int64, along the stored output axis
};

/// A layer's recipe, read backwards.
struct LayerOrigin {
  std::vector<Family::Needed> stored;  ///< the tensors of the layer, by name
  AttentionLayer rows, columns;        ///< every number is its row (column) in its stored tensor

  /// The stored tensor that a field's numbers come from. `field` is one of `rows`, defined.
  std::int64_t stored_of(const at::Tensor& field) const;
  /// A matrix of the layer, which `field` picks. Throws Internal for a recipe that mixes tensors,
  /// or rows and columns, in one matrix.
  MatrixOrigin matrix(at::Tensor AttentionLayer::*field) const;
};

/// Runs the family's recipe on tensors of row and of column numbers. `has` answers for optional
/// tensors. Takes memory for one number a row and column only, except where a recipe copies.
LayerOrigin trace_layer(const Family& family, std::int64_t layer,
                        const std::function<bool(const std::string&)>& has);

/// A source whose tensors a function makes.
class MadeSource : public TensorSource {
 public:
  using Make = std::function<at::Tensor(const std::string&, const std::vector<std::int64_t>&)>;
  MadeSource(Make make, std::function<bool(const std::string&)> has)
      : make_(std::move(make)), has_(std::move(has)) {}
  at::Tensor get(const std::string& name, const std::vector<std::int64_t>& shape) override {
    return make_(name, shape);
  }
  bool has(const std::string& name) const override { return has_(name); }

 private:
  Make make_;
  std::function<bool(const std::string&)> has_;
};

/// The layer with its norms and biases alone, all other numbers zero: reads vectors only.
AttentionLayer layer_norms(const Family& family, const Checkpoint& model, std::int64_t layer);

}  // namespace subspace
