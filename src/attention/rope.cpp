#include "attention/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "base/error.h"

namespace subspace {
namespace {

double mscale(double factor, double scale) {
  return factor <= 1 ? 1 : 0.1 * scale * std::log(factor) + 1;
}

void scale_llama3(std::vector<double>& frequencies, const Fields& scaling) {
  const double factor = scaling.number("factor");
  const double low = scaling.number("low_freq_factor");
  const double high = scaling.number("high_freq_factor");
  const double length = scaling.number("original_max_position_embeddings");
  for (double& frequency : frequencies) {
    const double wavelength = 2 * std::numbers::pi / frequency;
    if (wavelength < length / high) continue;
    if (wavelength > length / low) {
      frequency /= factor;
    } else {
      const double smooth = (length / wavelength - low) / (high - low);
      frequency = (1 - smooth) * frequency / factor + smooth * frequency;
    }
  }
}

void scale_yarn(Rotary& rotary, const Fields& config, const Fields& scaling, double theta) {
  const double length = scaling.number("original_max_position_embeddings");
  const double factor = scaling.has("factor") ? scaling.number("factor")
                                              : config.number("max_position_embeddings") / length;
  const double all_dims = scaling.number_or("mscale_all_dim", 0);
  const double one = scaling.number_or("mscale", 0);
  if (scaling.has("attention_factor")) {
    rotary.scale = scaling.number("attention_factor");
  } else if (one != 0 && all_dims != 0) {
    rotary.scale = mscale(factor, one) / mscale(factor, all_dims);
  } else {
    rotary.scale = mscale(factor, 1);
  }
  auto nonzero = [&](const char* name, double value) {
    const double given = scaling.number_or(name, value);
    return given == 0 ? value : given;
  };
  const auto dims = static_cast<double>(rotary.dims);
  auto dimension_of = [&](double rotations) {
    return dims * std::log(length / (rotations * 2 * std::numbers::pi)) / (2 * std::log(theta));
  };
  double low = dimension_of(nonzero("beta_fast", 32));
  double high = dimension_of(nonzero("beta_slow", 1));
  if (scaling.boolean_or("truncate", true)) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, dims - 1);
  if (low == high) high += 0.001;
  for (std::size_t f = 0; f < rotary.frequencies.size(); ++f) {
    const double ramp = std::clamp((static_cast<double>(f) - low) / (high - low), 0.0, 1.0);
    rotary.frequencies[f] *= ramp / factor + (1 - ramp);
  }
}

void scale_longrope(Rotary& rotary, const Fields& config, const Fields& scaling) {
  const std::string name = "short_factor";
  const Json& factors = scaling.has(name) ? scaling.json().at(name) : Json::array();
  if (!factors.is_array() || factors.size() != rotary.frequencies.size() ||
      !std::ranges::all_of(factors, [](const Json& f) { return f.is_number() && f > 0; })) {
    fail(ErrorCode::InvalidValue, "{}: {} is {}; expected {} positive numbers, one a frequency",
         scaling.where(), name, factors.dump().substr(0, 80), rotary.frequencies.size());
  }
  for (std::size_t f = 0; f < rotary.frequencies.size(); ++f) {
    rotary.frequencies[f] /= factors[f].get<double>();
  }
  const double trained = config.number("max_position_embeddings");
  const double length = config.has("original_max_position_embeddings")
                            ? config.number("original_max_position_embeddings")
                            : scaling.number_or("original_max_position_embeddings", trained);
  const double factor = scaling.number_or("factor", trained / length);
  const double usual = factor <= 1 ? 1 : std::sqrt(1 + std::log(factor) / std::log(length));
  rotary.scale = scaling.number_or("attention_factor", usual);
}

}  // namespace

RopeConfig read_rope(const Fields& config, double default_theta, const std::string& layer_type) {
  RopeConfig rope;
  rope.theta = config.number_or("rope_theta", default_theta);
  rope.partial_rotary_factor = config.number_or("partial_rotary_factor", 1);
  auto parameters = config.object_if("rope_parameters");
  if (parameters && !layer_type.empty()) {
    if (const auto own = parameters->object_if(layer_type)) parameters = own;
  }
  if (!parameters) parameters = config.object_if("rope_scaling");
  if (!parameters) return rope;
  rope.theta = parameters->number_or("rope_theta", rope.theta);
  rope.partial_rotary_factor =
      parameters->number_or("partial_rotary_factor", rope.partial_rotary_factor);
  rope.type = parameters->string_or("rope_type", parameters->string_or("type", "default"));
  rope.scaling = parameters->json();
  return rope;
}

Rotary make_rotary(const Fields& config, const RopeConfig& rope, std::int64_t dims,
                   Rotary::Layout layout) {
  if (dims < 2 || dims % 2 != 0) {
    fail(ErrorCode::InvalidValue, "{}: {} rotary dimensions; expected an even number from 2",
         config.where(), dims);
  }
  Rotary rotary;
  rotary.layout = layout;
  rotary.dims = dims;
  for (std::int64_t f = 0; f < dims / 2; ++f) {
    rotary.frequencies.push_back(
        std::pow(rope.theta, -2 * static_cast<double>(f) / static_cast<double>(dims)));
  }
  if (rope.type == "default" || rope.type == "dynamic") return rotary;
  const Fields scaling(*rope.scaling, config.where() + ": rope parameters");
  if (rope.type == "linear") {
    for (double& frequency : rotary.frequencies) frequency /= scaling.number("factor");
  } else if (rope.type == "llama3") {
    scale_llama3(rotary.frequencies, scaling);
  } else if (rope.type == "yarn") {
    scale_yarn(rotary, config, scaling, rope.theta);
  } else if (rope.type == "longrope") {
    scale_longrope(rotary, config, scaling);
  } else {
    fail(ErrorCode::Unsupported,
         "{}: rope type '{}'; known are default, dynamic, linear, llama3, longrope and yarn",
         config.where(), rope.type);
  }
  return rotary;
}

double yarn_softmax_factor(const RopeConfig& rope) {
  if (rope.type == "default" || !rope.scaling) return 1;
  const Fields scaling(*rope.scaling, "rope parameters");
  const double all_dims = scaling.number_or("mscale_all_dim", 0);
  if (all_dims == 0) return 1;
  const double m = mscale(scaling.number("factor"), all_dims);
  return m * m;
}

}  // namespace subspace
