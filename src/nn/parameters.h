#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "checkpoint/dtype.h"
#include "nn/adapter.h"

namespace subspace::nn {

/// First values of a tensor: zero, one, normal with the model's initializer_range, or uniform in
/// +-1/sqrt(columns).
enum class Init { zeros, ones, normal, fan_in };

/// One trained tensor (or buffer), and the tensors of a checkpoint that it holds: matrices that
/// read the same vector lie in one, on top of one another, so that one product serves them all.
struct Parameter {
  /// A tensor of the checkpoint: `rows` of the parameter from `begin` on, in its own shape.
  struct Part {
    std::string name;
    std::vector<std::int64_t> shape;
    std::int64_t begin = 0, rows = 0;
  };
  at::Tensor value;
  std::vector<Part> parts;
  bool decays = true;    ///< weight decay applies: all but norms and biases
  bool trained = true;   ///< false: a buffer, or frozen: saved but without a gradient
  bool adapter = false;  ///< part of an adapter, which its base's checkpoint does not have

  const std::string& name() const { return parts.front().name; }
};

/// The tensors of a model, in the order in which it was built.
///
/// A value depends on the seed, the name of the checkpoint's tensor and the place in it alone, so
/// joining tensors, or moving one, changes no number.
class Parameters {
 public:
  struct Options {
    at::TensorOptions tensor;  ///< dtype and device
    double range = 0.02;       ///< standard deviation of Init::normal
    std::uint64_t seed = 0;
    bool fill = true;  ///< false: left zero, for a model that is loaded next
    std::optional<AdapterConfig> adapter = {};  ///< all but its own tensors are frozen
  };
  explicit Parameters(const Options& options) : options_(options) {}

  using Shape = std::vector<std::int64_t>;
  struct Named {
    std::string name;
    Shape shape;
  };

  /// A weight matrix (or a convolution's tensor), with a standard deviation of its own if one is
  /// given.
  at::Tensor weight(const std::string& name, const Shape& shape,
                    std::optional<double> deviation = {});
  /// Matrices of one width on top of one another.
  at::Tensor weights(const std::vector<Named>& parts);
  /// A matrix with zero rows added until their number is a multiple of `multiple`; the checkpoint
  /// has none of them.
  at::Tensor padded_weight(const std::string& name, const Shape& shape, std::int64_t multiple);
  /// A vector without weight decay; biases begin as zero, weights of norms as one.
  at::Tensor bias(const std::vector<Named>& parts);
  at::Tensor norm(const std::string& name, const Shape& shape);
  /// A tensor that is part of the model's state and not trained; float32 at least.
  at::Tensor buffer(const std::string& name, const Shape& shape, Init init = Init::zeros);

  /// A and B of a LoRA adapter on the matrix `name` (without ".weight") of that shape, under PEFT's
  /// names: A [r, in] begins uniform in +-1/sqrt(in), B [out, r] zero. Undefined if there is no
  /// adapter or it is not on this matrix.
  LowRankRows adapter(const std::string& name, std::int64_t out, std::int64_t in);

  const std::vector<Parameter>& all() const { return all_; }
  /// Trained numbers of the checkpoint's tensors: padding is not counted.
  std::int64_t count() const;

  /// Fills every tensor from a checkpoint, exactly where its dtype can hold the value; an
  /// adapter's, and those that it `may_lack`, only if the checkpoint has them. Returns the
  /// checkpoint's tensors that the model has no use for. Throws NotFound, InvalidShape (tensor,
  /// found, expected), NotFinite.
  std::vector<std::string> load(const Checkpoint& checkpoint, int threads,
                                const std::set<std::string>& may_lack = {});
  /// model.safetensors in `folder`, whole or not at all. Throws Io.
  void save(const std::filesystem::path& file) const;

 private:
  at::Tensor add(const std::vector<Named>& parts, std::int64_t rows, Init init, bool decays,
                 bool trained, std::optional<double> deviation = {});

  Options options_;
  std::vector<Parameter> all_;
};

/// The element type of safetensors for a tensor's. Throws Unsupported.
DType dtype_of(const at::Tensor& tensor);

/// Tensors under their names, as one safetensors file; they may lie on any device.
void write_tensors(const std::filesystem::path& file,
                   const std::vector<std::pair<std::string, at::Tensor>>& tensors);
/// A tensor of a safetensors file, in its own element type, on the CPU. Throws as
/// SafetensorsFile, Unsupported for types that ATen lacks.
at::Tensor read_tensor(const SafetensorsFile& file, const std::string& name);

}  // namespace subspace::nn
