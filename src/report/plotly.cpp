#include "report/plotly.h"

#include <cstdlib>
#include <fstream>
#include <regex>
#include <sstream>

#include "base/error.h"

namespace subspace {
namespace {

namespace fs = std::filesystem;

fs::path find_plotly() {
  if (const char* named = std::getenv("SUBSPACE_PLOTLYJS"); named && *named) return named;
  std::error_code status;
  const fs::path program = fs::read_symlink("/proc/self/exe", status);
  return program.parent_path().parent_path() / "share" / "subspace" / "plotly.min.js";
}

}  // namespace

Plotly load_plotly(const fs::path& path) {
  const fs::path file = path.empty() ? find_plotly() : path;
  std::ifstream stream(file, std::ios::binary);
  std::ostringstream text;
  if (stream) text << stream.rdbuf();
  if (!stream || text.str().empty()) {
    fail(ErrorCode::NotFound,
         "{}: the drawing library cannot be read; give the path of a plotly.min.js with "
         "--plotlyjs FILE or in SUBSPACE_PLOTLYJS (the Python package 'plotly' carries it as "
         "plotly/package_data/plotly.min.js)",
         file.string());
  }
  Plotly plotly{.version = {}, .source = text.str()};
  const std::string banner = plotly.source.substr(0, 400);
  std::smatch match;
  if (!std::regex_search(banner, match, std::regex(R"(plotly\.js[^\n]* v(\d+\.\d+\.\d+))"))) {
    fail(ErrorCode::InvalidFormat,
         "{}: no banner 'plotly.js v<version>' at its start; expected Plotly's plotly.min.js",
         file.string());
  }
  plotly.version = match[1];
  if (plotly.source.find("</script") != std::string::npos ||
      plotly.source.find("<!--") != std::string::npos) {
    fail(ErrorCode::InvalidFormat,
         "{}: holds '</script' or '<!--', which cannot stand inside a page; take a released "
         "plotly.min.js",
         file.string());
  }
  return plotly;
}

}  // namespace subspace
