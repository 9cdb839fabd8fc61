#include "train/alignment.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "attention/family.h"
#include "attention/tensor_source.h"

namespace subspace::train {
namespace {

/// The leading right singular vectors of a [n, d] matrix as columns, [d, rank].
at::Tensor leading(const at::Tensor& matrix, std::int64_t rank) {
  const at::Tensor vectors = std::get<1>(at::linalg_eigh(at::mm(matrix.t(), matrix)));
  return vectors.narrow(1, vectors.size(1) - rank, rank);  // eigenvalues rise
}

/// [H d_v, d]: what the heads' results are multiplied with.
at::Tensor output_map(const AttentionLayer& layer) {
  if (!layer.ob.defined()) return layer.o.flatten(0, 1);
  const std::int64_t heads = layer.o.size(0), groups = layer.ob.size(0);
  const at::Tensor grouped = layer.o.reshape({groups, heads / groups * layer.o.size(1), -1});
  return at::bmm(grouped, layer.ob).flatten(0, 1);
}

double overlap(const at::Tensor& a, const at::Tensor& b) {
  return at::mm(a.t(), b).square().sum().item<double>() / static_cast<double>(a.size(1));
}

double mean(const std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) sum += value;
  return sum / static_cast<double>(values.size());
}

}  // namespace

Json output_alignment(const std::filesystem::path& run, int threads) {
  const Checkpoint checkpoint(run);
  const auto family = open_family(checkpoint);
  const std::int64_t layers = family->shape().layers, width = family->shape().hidden_size;
  std::vector<at::Tensor> maps;
  std::int64_t rank = std::max<std::int64_t>(1, width / 4);
  for (std::int64_t i = 0; i < layers; ++i) {
    const AttentionLayer layer = family->load(i, threads);
    maps.push_back(output_map(layer));
    rank = std::min(rank, maps.back().size(0));
    if (layer.ob.defined()) rank = std::min(rank, layer.ob.size(0) * layer.ob.size(1));
  }
  std::vector<at::Tensor> spaces;
  for (const at::Tensor& map : maps) spaces.push_back(leading(map, rank));
  std::vector<double> pairs, neighbours, with_embedding;
  for (std::int64_t i = 0; i < layers; ++i) {
    for (std::int64_t j = i + 1; j < layers; ++j) {
      pairs.push_back(
          overlap(spaces[static_cast<std::size_t>(i)], spaces[static_cast<std::size_t>(j)]));
      if (j == i + 1) neighbours.push_back(pairs.back());
    }
  }
  const char* embedding = "model.embed_tokens.weight";
  if (checkpoint.has(embedding)) {
    LoadingSource source(checkpoint, threads, /*allow_nonfinite=*/false);
    const at::Tensor table = source.get(embedding, checkpoint.info(embedding).shape);
    const at::Tensor space = leading(table, rank);
    for (const at::Tensor& other : spaces) with_embedding.push_back(overlap(other, space));
  }
  const auto d = static_cast<double>(width), share = static_cast<double>(rank) / d;
  Json out = Json::object();
  out["output_rank"] = rank;
  if (!pairs.empty()) out["overlap_of_layers"] = mean(pairs);
  if (!neighbours.empty()) out["overlap_of_neighbours"] = mean(neighbours);
  if (!with_embedding.empty()) out["overlap_with_embedding"] = mean(with_embedding);
  out["overlap_by_chance"] = share;
  out["overlap_by_chance_sd"] = std::sqrt(2 / ((d - 1) * (d + 2))) * (1 - share);
  return out;
}

}  // namespace subspace::train
