#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "report/report.h"

namespace subspace {

/// What writes a page from result folders: write_report, write_lora_report.
using WritePage = void (*)(const std::vector<std::filesystem::path>& runs,
                           const std::filesystem::path& out, const ReportOptions& options);

/// A subcommand `report` that writes a page and prints its path; `runs`: what the folders are.
void add_page_command(CLI::App& app, const GlobalOptions& globals, const std::string& description,
                      const std::string& runs, WritePage write);

}  // namespace subspace
