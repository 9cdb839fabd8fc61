#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "base/json.h"
#include "report/plotly.h"
#include "report/report.h"
#include "report/run_chunks.h"

namespace subspace {

/// What differs between the kinds of pages.
struct Page {
  std::string eyebrow;  ///< the line above the title
  std::string title;    ///< of the window
  Json data;            ///< DATA of the scripts
  Chunks chunks;
  std::vector<const char*> scripts;  ///< assets, joined in this order into one script
};

/// The drawing library as the options want it; looked for before anything long begins.
Plotly plotly_for(const ReportOptions& options);

/// Writes one self-contained HTML page, whole or not at all.
void write_page(const Page& page, const std::filesystem::path& out, const Plotly& plotly,
                const ReportOptions& options);

}  // namespace subspace
