#include "causal/causal_run.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/interrupt.h"
#include "base/progress.h"
#include "causal/shapley.h"

namespace subspace {
namespace {

/// A set of gates that are switched together.
struct Part {
  Json name;  ///< what identifies it in the result
  std::int64_t layer = 0;
  std::vector<GatedTerm> terms;
  std::int64_t head = -1;  ///< -1: all
};

/// Connections up to which each route has an effect of its own.
constexpr std::size_t kMostByRoute = 24;
constexpr GatedTerm kQk[] = {GatedTerm::q, GatedTerm::k, GatedTerm::qk};
constexpr GatedTerm kVo[] = {GatedTerm::v, GatedTerm::o, GatedTerm::vo};

bool has(const MatrixChange& change, const at::Tensor& bias) {
  return change.defined() || bias.defined();
}

/// Whether the adapter has that term in a layer at all.
bool has_term(const LayerChange& change, GatedTerm term) {
  const bool q = has(change.q, change.q_bias), k = has(change.k, change.k_bias);
  const bool v = has(change.v, change.v_bias), o = has(change.o, change.o_bias);
  switch (term) {
    case GatedTerm::q:
      return q;
    case GatedTerm::k:
      return k;
    case GatedTerm::qk:
      return q && k;
    case GatedTerm::v:
      return v;
    case GatedTerm::o:
      return o;
    default:
      return v && o;
  }
}

class Run {
 public:
  Run(const GatedModel& model, const train::Batches& batches,
      const std::vector<LayerChange>& changes, const CausalOptions& options)
      : model_(model), options_(options) {
    for (std::int64_t n = 0; options.batches == 0 || n < options.batches; ++n) {
      auto batch = batches.held_out(n);
      if (!batch) break;
      if (batch->input.segments.defined()) {
        fail(ErrorCode::Unsupported,
             "the data has padding or separate documents; the gated forward reads whole rows: "
             "prepare it with --pack");
      }
      batches_.push_back(std::move(*batch));
    }
    if (batches_.empty()) {
      fail(ErrorCode::NotFound,
           "the data has no held-out rows; prepare it with a valid or test split");
    }
    for (std::int64_t layer = 0; layer < model.layers(); ++layer) {
      list_parts(layer, changes[static_cast<std::size_t>(layer)]);
    }
    if (groups_.empty()) {
      fail(ErrorCode::InvalidValue, "the adapter changes no matrix of attention: nothing to gate");
    }
  }

  Json go() {
    base_ = losses(model_.gates(0));
    tuned_ = losses(model_.gates(1));
    Json result = Json::object();
    result["loss"] = {{"base", estimate(base_)},
                      {"tuned", estimate(tuned_)},
                      {"drop", estimate(drop(base_, tuned_))}};
    result["check"] = check();
    const auto steps = static_cast<std::int64_t>(groups_.size() + heads_.size() + terms_.size() +
                                                 term_heads_.size() + options_.edges.size()) +
                       2;
    progress_.emplace("effect", steps);
    result["groups"] = effects(groups_, true);
    add_shapley(result["groups"], groups_);
    result["heads"] = effects(heads_, true);
    if (options_.orders > 0) add_shapley(result["heads"], heads_);
    result["terms"] = effects(terms_, true);
    result["term_heads"] = effects(term_heads_, false);
    result["edges"] = edges();
    result["approx"] = approximations();
    std::int64_t predicted = 0;
    for (const train::Batch& batch : batches_) predicted += batch.count;
    result["batches"] = batches_.size();
    result["tokens"] = predicted;
    result["orders"] = options_.orders;
    result["seed"] = options_.seed;
    return result;
  }

