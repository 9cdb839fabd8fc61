#include "experts/vectors.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <algorithm>

#include "base/error.h"
#include "data/permutation.h"
#include "spectrum/eigenvalues.h"
#include "spectrum/gram.h"

namespace subspace::experts {
namespace {

/// Rows of a table that are made at a time: 64 MB of 512 float64 values.
constexpr std::int64_t kPiece = 1 << 14;

/// A checkpoint's tensor of the model, or undefined.
at::Tensor find(const nn::Model& model, const std::string& name) {
  for (const nn::Parameter& parameter : model.parameters().all()) {
    for (const auto& part : parameter.parts) {
      if (part.name != name) continue;
      return parameter.value.detach().narrow(0, part.begin, part.rows).to(at::kDouble);
    }
  }
  return {};
}

}  // namespace

at::Tensor ExpertTensors::read(const at::Tensor& latents) const {
  return w1.defined() ? at::gelu(at::matmul(latents, w1)) : latents;
}

ExpertTensors expert_tensors(const nn::Model& model, std::int64_t layer) {
  const nn::NeuronExperts* experts =
      model.blocks().at(static_cast<std::size_t>(layer)).neuron_experts();
  if (experts == nullptr) {
    fail(ErrorCode::Unsupported, "layer {} has no single-neuron experts", layer);
  }
  const std::string base = nn::layer_name(model.config(), layer) + "mlp.";
  auto matrix = [&](const char* name, bool transposed = false) {
    const at::Tensor found = find(model, base + name + ".weight");
    return found.defined() && transposed ? found.t() : found;
  };
  ExpertTensors out;
  out.config = experts->config();
  out.z = matrix("expert_latents");
  out.w1 = matrix("w1", true);
  out.down = matrix("expert_down");
  out.up = matrix("expert_up");
  out.w_u = matrix("w_u", true);
  out.w_v = matrix("w_v", true);
  out.keys[0] = matrix("keys.0");
  out.keys[1] = matrix("keys.1");
  return out;
}

void by_pieces(const at::Tensor& table,
               const std::function<void(std::int64_t, const at::Tensor&)>& work) {
  for (std::int64_t begin = 0; begin < table.size(0); begin += kPiece) {
    work(begin, table.narrow(0, begin, std::min(kPiece, table.size(0) - begin)));
  }
}

Gaussian::Gaussian(const at::Tensor& rows) : mean(rows.mean(0, /*keepdim=*/true)) {
  const at::Tensor away = rows - mean;
  factor = psd_factor(gram_of_columns(away) / static_cast<double>(rows.size(0)));
}

at::Tensor Gaussian::draw(std::int64_t rows, std::uint64_t seed) const {
  const at::Tensor normal =
      at::randn({rows, factor.size(0)}, at::detail::createCPUGenerator(seed), at::kFloat);
  return at::addmm(mean, normal.to(factor.options()), factor.t());
}

at::Tensor shuffled(std::int64_t n, std::int64_t count, std::uint64_t seed) {
  const Permutation permutation(static_cast<std::uint64_t>(n), seed, /*epoch=*/0);
  at::Tensor out = at::empty({count}, at::kLong);
  auto* place = out.data_ptr<std::int64_t>();
  for (std::int64_t i = 0; i < count; ++i) {
    place[i] = static_cast<std::int64_t>(permutation(static_cast<std::uint64_t>(i)));
  }
  return out;
}

std::vector<double> doubles_of(const at::Tensor& values) {
  const at::Tensor whole = values.to(at::kCPU, at::kDouble).contiguous();
  const auto* begin = whole.const_data_ptr<double>();
  return {begin, begin + whole.numel()};
}

std::vector<std::int64_t> integers_of(const at::Tensor& values) {
  const at::Tensor whole = values.to(at::kCPU, at::kLong).contiguous();
  const auto* begin = whole.const_data_ptr<std::int64_t>();
  return {begin, begin + whole.numel()};
}

at::Tensor sampled(std::int64_t experts, std::int64_t most, const at::Tensor& like) {
  if (experts <= most) return at::arange(experts, like.options().dtype(at::kLong));
  return std::get<0>(shuffled(experts, most, /*seed=*/2).sort()).to(like.device());
}

}  // namespace subspace::experts
