#pragma once

#include <c10/core/Device.h>

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "base/json.h"
#include "spectrum/layer_spectra.h"

namespace subspace {

struct RunOptions {
  std::filesystem::path model;  ///< the resolved folder
  std::string model_name;       ///< as the user wrote it
  std::filesystem::path out;
  std::vector<std::int64_t> layers;  ///< empty: all of the model's own layers
  SpectraOptions spectra;
  std::string conventions = "default";  ///< the name that summary.json states
  at::Device device = at::kCPU;
  int threads = 1;
  bool resume = false;
  bool force = false;
  /// Called with each finished layer's entry of summary.json, in order.
  std::function<void(const Json&)> on_layer;
};

/// Spectra of a model, layer by layer, into a folder (docs/files.md):
///   out/layers/<L>.safetensors, <L>.json   each layer, atomically, as soon as it is done
///   out/spectra.safetensors, summary.json, ranks.csv   when all are
/// The next layer is read and decoded while this one is computed; two layers are in memory at most.
///
/// With `resume`, layers that an earlier run finished are kept; its model and conventions must be
/// the same. spectra.safetensors and ranks.csv then have the bits of an undisturbed run. With
/// `force` whatever is there is replaced. Returns summary.json's contents.
///
/// Throws Busy (another run writes there), InvalidValue (results exist; other conventions; layer
/// out of range), Interrupted (finished layers kept), and whatever reading a model throws.
Json run_spectra(const RunOptions& options);

}  // namespace subspace
