#include "train/memory.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <new>

#include "base/error.h"
#include "base/progress.h"
#include "train/device_info.h"
#include "train/flops.h"

namespace subspace::train {

bool is_out_of_memory(const std::exception& error) {
  if (dynamic_cast<const c10::OutOfMemoryError*>(&error) != nullptr) return true;
  if (dynamic_cast<const std::bad_alloc*>(&error) != nullptr) return true;
  const auto* other = dynamic_cast<const c10::Error*>(&error);
  return other != nullptr &&
         std::string(other->what_without_backtrace()).find("can't allocate memory") !=
             std::string::npos;
}

std::int64_t largest_divisor(std::int64_t number, std::int64_t limit) {
  for (std::int64_t divisor = std::min(number, limit); divisor > 1; --divisor) {
    if (number % divisor == 0) return divisor;
  }
  return 1;
}

std::string no_memory_for_rows(const Settings& settings, c10::Device device, std::int64_t rows) {
  const std::string what =
      fmt::format("out of memory of {} with {} rows a pass", device.str(), settings.batch_size);
  if (rows == 0) {
    return what +
           "; not even one row fits beside the model, its gradients and AdamW's state: take "
           "a smaller model or a larger device";
  }
  if (rows < 0) {
    return what + "; a smaller batch_size with as much more accumulate makes steps of as many rows";
  }
  const std::int64_t taken = largest_divisor(settings.batch_size, rows);
  return fmt::format(
      "{}; {} fit: --set batch_size={} --set accumulate={} makes steps of as many rows", what, rows,
      taken, settings.batch_size / taken * settings.accumulate);
}

std::string no_memory_for_model(const nn::ModelConfig& model, const Settings& settings,
                                c10::Device device, bool frozen) {
  const bool narrow = chosen_dtype(settings, device) == c10::ScalarType::BFloat16;
  // A number, its float32 master if it is none itself, its gradient and two moments.
  const std::int64_t each = frozen ? (narrow ? 2 : 4) : (narrow ? 2 + 4 : 4) + 4 + 8;
  const std::int64_t parameters = counts_of(model, settings).parameters;
  return fmt::format(
      "out of memory of {} while the model was set up: {} parameters take {} at least{}; take a "
      "smaller model or a larger device",
      device.str(), parameters, format_bytes(static_cast<std::uint64_t>(parameters * each)),
      frozen ? "" : " with their gradients and AdamW's state");
}

}  // namespace subspace::train
