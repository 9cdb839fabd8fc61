#include <cstdio>

#include "base/atomic_file.h"
#include "cli/lora.h"
#include "lora/token_words.h"

namespace subspace {

void add_lora_tokens(CLI::App& lora, const GlobalOptions& globals) {
  auto folder = std::make_shared<std::string>(), base = std::make_shared<std::string>();
  CLI::App* command = lora.add_subcommand(
      "tokens",
      "The words nearest to the directions that an adapter's heads share, for the report.\n\n"
      "  subspace lora heads --adapter ./lora --base ./base --out run\n"
      "  subspace lora tokens run --base ./base\n\n"
      "Reads run/heads.safetensors, and the input embedding and vocabulary of the base; writes\n"
      "run/tokens.json. Printed: its path. Most directions are no words: compare each cosine with\n"
      "the one that random directions reach.");
  command->add_option("run", *folder, "folder that `subspace lora heads` wrote")->required();
  command->add_option("--base", *base, "MODEL that the adapter adapts")->required();
  command->callback([folder, base, &globals] {
    const std::filesystem::path run(*folder), out = run / "tokens.json";
    const Checkpoint model(resolve_model(*base));
    const Json words = token_words(run / "heads.safetensors", model, chosen_threads(globals));
    write_file_atomically(out, words.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n");
    if (globals.json) {
      std::printf("%s\n", words.dump(-1, ' ', false, Json::error_handler_t::replace).c_str());
    } else {
      std::printf("%s\n", out.c_str());
    }
  });
}

}  // namespace subspace
