#include "report/train_report.h"

#include <algorithm>
#include <map>

#include "base/error.h"
#include "report/pack.h"
#include "report/page.h"
#include "report/training_run.h"

namespace subspace {
namespace {

namespace fs = std::filesystem;

/// In the order in which they are joined to one script: each uses only what stands before it.
const std::vector<const char*> kTrainScripts = {
    "chunks.js",      "selection.js",    "stats.js",      "intervals.js", "train_data.js",
    "theme.js",       "dom.js",          "figure.js",     "fig_arms.js",  "train_curves.js",
    "train_final.js", "train_tables.js", "train_main.js",
};

bool is_file(const fs::path& path) {
  std::error_code status;
  return fs::is_regular_file(path, status);
}

std::vector<fs::path> subfolders(const fs::path& folder) {
  std::vector<fs::path> found;
  std::error_code status;
  for (const auto& entry : fs::directory_iterator(folder, status)) {
    if (entry.is_directory(status)) found.push_back(entry.path());
  }
  // "mla_seed_1" before "mla-o_seed_0".
  std::sort(found.begin(), found.end(), [](const fs::path& a, const fs::path& b) {
    const std::string x = a.filename().string(), y = b.filename().string();
    return std::pair(without_seed(x), x) < std::pair(without_seed(y), y);
  });
  return found;
}

/// The runs in `folder`, down to the seeds of a folder in runs/ or sst2/.
std::vector<fs::path> runs_in(const fs::path& folder, int depth = 3) {
  if (is_file(folder / "run.json")) return {folder};
  std::vector<fs::path> found;
  if (depth == 0) return found;
  for (const fs::path& inner : subfolders(folder)) {
    const auto more = runs_in(inner, depth - 1);
    found.insert(found.end(), more.begin(), more.end());
  }
  return found;
}

std::size_t pack(const Json& json, Chunks& chunks) {
  const std::string text = json.dump();
  chunks.texts.push_back(
      base64(gzip({reinterpret_cast<const std::uint8_t*>(text.data()), text.size()})));
  return chunks.texts.size() - 1;
}

/// The run that `tuned` was made from, or its last part of the path where folders were moved.
Json base_of(const TrainingRun& tuned, const std::vector<TrainingRun>& runs) {
  if (tuned.base.empty()) return {};
  std::error_code status;
  const fs::path base = fs::weakly_canonical(tuned.base, status);
  std::vector<std::size_t> named;
  for (std::size_t i = 0; i < runs.size(); ++i) {
    const fs::path folder = fs::weakly_canonical(runs[i].folder, status);
    if (folder == base) return i;
    if (runs[i].base.empty() && folder.filename() == base.filename()) named.push_back(i);
  }
  return named.size() == 1 ? Json(named.front()) : Json();
}

/// Configurations, each once: {label, model, train, data, dtype, tuned}; `of` gets each run's.
Json groups_of(const std::vector<TrainingRun>& runs, std::vector<std::size_t>& of) {
  Json groups = Json::array();
  std::map<std::string, std::size_t> known, labels;
  for (const TrainingRun& run : runs) {
    const Json what = {{"model", run.model},
                       {"train", run.train},
                       {"data", run.data},
                       {"dtype", run.dtype},
                       {"tuned", !run.base.empty()}};
    const auto [entry, added] = known.emplace(what.dump(), groups.size());
    of.push_back(entry->second);
    if (!added) continue;
    const std::string stem = without_seed(run.name);
    std::string label = stem.empty() ? run.name : stem;
    const std::size_t same = labels[label + (run.base.empty() ? "" : " tuned")]++;
    if (same > 0) label += fmt::format(" ({})", same + 1);
    Json group = {{"label", label}};
    group.update(what);
    groups.push_back(std::move(group));
  }
  return groups;
}

}  // namespace

bool holds_training(const fs::path& folder) { return !runs_in(folder).empty(); }

void write_train_report(const std::vector<fs::path>& folders, const fs::path& out,
                        const ReportOptions& options) {
  std::vector<TrainingRun> runs;
  for (const fs::path& folder : folders) {
    const auto found = runs_in(folder);
    if (found.empty()) {
      fail(ErrorCode::NotFound,
           "{}: no run.json there or below; expected a folder that `subspace train`, `finetune` or "
           "`sweep` has written",
           folder.string());
    }
    for (const fs::path& path : found) runs.push_back(read_training_run(path));
  }
  if (runs.empty()) fail(ErrorCode::Usage, "no run to report; give one or several run folders");
  const Plotly plotly = plotly_for(options);
  Page page{.eyebrow = "Training runs",
            .title = "Training: ",
            .data = {},
            .chunks = {},
            .scripts = kTrainScripts};
  std::vector<std::size_t> group_of;
  const Json groups = groups_of(runs, group_of);
  for (std::size_t i = 0; i < groups.size(); ++i) {
    page.title += (i > 0 ? ", " : "") + groups[i].at("label").get<std::string>();
  }
  Json list = Json::array();
  for (std::size_t i = 0; i < runs.size(); ++i) {
    const TrainingRun& run = runs[i];
    list.push_back(
        {{"name", run.name},
         {"seed", run.seed},
         {"group", group_of[i]},
         {"device", run.device},
         {"base", base_of(run, runs)},
         {"parameters", run.parameters ? Json(*run.parameters) : Json()},
         {"chunk", pack({{"steps", run.steps}, {"evaluations", run.evaluations}}, page.chunks)}});
  }
  page.data = Json{{"runs", std::move(list)}, {"groups", groups}};
  write_page(page, out, plotly, options);
}

}  // namespace subspace
