#pragma once

#include "base/json.h"
#include "causal/gated_model.h"
#include "train/batches.h"

namespace subspace {

/// A head's output as one head of a later layer reads it in one mode.
struct Connection {
  std::int64_t writer = 0, writer_head = 0, reader = 0, reader_head = 0;
  Mode mode = Mode::q;
};

struct CausalOptions {
  std::int64_t orders = 8;   ///< of heads, for their sampled Shapley values; 0: none
  std::int64_t batches = 0;  ///< held-out passes used; 0: all
  std::uint64_t seed = 0;    ///< of orders and intervals
  /// Whose effect is wanted: all three routes withheld, and of up to 24 connections each by itself.
  std::vector<Connection> edges;
  int threads = 1;
};

/// What each part of an adapter does to the loss on held-out rows, in nats a predicted token:
///
///   loo  loss(all but it) - loss(all)      what is lost without it
///   aoi  loss(none) - loss(it alone)       what it does by itself
///   shapley  its share of loss(none) - loss(all)
///
/// of circuits (a layer's QK or VO, all heads and terms: Shapley exact for up to 6), heads (a
/// circuit of one head, all its terms: Shapley sampled), terms (one of a layer, all heads), terms
/// of heads (loo only), edges (loo only). Each with a 95 % interval over batches. Parts of which
/// the adapter has nothing are left out.
///
/// {"loss": {"base", "tuned", "drop", ..}, "groups", "heads", "terms", "term_heads",
///  "edges", "batches", "tokens", "orders", "seed", "check", "approx"}; docs/lora-causal.md
///  explains
/// the fields.
/// Throws NotFound without held-out rows, Internal if gates of one and zero do not give the merged
/// model and the base.
Json causal_effects(const GatedModel& model, const train::Batches& batches,
                    const std::vector<LayerChange>& changes, const CausalOptions& options);

/// The same as a table with a line of names: kind, layer, circuit, head, term, edge, effects.
std::string causal_csv(const Json& result);

}  // namespace subspace
