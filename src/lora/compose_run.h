#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/json.h"
#include "lora/composition_screen.h"

namespace subspace {

/// A model and what an adapter does to it, layer by layer.
struct ComposeSource {
  /// Layer `index`, float64 on the CPU; called once a layer by the screen, again for full scores.
  std::function<AttentionLayer(std::int64_t index)> load;
  std::vector<LayerChange> changes;  ///< of layers 0, 1, ..
  /// AttentionLayer::output of layers 0, 1, ..: the screen needs those of earlier layers first.
  /// Empty: no layer has a norm behind its heads.
  std::vector<Norm> output_norms;
};

struct ComposeOptions {
  std::vector<std::int64_t> layers;   ///< those that take part, rising; empty: all
  std::vector<std::int64_t> offsets;  ///< of the rotary embedding; empty: 0 .. 256
  std::int64_t top = 100;             ///< pairs of heads with full scores, by rho of the screen
  double floor = 0.05;                ///< rho above which a pair of heads is counted as rewired
  /// Pairs of layers all of whose pairs of heads get full scores.
  std::vector<std::pair<std::int64_t, std::int64_t>> between;
};

/// Screens of all pairs of layers, then full scores of the pairs of heads that the screens rank
/// highest by rho (never by lift: a large lift of a tiny update moves nothing) and of those asked
/// for. Pairs without any change are not listed.
///
/// Significance: each screen has p_gamma from the Haar null of its stacks, and q_bh by Benjamini
/// and Hochberg over all screens, because heads of a layer share A and B_o and are not tests of
/// their own. A pair's q_bh is the larger of its screen's and of its own p adjusted for all pairs
/// of heads and modes that were screened: those not listed can only lower it, so it is an upper
/// bound.
///
/// The chances of the first pairs by rho are drawn as well (null_draws.h, seed 0), "drawn" says how
/// many of them come out on the other side of 5 %.
///
/// {"d", "heads", "layers", "offsets", "offset_mode", "null", "drawn", "approx", "head_pairs",
/// "above_floor",
///  "screens": [...], "pairs": [...], "seconds": {"screens", "pairs"}}; docs/lora-composition.md
/// explains the fields. Throws as wiring_of; InvalidValue for layers that are not there.
Json compose(const ComposeSource& source, const ComposeOptions& options);

/// The same as tables, with a line of names: of "pairs" and of "screens".
std::string compose_pairs_csv(const Json& result);
std::string compose_screens_csv(const Json& result);

}  // namespace subspace
