#include "cli/globals.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/detail/CUDAHooksInterface.h>

#include <algorithm>
#include <charconv>
#include <optional>
#include <thread>

#include "base/error.h"

namespace subspace {
namespace {

std::optional<std::int64_t> whole_number(std::string_view text) {
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 0) return std::nullopt;
  return value;
}

std::vector<std::string> split(const std::string& text, char by) {
  std::vector<std::string> parts(1);
  for (const char c : text) {
    if (c == by) {
      parts.emplace_back();
    } else {
      parts.back() += c;
    }
  }
  return parts;
}

constexpr std::int64_t kMostOffsets = 1 << 20;

}  // namespace

at::Device chosen_device(const GlobalOptions& globals) {
  const std::int64_t gpus = at::hasCUDA() ? at::detail::getCUDAHooks().deviceCount() : 0;
  if (globals.device == "auto") return gpus > 0 ? at::Device(at::kCUDA, 0) : at::Device(at::kCPU);
  if (globals.device == "cpu") return at::kCPU;
  std::optional<std::int64_t> index;
  if (globals.device == "cuda") index = 0;
  if (globals.device.starts_with("cuda:")) index = whole_number(globals.device.substr(5));
  if (!index) {
    fail(ErrorCode::Usage, "--device {}: expected auto, cpu, cuda or cuda:i", globals.device);
  }
  if (*index >= gpus) {
    fail(ErrorCode::InvalidValue, "--device {}: there {} here{}", globals.device,
         gpus == 1 ? "is 1 GPU" : fmt::format("are {} GPUs", gpus),
         at::hasCUDA() ? "" : " (this PyTorch was built without CUDA)");
  }
  return at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(*index));
}

int chosen_threads(const GlobalOptions& globals) {
  const int cores = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  const int threads = globals.threads > 0 ? globals.threads : cores;
  at::set_num_threads(threads);
  return threads;
}

std::vector<std::int64_t> parse_layers(const std::string& text) {
  std::vector<std::int64_t> layers;
  for (const std::string& part : split(text, ',')) {
    const auto ends = split(part, '-');
    const auto first = whole_number(ends.front());
    const auto last = whole_number(ends.back());
    if (ends.size() > 2 || !first || !last || *last < *first || *last > 100000) {
      fail(ErrorCode::Usage, "--layers {}: expected layers and ranges such as 0-5,7", text);
    }
    for (std::int64_t layer = *first; layer <= *last; ++layer) layers.push_back(layer);
  }
  std::sort(layers.begin(), layers.end());
  layers.erase(std::unique(layers.begin(), layers.end()), layers.end());
  return layers;
}

std::vector<std::int64_t> parse_offsets(const std::string& text) {
  std::vector<std::int64_t> offsets;
  const auto range = split(text, ':');
  if (range.size() == 2 || range.size() == 3) {
    const auto first = whole_number(range[0]), last = whole_number(range[1]);
    const auto step = range.size() == 3 ? whole_number(range[2]) : std::optional<std::int64_t>(1);
    if (first && last && step && *step > 0 && *last > *first && *last - *first <= kMostOffsets) {
      for (std::int64_t delta = *first; delta < *last; delta += *step) offsets.push_back(delta);
      return offsets;
    }
  } else if (range.size() == 1) {
    for (const std::string& part : split(text, ',')) {
      const auto delta = whole_number(part);
      if (!delta) break;
      offsets.push_back(*delta);
    }
    if (offsets.size() == split(text, ',').size()) {
      std::sort(offsets.begin(), offsets.end());
      offsets.erase(std::unique(offsets.begin(), offsets.end()), offsets.end());
      return offsets;
    }
  }
  fail(ErrorCode::Usage,
       "--offsets {}: expected a range such as 0:257 or 0:257:8, or a list 0,1,16", text);
}

}  // namespace subspace
