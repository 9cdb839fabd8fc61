#include "train/match.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include "base/error.h"

namespace subspace::train {
namespace {

/// The field that is chosen, and its n-th value.
struct Knob {
  const char* field;
  std::int64_t first, last;
  std::function<std::int64_t(std::int64_t)> value;
};

constexpr std::int64_t kStep = 32;
constexpr double kNear = 0.05;  // what may still be called equal
std::int64_t multiple_of_step(std::int64_t n) { return n * kStep; }
std::int64_t square_of(std::int64_t n) { return n * n; }
std::int64_t itself(std::int64_t n) { return n; }

const char* const kNeuronFields[] = {"num_experts", "num_expert_heads", "num_experts_per_head",
                                     "query_dim", "query_norm"};
const char* const kMoeFields[] = {
    "n_routed_experts", "num_experts_per_tok",      "moe_intermediate_size", "n_shared_experts",
    "scoring_func",     "norm_topk_prob",           "routed_scaling_factor", "n_group",
    "topk_group",       "router_bias_update_speed", "router_aux_loss_coef",  "moe_layer_freq",
    "topk_method"};

bool is_neuron(const std::string& kind) {
  return kind == "ethos" || kind == "peer" || kind == "molae";
}

void put_if_absent(Json& model, const char* field, const Json& value) {
  if (!model.contains(field)) model[field] = value;
}

std::int64_t number(const Json& model, const char* field) {
  return model.at(field).get<std::int64_t>();
}

std::int64_t rounded_width(double width) {
  return std::max<std::int64_t>(1, std::llround(width / kStep)) * kStep;
}

/// The reference with fields of other kinds removed and absent ones of this kind added.
Json with_feed_forward(const Json& reference, const std::string& kind) {
  Json model = reference;
  const std::string before = feed_forward_kind(reference);
  model["feed_forward"] = kind;
  if (kind != "ethos") model.erase("expert_latent_range");
  if (!is_neuron(kind)) {
    for (const char* field : kNeuronFields) model.erase(field);
    model.erase("expert_hidden_dim");
    model.erase("expert_latent_dim");
  }
  if (kind != "moe") {
    for (const char* field : kMoeFields) model.erase(field);
  }
  if (kind == "dense") {
    model.erase("first_k_dense_replace");
    put_if_absent(model, "intermediate_size", rounded_width(4 * model.value("hidden_size", 0.0)));
    return model;
  }
  if (kind == "moe") {
    put_if_absent(model, "n_routed_experts", 8);
    put_if_absent(model, "num_experts_per_tok", 2);
    const double dense = model.value("intermediate_size", 4 * model.value("hidden_size", 0.0));
    put_if_absent(model, "intermediate_size", rounded_width(dense));
    put_if_absent(model, "moe_intermediate_size",
                  rounded_width(dense / model.at("num_experts_per_tok").get<double>()));
    return model;
  }
  put_if_absent(model, "num_experts", 65536);
  put_if_absent(model, "num_expert_heads", 8);
  put_if_absent(model, "num_experts_per_head", 16);
  put_if_absent(model, "query_dim", 256);
  if (kind == "ethos") {
    // A latent of MoLAE is as wide as what ETHOS generates, not as what it stores.
    if (before == "molae") {
      model["expert_hidden_dim"] = std::min<std::int64_t>(1024, number(model, "expert_latent_dim"));
      model.erase("expert_latent_dim");
    }
    put_if_absent(model, "expert_hidden_dim", 256);
    put_if_absent(model, "expert_latent_dim",
                  std::max<std::int64_t>(1, number(model, "expert_hidden_dim") / 4));
  } else if (kind == "molae") {
    if (before == "ethos") model["expert_latent_dim"] = model.at("expert_hidden_dim");
    put_if_absent(model, "expert_latent_dim", 256);
    model.erase("expert_hidden_dim");
  } else {
    model.erase("expert_hidden_dim");
    model.erase("expert_latent_dim");
  }
  return model;
}

Knob knob_of(const Json& model, const std::string& kind, MatchBy by) {
  if (kind == "dense") return {"intermediate_size", 1, 1 << 15, multiple_of_step};
  if (kind == "moe") {
    if (by == MatchBy::flops) return {"moe_intermediate_size", 1, 1 << 15, multiple_of_step};
    // One more than a token takes, or nothing is chosen.
    return {"n_routed_experts", number(model, "num_experts_per_tok") + 1, 1 << 12, itself};
  }
  const std::int64_t per_head = number(model, "num_experts_per_head");
  if (by == MatchBy::parameters) return {"num_experts", per_head, 1 << 15, square_of};
  if (kind == "ethos") return {"expert_hidden_dim", 1, 1024 / kStep, multiple_of_step};
  if (kind == "molae") return {"expert_latent_dim", 1, 4096 / kStep, multiple_of_step};
  return {"num_expert_heads", 1, 4096 / per_head, itself};
}

double amount(const ModelCounts& counts, MatchBy by) {
  return by == MatchBy::flops ? counts.flops_per_token : static_cast<double>(counts.parameters);
}

}  // namespace

MatchBy match_by(const std::string& name) {
  return name == "params" ? MatchBy::parameters : MatchBy::flops;
}

std::string feed_forward_kind(const Json& model) {
  if (model.contains("feed_forward")) return model.at("feed_forward").get<std::string>();
  return model.contains("n_routed_experts") ? "moe" : "dense";
}

Matched match_model(const Json& reference, const Settings& settings, const std::string& kind,
                    MatchBy by, const std::string& where) {
  const std::string type = reference.value("model_type", "");
  if (!type.starts_with("subspace_")) {
    fail(ErrorCode::Unsupported,
         "{}: model_type '{}' has one kind of feed-forward part; those that have several are "
         "subspace_decoder, subspace_encoder and subspace_vit",
         where, type);
  }
  Matched out;
  out.by = by;
  out.reference = counts_of(nn::read_model_config(reference, where), settings);
  out.model = with_feed_forward(reference, kind);
  const Knob knob = knob_of(out.model, kind, by);
  auto counts_at = [&](std::int64_t n) {
    out.model[knob.field] = knob.value(n);
    return counts_of(nn::read_model_config(out.model, where), settings);
  };
  const double wanted = amount(out.reference, by);
  // Counts rise with the field: the first value that reaches what is wanted, or its neighbour.
  std::int64_t low = knob.first, high = knob.last;
  while (low < high) {
    const std::int64_t middle = low + (high - low) / 2;
    if (amount(counts_at(middle), by) < wanted) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  auto away = [&](std::int64_t n) { return std::abs(amount(counts_at(n), by) - wanted); };
  if (low > knob.first && away(low - 1) <= away(low)) --low;
  out.found = counts_at(low);
  out.field = knob.field;
  out.value = knob.value(low);
  return out;
}

std::string counts_text(const ModelCounts& counts) {
  const auto parameters = static_cast<double>(counts.parameters);
  return fmt::format("{} parameters ({:.{}f} M), {:.1f} MFLOP a token", counts.parameters,
                     parameters / 1e6, parameters < 1e8 ? 1 : 0, counts.flops_per_token / 1e6);
}

std::string match_text(const Matched& matched) {
  const double share = amount(matched.found, matched.by) / amount(matched.reference, matched.by);
  const std::string far =
      std::abs(share - 1) <= kNear
          ? ""
          : fmt::format(
                "\nwarning: not equal, {:.3g} times the reference's {}: {} {} is as near as "
                "that field comes; make the reference {}, or change other fields",
                share, matched.by == MatchBy::flops ? "FLOPs" : "parameters", matched.field,
                matched.value, share > 1 ? "larger" : "smaller");
  return fmt::format(
             "reference  {}\n{:<9}  {}\n           {} {}: {:.4f} of the reference's FLOPs, {:.4f} "
             "of its parameters",
             counts_text(matched.reference), feed_forward_kind(matched.model),
             counts_text(matched.found), matched.field, matched.value,
             matched.found.flops_per_token / matched.reference.flops_per_token,
             static_cast<double>(matched.found.parameters) /
                 static_cast<double>(matched.reference.parameters)) +
         far;
}

}  // namespace subspace::train
