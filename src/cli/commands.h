#pragma once

#include <CLI/CLI.hpp>

#include "cli/globals.h"

namespace subspace {

/// Checks of an option whose message says what was found and what is expected: a whole number from
/// `least`; a finite number above zero.
CLI::Validator whole_from(std::int64_t least);
CLI::Validator above_zero();

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
