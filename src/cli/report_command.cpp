#include "base/error.h"
#include "cli/page_command.h"
#include "report/experts_report.h"
#include "report/sweep_report.h"
#include "report/train_report.h"

namespace subspace {
namespace {

namespace fs = std::filesystem;

enum class Kind { spectra, training, sweep, experts };

const char* name_of(Kind kind) {
  return kind == Kind::sweep      ? "a sweep"
         : kind == Kind::experts  ? "what `subspace ethos inspect` found"
         : kind == Kind::training ? "training runs"
                                  : "spectra of `subspace spectra`";
}

/// What is there in the place of results, and what to do about it.
[[noreturn]] void refuse(const fs::path& folder) {
  std::error_code status;
  if (!fs::exists(folder, status)) {
    fail(ErrorCode::NotFound,
         "{}: no such folder; expected one that `subspace spectra`, `train`, "
         "`finetune`, `sweep` or `ethos inspect` has written",
         folder.string());
  }
  if (!fs::is_directory(folder, status)) {
    fail(ErrorCode::NotFound, "{}: a file; expected the folder that holds results",
         folder.string());
  }
  if (fs::exists(folder / "heads.json", status)) {
    fail(ErrorCode::NotFound,
         "{}: holds what `subspace lora heads` found; `subspace lora report` "
         "makes its page",
         folder.string());
  }
  fail(ErrorCode::NotFound,
       "{}: no results in this folder{}; expected summary.json (of `subspace spectra`; a run that "
       "was interrupted goes on with --resume), run.json there or below (`train`, `finetune`), "
       "sweep.json (`sweep`) or experts.json (`ethos inspect`)",
       folder.string(), fs::exists(folder / "meta.json", status) ? ", but data to train on" : "");
}

Kind kind_of(const fs::path& folder) {
  std::error_code status;
  if (fs::exists(folder / "summary.json", status)) return Kind::spectra;
  if (fs::exists(folder / "sweep.json", status)) return Kind::sweep;
  if (fs::exists(folder / "experts.json", status)) return Kind::experts;
  if (holds_training(folder)) return Kind::training;
  refuse(folder);
}

void write_page_of(const std::vector<fs::path>& folders, const fs::path& out,
                   const ReportOptions& options) {
  const Kind kind = kind_of(folders.front());
  for (const fs::path& folder : folders) {
    if (const Kind other = kind_of(folder); other != kind) {
      fail(ErrorCode::Usage, "{} holds {}, {} {}; a page is of one kind", folders.front().string(),
           name_of(kind), folder.string(), name_of(other));
    }
  }
  if (kind == Kind::spectra) return write_report(folders, out, options);
  if (kind == Kind::training) return write_train_report(folders, out, options);
  if (folders.size() > 1 && kind == Kind::experts) {
    fail(ErrorCode::Usage, "a page is of the experts of one model; make one of each");
  }
  if (folders.size() > 1) {
    fail(ErrorCode::Usage, "a page is of one sweep; to compare runs of several give their runs/*");
  }
  if (kind == Kind::experts) return write_experts_report(folders.front(), out, options);
  write_sweep_report(folders.front(), out, options);
}

}  // namespace

void add_report(CLI::App& app, const GlobalOptions& globals) {
  add_page_command(
      app, globals,
      "One self-contained HTML page from result folders; several are compared.\n\n"
      "  subspace report run --out report.html\n"
      "  subspace report base finetuned --out compared.html\n"
      "  subspace report experiment --out training.html     training runs, below it too\n\n"
      "Folders of `spectra`, of `train` and `finetune` (curves; seeds of one configuration as "
      "one),\n"
      "or of one `sweep` or one `ethos inspect`. The page opens from disk, offline, and says of "
      "each figure what one "
      "sees\n"
      "and how not to misread it; docs/report.md shows it. Printed: the path of the page.",
      "folders that `subspace spectra`, `train`, `finetune`, `sweep` or `ethos inspect` wrote",
      write_page_of);
}

}  // namespace subspace
