#include "report/report.h"

#include "base/atomic_file.h"
#include "base/error.h"
#include "embedded/report_page.h"
#include "report/pack.h"
#include "report/page_writer.h"
#include "report/plotly.h"
#include "report/run_chunks.h"
#include "report/run_data.h"

namespace subspace {
namespace {

namespace fs = std::filesystem;

constexpr const char* kCdn = "https://cdn.plot.ly";

/// In the order in which they are joined to one script: each uses only what stands before it.
constexpr const char* kScripts[] = {
    "data.js",         "store.js",     "stats.js",     "glossary.js",    "theme.js",
    "dom.js",          "figure.js",    "fig_depth.js", "fig_heat.js",    "fig_grid.js",
    "fig_spectrum.js", "fig_error.js", "fig_rope.js",  "fig_compare.js", "table.js",
    "summary.js",      "main.js",
};

std::string_view asset(const char* name) {
  const std::string_view text = embedded::report_page(name);
  if (text.empty()) fail(ErrorCode::Internal, "the program was built without the page's {}", name);
  return text;
}

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
  const bool from_cdn = options.plotlyjs == "cdn";
  const bool searched = from_cdn || options.plotlyjs == "embed";
  const Plotly plotly = load_plotly(searched ? fs::path() : fs::path(options.plotlyjs));

  Json runs = Json::array();
  Chunks chunks;
  for (const fs::path& folder : folders) runs.push_back(pack_run(read_run(folder), chunks));

  const std::string title = escape_html(title_of(runs));
  const std::string data = escape_script_json(
      Json{{"runs", std::move(runs)}}.dump(-1, ' ', true, Json::error_handler_t::replace));

  AtomicFile file(out);
  const PageParts parts = {
      {"title", [&](AtomicFile& page) { page.write(title); }},
      {"script_origin", [&](AtomicFile& page) { page.write(from_cdn ? kCdn : ""); }},
      {"style",
       [&](AtomicFile& page) {
         page.write(asset("style.css"));
         page.write(asset("figures.css"));
         page.write(asset("print.css"));
       }},
      {"plotly",
       [&](AtomicFile& page) {
         if (from_cdn) {
           page.write(fmt::format("<script src=\"{}/plotly-{}.min.js\" charset=\"utf-8\"></script>",
                                  kCdn, plotly.version));
         } else {
           page.write("<script>");
           page.write(plotly.source);
           page.write("</script>");
         }
       }},
      {"data", [&](AtomicFile& page) { page.write(data); }},
      {"chunks",
       [&](AtomicFile& page) {
         for (std::size_t i = 0; i < chunks.texts.size(); ++i) {
           page.write(fmt::format("<script type=\"text/plain\" id=\"chunk-{}\">", i));
           page.write(chunks.texts[i]);
           page.write("</script>\n");
         }
       }},
      {"script",
       [&](AtomicFile& page) {
         for (const char* name : kScripts) page.write(asset(name));
       }},
  };
  write_template(file, asset("page.html"), parts);
  file.commit();
}

}  // namespace subspace
