#pragma once

#include <CLI/CLI.hpp>

#include "cli/globals.h"
#include "lora/adapted_model.h"

namespace subspace {

/// What every command of `subspace lora` is given: which adapter, and which base.
struct LoraInput {
  std::string adapter;
  std::string base;  ///< empty: what base_model_name_or_path names
  AdapterOptions options;
};

/// --adapter, --base, --strict, --base-is-residual.
void add_lora_input(CLI::App& command, LoraInput& input);

Adapter open_adapter(const LoraInput& input);
/// The adapter on its base. Throws NotFound saying where the base was looked for, and with
/// `need_weights` also if the base is a configuration alone.
AdaptedModel open_adapted(const LoraInput& input, bool need_weights);

/// What the adapter is and what it is on, in short: "adapter", "type", "rank", "alpha", "scale",
/// "target_modules", "parameters", "base" {"folder", "family", ..}, "layers" (changed), "notes".
/// The files of `lora` carry it under "model", and the report shows it.
Json lora_facts(const AdaptedModel& model);

// The group's commands, one file each.
void add_lora_causal(CLI::App& lora, const GlobalOptions& globals);
void add_lora_compose(CLI::App& lora, const GlobalOptions& globals);
void add_lora_heads(CLI::App& lora, const GlobalOptions& globals);
void add_lora_inspect(CLI::App& lora, const GlobalOptions& globals);
void add_lora_report(CLI::App& lora, const GlobalOptions& globals);
void add_lora_rope(CLI::App& lora, const GlobalOptions& globals);
void add_lora_selftest(CLI::App& lora, const GlobalOptions& globals);
void add_lora_tokens(CLI::App& lora, const GlobalOptions& globals);

}  // namespace subspace
