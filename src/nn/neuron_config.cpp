#include "nn/neuron_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace subspace::nn {
namespace {

using Kind = NeuronExpertsConfig::Kind;

// What the kernels take: kernels/product_key_topk.h, ethos_experts.h, stored_experts.h.
constexpr std::int64_t kMostPerHead = 64, kMostSelections = 4096, kMostSide = 32768;
constexpr std::int64_t kWidthMultiple = 32, kMostGenerated = 1024, kMostStored = 4096;

std::int64_t root(std::int64_t experts) {
  return std::llround(std::sqrt(static_cast<double>(experts)));
}

void check_width(const ConfigFields& in, const char* name, std::int64_t width, std::int64_t most) {
  if (width % kWidthMultiple == 0 && width <= most) return;
  in.contradiction(name, fmt::format("expected a multiple of {} up to {}", kWidthMultiple, most));
}

void refuse(ConfigFields& in, const char* name, const char* why) {
  if (in.has(name)) in.contradiction(name, why);
}

void read_widths(ConfigFields& in, NeuronExpertsConfig& out, std::int64_t width) {
  switch (out.kind) {
    case Kind::ethos:
      out.latent = in.positive("expert_latent_dim");
      out.hidden = in.positive("expert_hidden_dim");
      check_width(in, "expert_hidden_dim", out.hidden, kMostGenerated);
      out.latent_range = in.number_or("expert_latent_range", 1);
      if (!(out.latent_range > 0)) in.contradiction("expert_latent_range", "expected more than 0");
      break;
    case Kind::peer:
      refuse(in, "expert_latent_dim", "experts of feed_forward 'peer' are as wide as the model");
      refuse(in, "expert_hidden_dim", "experts of feed_forward 'peer' are as wide as the model");
      refuse(in, "expert_latent_range", "experts of feed_forward 'peer' have no latents");
      check_width(in, "hidden_size", width, kMostStored);
      break;
    case Kind::molae:
      out.latent = in.positive("expert_latent_dim");
      check_width(in, "expert_latent_dim", out.latent, kMostStored);
      refuse(in, "expert_hidden_dim", "experts of feed_forward 'molae' are stored, not generated");
      refuse(in, "expert_latent_range",
             "experts of feed_forward 'molae' are stored, not generated");
      break;
  }
}

}  // namespace

std::int64_t NeuronExpertsConfig::side() const { return root(experts); }

const char* kind_name(Kind kind) {
  return kind == Kind::ethos ? "ethos" : kind == Kind::peer ? "peer" : "molae";
}

NeuronExpertsConfig read_neuron_experts(ConfigFields& in, const std::string& kind,
                                        std::int64_t width, std::int64_t layers) {
  NeuronExpertsConfig out;
  out.kind = kind == "ethos" ? Kind::ethos : kind == "peer" ? Kind::peer : Kind::molae;
  out.experts = in.positive("num_experts");
  const std::int64_t side = out.side();
  if (side * side != out.experts || side > kMostSide) {
    in.contradiction("num_experts", fmt::format("experts are pairs of keys, so expected a square "
                                                "up to {}^2; {}^2 is {}",
                                                kMostSide, side, side * side));
  }
  out.heads = in.positive("num_expert_heads");
  out.per_head = in.positive("num_experts_per_head");
  if (out.per_head > std::min(kMostPerHead, side)) {
    in.contradiction("num_experts_per_head",
                     side < kMostPerHead
                         ? fmt::format("expected up to {}, the keys of a side of num_experts {}",
                                       side, out.experts)
                         : fmt::format("expected up to {}", kMostPerHead));
  }
  if (out.selections() > kMostSelections) {
    in.contradiction("num_expert_heads",
                     fmt::format("times num_experts_per_head {} these are {} selections a token; "
                                 "expected up to {}",
                                 out.per_head, out.selections(), kMostSelections));
  }
  out.query = in.positive("query_dim");
  if (out.query % 2 != 0) in.contradiction("query_dim", "expected an even number: two halves");
  out.query_norm = in.choice_or("query_norm", "batch", {"batch", "none"}) == "batch";
  read_widths(in, out, width);
  out.first_layer = in.count_or("first_k_dense_replace", 0);
  if (out.first_layer >= layers) {
    in.contradiction("first_k_dense_replace",
                     fmt::format("no layer of {} would have experts", layers));
  }
  return out;
}

}  // namespace subspace::nn
