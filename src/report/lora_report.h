#pragma once

#include <filesystem>
#include <vector>

#include "report/report.h"

namespace subspace {

/// Writes one self-contained HTML page that shows what adapters do to the heads of their bases.
///
/// Each folder holds heads.json as `subspace lora heads` writes it, and may hold compose.json and
/// causal.json of `lora compose` and `lora causal`; figures whose numbers are not there are left
/// out, and the page says how to get them. Several folders (adapters) are compared. The numbers are
/// those of the files; they travel as compressed JSON and are parsed when a figure needs them.
///
/// The page is written atomically. Throws NotFound (no heads.json; no plotly.min.js), InvalidFormat
/// / InvalidValue (file, entry, field, found, expected), Usage (no folder), Io.
void write_lora_report(const std::vector<std::filesystem::path>& folders,
                       const std::filesystem::path& out, const ReportOptions& options = {});

}  // namespace subspace
