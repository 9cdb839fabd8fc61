#pragma once

#include <filesystem>

#include "report/report.h"

namespace subspace {

/// Writes one self-contained HTML page that shows what a sweep found: every arm with its seeds and
/// 95 % intervals, how a number depends on each field of the grid, the table. `folder` holds
/// sweep.json as `subspace sweep` writes it, finished or not.
///
/// The page is written atomically. Throws NotFound (no sweep.json; no plotly.min.js), InvalidFormat
/// / InvalidValue (file, entry, field, found, expected), Io.
void write_sweep_report(const std::filesystem::path& folder, const std::filesystem::path& out,
                        const ReportOptions& options = {});

}  // namespace subspace
