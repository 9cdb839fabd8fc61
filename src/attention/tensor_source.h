#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "attention/family.h"
#include "checkpoint/checkpoint.h"

namespace subspace {

/// Where a family's recipe takes its tensors from. One recipe serves two purposes: with a
/// LoadingSource it builds a layer, with a ListingSource it lists what building would need, with
/// shapes, and reads nothing.
class TensorSource {
 public:
  virtual ~TensorSource() = default;
  /// The tensor of that name, float64, of exactly that shape.
  virtual at::Tensor get(const std::string& name, const std::vector<std::int64_t>& shape) = 0;
  /// Whether the checkpoint has such a tensor (optional biases).
  virtual bool has(const std::string& name) const = 0;

  /// get(), or an undefined tensor if the checkpoint has none.
  at::Tensor get_if(const std::string& name, const std::vector<std::int64_t>& shape) {
    return has(name) ? get(name, shape) : at::Tensor();
  }
};

/// Decodes from a checkpoint, onto a device: a GPU gets the bytes as stored and converts them
/// itself. Throws NotFound, InvalidShape (tensor, file, found, expected), NotFinite unless allowed.
class LoadingSource : public TensorSource {
 public:
  LoadingSource(const Checkpoint& checkpoint, int threads, bool allow_nonfinite,
                const at::Device& device = at::kCPU)
      : checkpoint_(checkpoint),
        threads_(threads),
        allow_nonfinite_(allow_nonfinite),
        device_(device) {}
  at::Tensor get(const std::string& name, const std::vector<std::int64_t>& shape) override;
  bool has(const std::string& name) const override { return checkpoint_.has(name); }

 private:
  const Checkpoint& checkpoint_;
  int threads_;
  bool allow_nonfinite_;
  at::Device device_;
};

/// Hands out tensors without storage (the meta device) and remembers what was asked for.
class ListingSource : public TensorSource {
 public:
  explicit ListingSource(const Checkpoint& checkpoint) : checkpoint_(checkpoint) {}
  at::Tensor get(const std::string& name, const std::vector<std::int64_t>& shape) override;
  bool has(const std::string& name) const override { return checkpoint_.has(name); }
  const std::vector<Family::Needed>& needed() const { return needed_; }

 private:
  const Checkpoint& checkpoint_;
  std::vector<Family::Needed> needed_;
};

// Storage to row vectors, as views. nn.Linear stores W^T, [out, in].

/// [heads * width, in] -> [heads, in, width]: projections into heads (Q, K, V).
at::Tensor into_heads(const at::Tensor& weight, std::int64_t heads);
/// [out, heads * width] -> [heads, width, out]: projections out of heads (O).
at::Tensor out_of_heads(const at::Tensor& weight, std::int64_t heads);
/// [heads * width] -> [heads, width]; undefined stays undefined.
at::Tensor bias_of_heads(const at::Tensor& bias, std::int64_t heads);

}  // namespace subspace
