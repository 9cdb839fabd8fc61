#include <cmath>
#include <cstdio>

#include "base/error.h"
#include "cli/lora.h"
#include "lora/selftest.h"

namespace subspace {
namespace {

struct SelftestArguments {
  std::int64_t cases = 20;
  std::uint64_t seed = 1;
};

void selftest(const SelftestArguments& arguments, const GlobalOptions& globals) {
  chosen_threads(globals);
  Json rows = Json::array();
  std::int64_t failed = 0;
  if (!globals.json) {
    std::printf("%-4s %-80s %9s %9s\n", "", "property", "allowed", "seen");
  }
  for (const Property& property : properties()) {
    // Statistics take thousands of samples a case, and more cases would find the odd outlier.
    const PropertyResult result =
        check(property, property.id == "P17" ? 1 : arguments.cases, arguments.seed);
    failed += result.passed ? 0 : 1;
    const Json seen = std::isfinite(result.error) ? Json(result.error) : Json(nullptr);
    rows.push_back({{"id", property.id},
                    {"title", property.title},
                    {"tolerance", property.tolerance},
                    {"largest_error", seen},
                    {"cases", result.cases},
                    {"passed", result.passed}});
    if (globals.json) continue;
    std::printf("%-4s %-80s %9.0e %9.1e%s\n", property.id.c_str(), property.title.c_str(),
                property.tolerance, result.error, result.passed ? "" : "  FAILED");
    std::fflush(stdout);
  }
  if (globals.json) {
    const Json result = {{"seed", arguments.seed}, {"properties", std::move(rows)}};
    std::printf("%s\n", result.dump().c_str());
  } else {
    std::printf("%zu properties, %lld failed\n", properties().size(),
                static_cast<long long>(failed));
  }
  if (failed > 0) {
    fail(ErrorCode::Internal,
         "{} of {} properties do not hold on this machine; please report the table above with "
         "`subspace --version`",
         failed, properties().size());
  }
}

}  // namespace

void add_lora_selftest(CLI::App& lora, const GlobalOptions& globals) {
  auto arguments = std::make_shared<SelftestArguments>();
  CLI::App* command = lora.add_subcommand(
      "selftest",
      "The algebra checked on this machine: every property on random small models against\n"
      "matrices multiplied out, with the largest error seen. Exit status 1 if one does not hold.");
  command->add_option("--cases", arguments->cases, "random models a property")
      ->check(CLI::Range(1, 100000));
  command->add_option("--seed", arguments->seed, "of the first");
  command->callback([arguments, &globals] { selftest(*arguments, globals); });
}

}  // namespace subspace
