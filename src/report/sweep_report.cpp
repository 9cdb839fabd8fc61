#include "report/sweep_report.h"

#include "base/error.h"
#include "report/page.h"

namespace subspace {
namespace {

namespace fs = std::filesystem;

/// In the order in which they are joined to one script: each uses only what stands before it.
const std::vector<const char*> kSweepScripts = {
    "chunks.js", "selection.js", "stats.js",    "intervals.js",  "sweep_data.js",   "theme.js",
    "dom.js",    "figure.js",    "fig_arms.js", "sweep_grid.js", "sweep_tables.js", "sweep_main.js",
};

/// The list `name`, every entry an object with the objects `inner` and a name.
void check_list(const Json& json, const fs::path& path, const char* name,
                const std::vector<const char*>& inner) {
  const auto found = json.find(name);
  if (found == json.end() || !found->is_array() || found->empty()) {
    fail(ErrorCode::InvalidFormat,
         "{}: no list '{}' with entries; was it written by `subspace "
         "sweep`?",
         path.string(), name);
  }
  for (std::size_t i = 0; i < found->size(); ++i) {
    const Fields entry((*found)[i], fmt::format("{}: {}[{}]", path.string(), name, i));
    entry.string("arm");
    for (const char* object : inner) entry.object(object);
  }
}

void check_runs(const Json& json, const fs::path& path) {
  check_list(json, path, "runs", {"fields", "numbers"});
  for (std::size_t i = 0; i < json.at("runs").size(); ++i) {
    const Fields run(json.at("runs")[i], fmt::format("{}: runs[{}]", path.string(), i));
    run.int_in("seed", 0, INT64_MAX);
    const Fields numbers = run.object("numbers");
    for (const auto& [name, value] : numbers.json().items()) {
      if (!value.is_null()) numbers.number(name);
    }
  }
}

void check_arms(const Json& json, const fs::path& path) {
  check_list(json, path, "arms", {"numbers"});
  for (std::size_t i = 0; i < json.at("arms").size(); ++i) {
    const Fields arm(json.at("arms")[i], fmt::format("{}: arms[{}]", path.string(), i));
    const Fields numbers = arm.object("numbers");
    for (const auto& [name, value] : numbers.json().items()) {
      const Fields one = numbers.object(name);
      for (const char* field : {"mean", "half_width_95"}) {
        if (one.has(field)) one.number(field);
      }
    }
  }
}

}  // namespace

void write_sweep_report(const fs::path& folder, const fs::path& out, const ReportOptions& options) {
  const fs::path path = folder / "sweep.json";
  const Json json = read_json_file(path);
  const Fields fields(json, path.string());
  check_runs(json, path);
  check_arms(json, path);
  fields.strings("grid");
  const Plotly plotly = plotly_for(options);
  const Page page{.eyebrow = "A sweep",
                  .title = "Sweep: " + fields.string("title"),
                  .data = Json{{"sweep", json}},
                  .chunks = {},
                  .scripts = kSweepScripts};
  write_page(page, out, plotly, options);
}

}  // namespace subspace