 private:
  void list_parts(std::int64_t layer, const LayerChange& change) {
    for (const char* circuit : {"QK", "VO"}) {
      std::vector<GatedTerm> here;
      for (const GatedTerm term : circuit[0] == 'Q' ? kQk : kVo) {
        if (has_term(change, term)) here.push_back(term);
      }
      if (here.empty()) continue;
      const Json name = {{"layer", layer}, {"circuit", circuit}};
      groups_.push_back({name, layer, here, -1});
      for (std::int64_t head = 0; head < model_.heads(); ++head) {
        Json own = name;
        own["head"] = head;
        heads_.push_back({own, layer, here, head});
      }
      for (const GatedTerm term : here) {
        Json own = name;
        own["term"] = kTermNames[static_cast<std::size_t>(term)];
        terms_.push_back({own, layer, {term}, -1});
        for (std::int64_t head = 0; head < model_.heads(); ++head) {
          Json one = own;
          one["head"] = head;
          term_heads_.push_back({one, layer, {term}, head});
        }
      }
    }
  }

  /// What of the result is no exact value on these rows.
  Json approximations() const {
    Json out = Json::array();
    const auto sampled = [](const std::vector<Part>& parts) {
      return parts.size() > static_cast<std::size_t>(kMostExactPlayers);
    };
    if (sampled(groups_) || (options_.orders > 0 && sampled(heads_))) {
      out.push_back("shapley_sampled");
    }
    if (!options_.edges.empty()) out.push_back("edge_norm");
    return out;
  }

  Losses losses(const at::Tensor& gates, const std::vector<EdgeGate>& edges = {}) const {
    Losses out;
    for (const train::Batch& batch : batches_) {
      check_interrupted("nothing is written yet");
      const at::Tensor hidden = model_.hidden(batch.input.tokens, gates, edges).flatten(0, 1);
      const at::Tensor rows =
          batch.predicted.defined() ? hidden.index_select(0, batch.predicted) : hidden;
      out.push_back(model_.loss_sum(rows, batch.targets) / static_cast<double>(batch.count));
    }
    return out;
  }

  static Losses drop(const Losses& before, const Losses& after) {
    Losses out;
    for (std::size_t b = 0; b < before.size(); ++b) out.push_back(before[b] - after[b]);
    return out;
  }

  Json estimate(const Losses& values) const {
    const Estimate found = bootstrap_mean(values, options_.seed);
    return {{"mean", found.mean}, {"ci", {found.low, found.high}}};
  }

  static void set(at::Tensor& gates, const Part& part, double value) {
    for (const GatedTerm term : part.terms) {
      at::Tensor row = gates.select(0, part.layer).select(0, static_cast<std::int64_t>(term));
      if (part.head < 0) {
        row.fill_(value);
      } else {
        row.select(0, part.head).fill_(value);
      }
    }
  }

  /// The model with the adapter merged, and the base, by src/nn's own forward pass.
  Json check() const {
    const train::Batch& batch = batches_.front();
    const double bound = model_.gates(0).scalar_type() == at::kDouble ? 1e-9 : 1e-3;
    Json out = Json::object();
    nn::Input input;
    input.tokens = batch.input.tokens;
    auto compare = [&](const char* name, const nn::Model& model, double gate) {
      const at::Tensor expected = model.hidden(input),
                       found = model_.hidden(batch.input.tokens, model_.gates(gate));
      const double error = ((found - expected).abs().max() / expected.abs().max()).item<double>();
      if (!(error <= bound)) {
        fail(ErrorCode::Internal, "gates of {} differ from the {} model by {}", gate, name, error);
      }
      out[name] = error;
    };
    const auto merged = model_.merged(options_.threads);
    compare("merged", *merged, 1);
    const auto base = model_.base_model(options_.threads);
    compare("base", *base, 0);
    return out;
  }

