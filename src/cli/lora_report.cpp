#include "report/lora_report.h"

#include "cli/lora.h"
#include "cli/page_command.h"

namespace subspace {

void add_lora_report(CLI::App& lora, const GlobalOptions& globals) {
  add_page_command(
      lora, globals,
      "One self-contained HTML page about one adapter, or several compared.\n\n"
      "  subspace lora heads --adapter ./lora --out run\n"
      "  subspace lora report run --out report.html\n"
      "  subspace lora report run-qv run-qkvo --out compared.html\n\n"
      "DIR holds heads.json (lora heads) and, where they were made, compose.json (lora compose) "
      "and\n"
      "causal.json (lora causal). Every figure says what one sees and how not to misread it, and\n"
      "saves its numbers as CSV. Printed: the path of the page.",
      "folders that `subspace lora heads` wrote", write_lora_report);
}

}  // namespace subspace
