#pragma once

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include "experts/vectors.h"

namespace subspace::experts::testing {

inline at::Tensor normal(at::IntArrayRef shape, std::uint64_t seed) {
  return at::randn(shape, at::detail::createCPUGenerator(seed), at::kDouble);
}

/// Generated experts of width 32 behind a stream of width 10.
inline ExpertTensors generated(std::int64_t experts, std::int64_t latent, std::uint64_t seed) {
  ExpertTensors out;
  out.config.kind = nn::NeuronExpertsConfig::Kind::ethos;
  out.config.experts = experts;
  out.z = normal({experts, latent}, seed);
  out.w1 = normal({latent, 32}, seed + 1) / std::sqrt(static_cast<double>(latent));
  out.w_u = normal({10, 32}, seed + 2);
  out.w_v = normal({32, 10}, seed + 3);
  out.keys[0] = normal({out.config.side(), 6}, seed + 4);
  out.keys[1] = normal({out.config.side(), 6}, seed + 5);
  return out;
}

inline ExpertTensors stored(const at::Tensor& down) {
  ExpertTensors out;
  out.config.kind = nn::NeuronExpertsConfig::Kind::peer;
  out.config.experts = down.size(0);
  out.down = down;
  out.up = normal(down.sizes(), 77);
  return out;
}

}  // namespace subspace::experts::testing
