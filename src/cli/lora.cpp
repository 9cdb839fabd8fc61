#include "cli/lora.h"

#include <cstdlib>

#include "base/error.h"
#include "cli/commands.h"

namespace subspace {

void add_lora_input(CLI::App& command, LoraInput& input) {
  command
      .add_option("--adapter", input.adapter,
                  "folder with adapter_config.json and adapter_model.safetensors, or\n"
                  "org/name[@revision] in the Hugging Face cache")
      ->required();
  command.add_option(
      "--base", input.base,
      "the model that it adapts: a folder (config.json alone is enough for some), or\n"
      "a name in the cache; left out: what adapter_config.json names");
  command.add_flag("--strict", input.options.strict,
                   "refuse fields of adapter_config.json that are not known here");
  command.add_flag("--base-is-residual", input.options.base_is_residual,
                   "the base given is the residual of an initialisation that changes it (PiSSA,\n"
                   "OLoRA, ...)");
}

Adapter open_adapter(const LoraInput& input) {
  return Adapter(resolve_adapter(input.adapter), input.options);
}

AdaptedModel open_adapted(const LoraInput& input, bool need_weights) {
  Adapter adapter = open_adapter(input);
  std::string why;
  const auto base = find_base(adapter, input.base, why);
  if (!base) fail(ErrorCode::NotFound, "{}: {}", input.adapter, why);
  AdaptedModel model(*base, std::move(adapter));
  if (need_weights && !model.has_weights()) {
    fail(ErrorCode::NotFound,
         "{}: there is a config.json but no weights; this needs the base's weights (`lora inspect` "
         "does not)",
         base->string());
  }
  return model;
}

void add_lora(CLI::App& app, const GlobalOptions& globals) {
  CLI::App* lora = app.add_subcommand(
      "lora",
      "What a LoRA adapter does to each head, and to the composition of heads.\n\n"
      "  subspace lora inspect --adapter ADAPTER              what it is\n"
      "  subspace lora heads --adapter ADAPTER --out DIR      each head: what is new, what is "
      "more\n"
      "  subspace lora compose --adapter ADAPTER --out DIR    which heads it rewires\n"
      "  subspace lora causal ... --data DIR --out DIR        what each part does to the loss\n"
      "  subspace lora report DIR --out report.html           a page that shows and explains it\n\n"
      "ADAPTER is a folder as PEFT writes it (LoRA, rsLoRA, DoRA), or a name in the Hugging Face\n"
      "cache; docs/lora.md has the algebra, the files and what is refused.");
  // Matrices of a layer are large, written once and read a few times: a fifth of a screen's time is
  // the system mapping small pages for them. PyTorch asks for large ones if this says so, and reads
  // it before its first tensor.
  lora->preparse_callback([](std::size_t) { ::setenv("THP_MEM_ALLOC_ENABLE", "1", 0); });
  lora->require_subcommand(1);
  lora->fallthrough();
  add_lora_inspect(*lora, globals);
  add_lora_heads(*lora, globals);
  add_lora_rope(*lora, globals);
  add_lora_compose(*lora, globals);
  add_lora_causal(*lora, globals);
  add_lora_tokens(*lora, globals);
  add_lora_report(*lora, globals);
  add_lora_selftest(*lora, globals);
}

}  // namespace subspace
