#include "cli/page_command.h"

namespace subspace {

void add_report(CLI::App& app, const GlobalOptions& globals) {
  add_page_command(
      app, globals,
      "One self-contained HTML page from result folders; several are compared.\n\n"
      "  subspace report run --out report.html\n"
      "  subspace report base finetuned --out compared.html\n\n"
      "The page opens from disk, offline, and says of each figure what one sees and how not to\n"
      "misread it; docs/report.md shows it. Printed: the path of the page.",
      "folders that `subspace spectra` wrote", write_report);
}

}  // namespace subspace
