#pragma once

#include <string>
#include <vector>

#include "base/json.h"
#include "report/run_data.h"

namespace subspace {

/// Compressed pieces of a page's data, in base64. The page decodes one only when a figure needs it.
struct Chunks {
  std::vector<std::string> texts;
};

/// What the page needs of one run: the returned JSON describes it (facts, shapes, stack metrics,
/// and under "chunk" the index of each piece), bulk data is appended to `chunks`:
///
///   metrics of a map's heads      float32 planes [columns][layers][most heads], NaN where absent
///   spectra of a map's stacks     float32 spectrum planes, the layers' [n] one after another
///   drawn spectra of one layer    for each map: float32 planes of the largest values [heads], then
///                                 each head's append_drawn_spectrum (nothing for a marked head)
///
/// Of the maps QK@<delta>, the first is drawn; with more than 17 offsets the metrics other than
/// ranks are kept for 17 of them, evenly chosen, so that 257 offsets still fit.
Json pack_run(const Run& run, Chunks& chunks);

}  // namespace subspace
