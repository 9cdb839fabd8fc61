#include "report/page.h"

#include "base/atomic_file.h"
#include "base/error.h"
#include "embedded/report_page.h"
#include "report/pack.h"
#include "report/page_writer.h"

namespace subspace {
namespace {

namespace fs = std::filesystem;

constexpr const char* kCdn = "https://cdn.plot.ly";

std::string_view asset(const char* name) {
  const std::string_view text = embedded::report_page(name);
  if (text.empty()) fail(ErrorCode::Internal, "the program was built without the page's {}", name);
  return text;
}

}  // namespace

Plotly plotly_for(const ReportOptions& options) {
  const bool searched = options.plotlyjs == "cdn" || options.plotlyjs == "embed";
  return load_plotly(searched ? fs::path() : fs::path(options.plotlyjs));
}

void write_page(const Page& page, const fs::path& out, const Plotly& plotly,
                const ReportOptions& options) {
  const bool from_cdn = options.plotlyjs == "cdn";
  const std::string data =
      escape_script_json(page.data.dump(-1, ' ', true, Json::error_handler_t::replace));

  AtomicFile file(out);
  const PageParts parts = {
      {"title", [&](AtomicFile& to) { to.write(escape_html(page.title)); }},
      {"eyebrow", [&](AtomicFile& to) { to.write(escape_html(page.eyebrow)); }},
      {"script_origin", [&](AtomicFile& to) { to.write(from_cdn ? kCdn : ""); }},
      {"style",
       [&](AtomicFile& to) {
         to.write(asset("style.css"));
         to.write(asset("figures.css"));
         to.write(asset("print.css"));
       }},
      {"plotly",
       [&](AtomicFile& to) {
         if (from_cdn) {
           to.write(fmt::format("<script src=\"{}/plotly-{}.min.js\" charset=\"utf-8\"></script>",
                                kCdn, plotly.version));
         } else {
           to.write("<script>");
           to.write(plotly.source);
           to.write("</script>");
         }
       }},
      {"data", [&](AtomicFile& to) { to.write(data); }},
      {"chunks",
       [&](AtomicFile& to) {
         for (std::size_t i = 0; i < page.chunks.texts.size(); ++i) {
           to.write(fmt::format("<script type=\"text/plain\" id=\"chunk-{}\">", i));
           to.write(page.chunks.texts[i]);
           to.write("</script>\n");
         }
       }},
      {"script",
       [&](AtomicFile& to) {
         for (const char* name : page.scripts) to.write(asset(name));
       }},
  };
  write_template(file, asset("page.html"), parts);
  file.commit();
}

}  // namespace subspace
