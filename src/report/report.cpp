#include "report/report.h"

#include "base/error.h"
#include "report/pack.h"
#include "report/page.h"
#include "report/run_chunks.h"
#include "report/run_data.h"

namespace subspace {
namespace {

namespace fs = std::filesystem;

/// In the order in which they are joined to one script: each uses only what stands before it.
const std::vector<const char*> kScripts = {
    "chunks.js",      "selection.js", "data.js",         "store.js",     "stats.js",
    "glossary.js",    "theme.js",     "dom.js",          "figure.js",    "fig_depth.js",
    "fig_heat.js",    "fig_grid.js",  "fig_spectrum.js", "fig_error.js", "fig_rope.js",
    "fig_compare.js", "table.js",     "summary.js",      "main.js",
};

std::string title_of(const Json& runs) {
  std::string title = "Spectra of attention: ";
  for (std::size_t i = 0; i < runs.size(); ++i) {
    if (i > 0) title += ", ";
    title += runs[i].at("facts").at("model").at("name").get<std::string>();
  }
  return title;
}

}  // namespace

void write_report(const std::vector<fs::path>& folders, const fs::path& out,
                  const ReportOptions& options) {
  if (folders.empty()) {
    fail(ErrorCode::Usage, "no run to report; give one or several folders of `subspace spectra`");
  }
  const Plotly plotly = plotly_for(options);
  Page page{.eyebrow = "Spectra of attention",
            .title = "",
            .data = {},
            .chunks = {},
            .scripts = kScripts};
  Json runs = Json::array();
  for (const fs::path& folder : folders) runs.push_back(pack_run(read_run(folder), page.chunks));
  page.title = title_of(runs);
  page.data = Json{{"runs", std::move(runs)}};
  write_page(page, out, plotly, options);
}

}  // namespace subspace