  Json effects(const std::vector<Part>& parts, bool alone) {
    Json out = Json::array();
    for (const Part& part : parts) {
      at::Tensor gates = model_.gates(1);
      set(gates, part, 0);
      Json one = part.name;
      one["loo"] = estimate(drop(losses(gates), tuned_));
      if (alone) {
        gates = model_.gates(0);
        set(gates, part, 1);
        // A cross term alone needs no other: its gate is its own.
        one["aoi"] = estimate(drop(base_, losses(gates)));
      }
      out.push_back(std::move(one));
      progress_->step(part.name.dump());
    }
    return out;
  }

  void add_shapley(Json& effects, const std::vector<Part>& parts) {
    const Game game = [&](const std::vector<bool>& on) {
      at::Tensor gates = model_.gates(0);
      for (std::size_t i = 0; i < parts.size(); ++i) {
        if (on[i]) set(gates, parts[i], 1);
      }
      return losses(gates);
    };
    const auto values = shapley_values(game, static_cast<std::int64_t>(parts.size()),
                                       std::max<std::int64_t>(1, options_.orders), options_.seed);
    for (std::size_t i = 0; i < parts.size(); ++i) effects[i]["shapley"] = estimate(values[i]);
    progress_->step("Shapley values");
  }

  Json edges() {
    Json out = Json::array();
    const bool by_route = options_.edges.size() <= kMostByRoute;
    for (const Connection& edge : options_.edges) {
      std::vector<EdgeGate> closed;
      for (const Route route : {Route::bn, Route::nb, Route::nn}) {
        closed.push_back(
            {edge.writer, edge.writer_head, edge.reader, edge.reader_head, edge.mode, route, 0});
      }
      Json one = {{"w", {edge.writer, edge.writer_head}},
                  {"r", {edge.reader, edge.reader_head}},
                  {"mode", mode_name(edge.mode)}};
      one["loo"] = estimate(drop(losses(model_.gates(1), closed), tuned_));
      for (std::size_t i = 0; by_route && i < closed.size(); ++i) {
        one["routes"][kRouteNames[i]] =
            estimate(drop(losses(model_.gates(1), {closed[i]}), tuned_));
      }
      out.push_back(std::move(one));
      progress_->step("connections");
    }
    return out;
  }

  const GatedModel& model_;
  const CausalOptions& options_;
  std::vector<train::Batch> batches_;
  std::vector<Part> groups_, heads_, terms_, term_heads_;
  Losses base_, tuned_;
  std::optional<Progress> progress_;
};

void add(std::string& line, const Json& value) {
  line += ',';
  if (!value.is_null()) line += value.is_string() ? value.get<std::string>() : value.dump();
}

}  // namespace

Json causal_effects(const GatedModel& model, const train::Batches& batches,
                    const std::vector<LayerChange>& changes, const CausalOptions& options) {
  const at::NoGradGuard no_gradient;
  return Run(model, batches, changes, options).go();
}

std::string causal_csv(const Json& result) {
  std::string out =
      "kind,layer,circuit,head,term,writer_layer,writer_head,reader_layer,reader_head,mode,"
      "loo,loo_low,loo_high,aoi,aoi_low,aoi_high,shapley,shapley_low,shapley_high\n";
  for (const char* kind : {"groups", "heads", "terms", "term_heads", "edges"}) {
    for (const Json& part : result.at(kind)) {
      std::string line = kind;
      auto field = [&](const char* name) { return part.value(name, Json()); };
      for (const char* name : {"layer", "circuit", "head", "term"}) add(line, field(name));
      for (const char* end : {"w", "r"}) {
        for (std::size_t i = 0; i < 2; ++i)
          add(line, part.contains(end) ? part.at(end)[i] : Json());
      }
      add(line, field("mode"));
      for (const char* name : {"loo", "aoi", "shapley"}) {
        const bool there = part.contains(name);
        add(line, there ? part.at(name).at("mean") : Json());
        for (std::size_t i = 0; i < 2; ++i) add(line, there ? part.at(name).at("ci")[i] : Json());
      }
      out += line;
      out += '\n';
    }
  }
  return out;
}

}  // namespace subspace
