#pragma once

#include <filesystem>
#include <vector>

#include "report/report.h"

namespace subspace {

/// Whether `folder` holds training runs: it is one (run.json), fine-tuned seeds (result.json and
/// seed_<s>/), or has folders that are, itself or in runs/ and sst2/.
bool holds_training(const std::filesystem::path& folder);

/// Writes one self-contained HTML page that shows training runs: loss, throughput, learning rate
/// and gradient norm as they went, and where they ended.
///
/// Runs of one configuration, whatever their seeds and names, are one group: a mean with its seeds
/// around it. Fine-tuned runs whose base is among the runs give the base their accuracy. The
/// numbers are those of run.json and metrics.jsonl (a half-written last line is left out); curves
/// of more than 2000 points are thinned.
///
/// The page is written atomically. Throws NotFound (no run; a missing file or field; no
/// plotly.min.js), InvalidFormat / InvalidValue (file, line, field, found, expected), Io.
void write_train_report(const std::vector<std::filesystem::path>& folders,
                        const std::filesystem::path& out, const ReportOptions& options = {});

}  // namespace subspace
