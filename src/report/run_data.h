#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/json.h"
#include "checkpoint/safetensors.h"

namespace subspace {

/// The metrics of one map's heads in one layer, a column a metric.
struct HeadTable {
  std::int64_t heads = 0;
  std::int64_t values = 0;  ///< singular values a head, columns of `tensor`
  std::string tensor;       ///< "layers.<L>.<MAP>.heads", float64 [heads, values]
  /// "largest", "rank_0.99", ..., "energy_lost@16", ... with one value a head; NaN stands for null.
  std::vector<std::pair<std::string, std::vector<float>>> columns;
  Json random;  ///< the same metrics of a random matrix of that shape
};

/// The metrics of one map's heads stacked, or of a matrix that all heads share.
struct StackMetrics {
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  std::int64_t values = 0;
  std::int64_t blocks = 1;  ///< diagonal blocks that the matrix consists of
  std::string tensor;       ///< "layers.<L>.<MAP>.stack", float64 [values]
  Json metrics;  ///< name -> number or null, energy_lost flattened to "energy_lost@<rank>"
  Json random;
};

struct MapResult {
  std::string name;
  std::int64_t rows = 0;  ///< shape of one head's matrix, 0 if the map has a stack only
  std::int64_t columns = 0;
  std::optional<HeadTable> heads;
  std::optional<StackMetrics> stack;
};

struct LayerResult {
  std::int64_t layer = 0;
  std::vector<std::string> notes;
  std::vector<MapResult> maps;
};

/// One finished run, read from a folder written by `subspace spectra` and checked.
struct Run {
  std::filesystem::path folder;
  Json facts;  ///< program, model, conventions, device, times, ... as in summary.json
  std::vector<double> taus;
  std::vector<LayerResult> layers;  ///< ascending
  SafetensorsFile spectra;
};

/// Reads summary.json and maps spectra.safetensors of `folder`.
///
/// Checked: format and version; types, ranges and lengths of every field used; that each map's
/// tensors are there, float64, of the shape the summary states. The singular values themselves are
/// checked when read. Throws NotFound, InvalidFormat, InvalidShape, InvalidValue naming file and
/// field.
Run read_run(const std::filesystem::path& folder);

/// One float64 tensor of a run, in rows of `row` values. Every row must be finite, non-negative and
/// descending, or, for a head the run marked instead of measured, wholly NaN (`may_be_marked`).
/// Throws InvalidFormat naming file, tensor and row.
std::vector<double> read_spectra(const Run& run, const std::string& tensor, std::int64_t row,
                                 bool may_be_marked);

}  // namespace subspace
