#pragma once

#include <c10/core/Device.h>

#include <string>

namespace subspace {

/// Options that stand before the subcommand.
struct GlobalOptions {
  std::string device = "auto";
  int threads = 0;
  bool quiet = false;
  bool json = false;
};

/// --device auto|cpu|cuda[:i] as a device that is there; auto is a GPU if there is one. Throws
/// InvalidValue saying what there is.
at::Device chosen_device(const GlobalOptions& globals);

/// --threads, or as many as there are cores, given to ATen as well.
int chosen_threads(const GlobalOptions& globals);

/// "0-5,7" -> 0..5, 7, ascending, each once. Throws Usage for anything else.
std::vector<std::int64_t> parse_layers(const std::string& text);

/// "a:b[:step]" (b excluded, as in Python) or "0,1,2,4". Throws Usage for anything else.
std::vector<std::int64_t> parse_offsets(const std::string& text);

}  // namespace subspace
