#pragma once

#include <cstdint>
#include <optional>

#include "attention/layer.h"
#include "base/json.h"

namespace subspace {

/// The parameters of a rotary embedding, in either spelling: transformers 5's `rope_parameters`
/// (by layer type where the model has several: `layer_type`), or `rope_theta` + `rope_scaling`.
struct RopeConfig {
  double theta = 10000;
  std::string type = "default";
  double partial_rotary_factor = 1;
  std::optional<Json> scaling;  ///< the object that holds factor, mscale, ...
};
RopeConfig read_rope(const Fields& config, double default_theta = 10000,
                     const std::string& layer_type = "");

/// Frequencies of `dims` rotated coordinates:
///   default  theta^(-2f/dims);  linear  divided by factor;  llama3, yarn: as their authors blend
///   interpolated and plain frequencies (Dubey et al. 2024; Peng et al. 2023, eqs. 17-23);
///   longrope  divided by short_factor[f] (Ding et al. 2024).
/// YaRN's and LongRoPE's attention factor becomes Rotary::scale. Frequencies are those up to the
/// trained length ("dynamic": the plain ones, longrope: not long_factor). Throws Unsupported for
/// other types, NotFound for a missing parameter.
Rotary make_rotary(const Fields& config, const RopeConfig& rope, std::int64_t dims,
                   Rotary::Layout layout);

/// DeepSeek's factor on the softmax scale: (0.1 mscale_all_dim ln(factor) + 1)^2 if the rope is
/// scaled and mscale_all_dim is given, else 1.
double yarn_softmax_factor(const RopeConfig& rope);

}  // namespace subspace
