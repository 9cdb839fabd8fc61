#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "base/json.h"
#include "checkpoint/safetensors.h"
#include "spectrum/layer_spectra.h"

namespace subspace {

inline const std::vector<double> kTaus = {0.99, 0.999};

/// Ranks at which the energy lost is tabulated: below n, the powers of two and, from 96 on, the
/// numbers half way between them.
std::vector<std::int64_t> stated_ranks(std::size_t n);

/// The singular values that chance gives a chain of Gaussian matrices, computed once a chain.
class RandomSpectra {
 public:
  const std::vector<double>& of(const std::vector<std::int64_t>& chain);

 private:
  std::map<std::vector<std::int64_t>, std::vector<double>> known_;
};

/// One layer's entry of summary.json: for every map the shape, the metrics of each head (columns)
/// and of the stack, and the same of a random matrix (or product) of that shape.
Json layer_json(std::int64_t layer, const std::vector<MapSpectra>& spectra, RandomSpectra& random);

/// Writes layers.<L>.<MAP>.{heads,stack} of one layer, atomically.
void write_layer_values(const std::filesystem::path& path, std::int64_t layer,
                        const std::vector<MapSpectra>& spectra);

/// Joins layer files into one, tensor by tensor, atomically.
void join_values(const std::vector<std::filesystem::path>& parts, const std::filesystem::path& out);

/// ranks.csv from the entries of summary.json's "layers".
std::string ranks_csv(const Json& layers);

}  // namespace subspace
