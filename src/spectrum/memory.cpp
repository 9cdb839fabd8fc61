#include "spectrum/memory.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>

namespace subspace {

std::uint64_t resident_memory() {
  std::uint64_t size = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> size >> resident;
  return resident * static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
}

std::uint64_t peak_memory() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<std::uint64_t>(usage.ru_maxrss) * 1024;
}

std::uint64_t memory_bound(const ModelShape& shape, const SpectraOptions& options,
                           std::uint64_t layer_bytes, std::uint64_t resident) {
  if (options.exact) return 0;
  constexpr std::uint64_t kLibraries = std::uint64_t{512} << 20;
  std::int64_t head = 0, width = shape.hidden_size;
  for (const auto& [name, size] : shape.dims) {
    if (name.find("lora_rank") == std::string::npos) {
      head = std::max(head, size);
    } else {
      width = std::max(width, size);
    }
  }
  const auto square = [](std::int64_t side) {
    return sizeof(double) * static_cast<std::uint64_t>(side) * static_cast<std::uint64_t>(side);
  };
  const bool copied = options.fold_norms || options.space == Space::model;
  return resident + (copied ? 3 : 2) * layer_bytes + 3 * square(width) +
         8 * static_cast<std::uint64_t>(shape.heads) * square(head) + kLibraries;
}

Json memory_json(std::uint64_t bound, std::uint64_t layer_bytes) {
  Json json = Json::object();
  json["peak_bytes"] = peak_memory();
  json["layer_bytes"] = layer_bytes;
  json["bound_bytes"] = bound > 0 ? Json(bound) : Json(nullptr);
  json["bound"] =
      bound > 0 ? "two layers in float64 (three if norms are folded or maps carried to model "
                  "space), three squares of the model's width, eight a head, and the program; "
                  "whatever the number of layers"
                : "none stated: with --exact the fused maps are formed, and a GPU has memory of "
                  "its own";
  return json;
}

}  // namespace subspace
