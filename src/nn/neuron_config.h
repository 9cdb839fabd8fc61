#pragma once

#include <cstdint>
#include <string>

#include "nn/config_fields.h"

namespace subspace::nn {

/// Feed-forward layers that choose single-neuron experts by product keys (nn/neuron_experts.h):
/// generated from a latent (ethos), stored (peer), or stored in a latent space that all share
/// (molae).
struct NeuronExpertsConfig {
  enum class Kind { ethos, peer, molae };
  Kind kind = Kind::ethos;
  std::int64_t experts = 0;  ///< N, a square
  std::int64_t heads = 0;    ///< H, each of which chooses
  std::int64_t per_head = 0;
  std::int64_t query = 0;        ///< width of a head's query: two halves, one for each side of keys
  bool query_norm = true;        ///< batch norm over the tokens of a pass
  std::int64_t latent = 0;       ///< ethos: of an expert's latent; molae: of the space they share
  std::int64_t hidden = 0;       ///< ethos: of a generated vector
  double latent_range = 1;       ///< ethos: deviation of the latents' first values
  std::int64_t first_layer = 0;  ///< layers before it have the plain feed-forward

  std::int64_t side() const;  ///< n, n^2 = N
  std::int64_t selections() const { return heads * per_head; }
};

/// "ethos", "peer", "molae".
const char* kind_name(NeuronExpertsConfig::Kind kind);

/// The fields of such layers in a model of `width` with `layers` layers; `kind` is one of the names
/// above. Throws InvalidValue naming the field for a number of experts that is no square, more
/// choices than a side has keys, a width that the kernels do not take, a field that this kind does
/// not have; NotFound for one that is missing.
NeuronExpertsConfig read_neuron_experts(ConfigFields& in, const std::string& kind,
                                        std::int64_t width, std::int64_t layers);

}  // namespace subspace::nn
