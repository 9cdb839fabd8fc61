#pragma once

#include <CLI/CLI.hpp>

#include "cli/globals.h"

namespace subspace {

// One file a subcommand: each adds itself to the program and does its work in its callback.

void add_inspect(CLI::App& app, const GlobalOptions& globals);
void add_spectra(CLI::App& app, const GlobalOptions& globals);
void add_report(CLI::App& app, const GlobalOptions& globals);
void add_synth(CLI::App& app, const GlobalOptions& globals);
void add_export(CLI::App& app, const GlobalOptions& globals);
void add_forward(CLI::App& app, const GlobalOptions& globals);
void add_train(CLI::App& app, const GlobalOptions& globals);
void add_finetune(CLI::App& app, const GlobalOptions& globals);
void add_sweep(CLI::App& app, const GlobalOptions& globals);
void add_eval(CLI::App& app, const GlobalOptions& globals);
void add_init(CLI::App& app, const GlobalOptions& globals);
void add_match(CLI::App& app, const GlobalOptions& globals);
void add_ethos(CLI::App& app, const GlobalOptions& globals);
void add_lora(CLI::App& app, const GlobalOptions& globals);

}  // namespace subspace
