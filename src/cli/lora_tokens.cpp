#include <cstdio>

#include "base/atomic_file.h"
#include "cli/lora.h"
#include "lora/layer_origin.h"
#include "lora/token_words.h"

namespace subspace {

namespace {

/// Whether `lora heads` was told to fold norms, so that its directions are the residual stream's.
bool has_folded(const std::filesystem::path& heads) {
  const Json json = read_json_file(heads);
  const Fields fields(json, heads.string());
  const auto options = fields.object_if("options");
  return options && options->boolean_or("fold_norm", false);
}

}  // namespace

void add_lora_tokens(CLI::App& lora, const GlobalOptions& globals) {
  auto folder = std::make_shared<std::string>(), base = std::make_shared<std::string>();
  CLI::App* command = lora.add_subcommand(
      "tokens",
      "The words nearest to the directions that an adapter's heads share, for the report; with\n"
      "`lora heads --vectors N` also to the strongest directions of each head.\n\n"
      "  subspace lora heads --adapter ./lora --base ./base --out run\n"
      "  subspace lora tokens run --base ./base\n\n"
      "Reads run/heads.json and heads.safetensors, and the embeddings, norms and vocabulary of "
      "the\n"
      "base; writes run/tokens.json. Printed: its path. Most directions are no words: compare each "
      "cosine with\n"
      "the one that random directions reach.");
  command->add_option("run", *folder, "folder that `subspace lora heads` wrote")->required();
  command->add_option("--base", *base, "MODEL that the adapter adapts")->required();
  command->callback([folder, base, &globals] {
    const std::filesystem::path run(*folder), out = run / "tokens.json";
    const Checkpoint model(resolve_model(*base));
    TokenOptions options;
    options.threads = chosen_threads(globals);
    const auto family = open_family(model);
    if (!has_folded(run / "heads.json")) {
      options.norms = [&](std::int64_t layer) { return layer_norms(*family, model, layer); };
    }
    const Json words = token_words(run / "heads.safetensors", model, options);
    write_file_atomically(out, words.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n");
    if (globals.json) {
      std::printf("%s\n", words.dump(-1, ' ', false, Json::error_handler_t::replace).c_str());
    } else {
      std::printf("%s\n", out.c_str());
    }
  });
}

}  // namespace subspace
