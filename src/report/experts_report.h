#pragma once

#include <filesystem>

#include "report/report.h"

namespace subspace {

/// Writes one self-contained HTML page that shows what `subspace ethos inspect` found: how experts
/// are used, which tokens choose them, spectra, groups, neighbours, what lies between two. `folder`
/// holds experts.json and, where there are spectra, spectra.safetensors.
///
/// The page is written atomically. Throws NotFound (no experts.json, a missing tensor; no
/// plotly.min.js), InvalidFormat / InvalidValue (file, layer, field, found, expected), Io.
void write_experts_report(const std::filesystem::path& folder, const std::filesystem::path& out,
                          const ReportOptions& options = {});

}  // namespace subspace
