// What bench/ethos_kernels.cpp measures with: shapes, random data, the kernels' parameters over it,
// the bytes they ask for, and the table of results.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/random.h"
#include "kernels/batch_norm.h"
#include "kernels/ethos_experts.h"
#include "kernels/expert_grad.h"

namespace subspace::kernels {

struct Shape {
  std::int64_t tokens, experts, width, heads, k, side;
  std::int64_t selections() const { return heads * k; }
  std::int64_t chosen() const { return tokens * selections(); }
};

/// The batch norm of the queries, as wide for each head as the paper's.
struct Norm {
  ColumnMoments moments;
  BatchNormHalves forward;
  BatchNormHalvesGrad backward;
  double bytes;  ///< of x

  /// values(n) and floats(n) give memory of n elements and of n floats.
  template <typename Values, typename Floats>
  Norm(const Shape& s, Element element, const Values& values, const Floats& floats) {
    const std::int64_t half = 256, count = s.tokens * s.heads * half, width = s.heads * 2 * half;
    bytes = static_cast<double>(2 * count * element_bytes(element));
    forward = {.x = values(2 * count),
               .mean = floats(width),
               .variance = floats(width),
               .weight = floats(width),
               .bias = floats(width),
               .first = values(count),
               .second = values(count),
               .rows = s.tokens,
               .heads = s.heads,
               .half = half,
               .eps = 1e-5,
               .element = element};
    float* partial = floats(column_moments_workspace(s.tokens, width));
    moments = {.x = forward.x,
               .mean = const_cast<float*>(forward.mean),
               .variance = const_cast<float*>(forward.variance),
               .partial = partial,
               .rows = s.tokens,
               .width = width,
               .element = element};
    backward = {.forward = forward,
                .of_batch = true,
                .grad_first = forward.first,
                .grad_second = forward.second,
                .grad_x = values(2 * count),
                .grad_weight = floats(width),
                .grad_bias = floats(width),
                .partial = partial};
  }
};

/// Prints and keeps what was measured.
class Table {
 public:
  explicit Table(std::int64_t tokens) : tokens_(tokens) {
    std::printf("%-44s %9s %9s %8s %9s %9s\n", "kernel", "ms", "min", "GB", "GB/s", "us/token");
  }
  /// Returns the median.
  double add(const std::string& name, std::vector<double> ms, double bytes) {
    std::sort(ms.begin(), ms.end());
    const double median = ms[ms.size() / 2];
    std::printf("%-44s %9.4f %9.4f %8.3f %9.1f %9.5f\n", name.c_str(), median, ms[0], bytes / 1e9,
                bytes / median / 1e6, 1e3 * median / static_cast<double>(tokens_));
    std::fflush(stdout);
    rows_.push_back({{"kernel", name},
                     {"ms", median},
                     {"min_ms", ms[0]},
                     {"max_ms", ms.back()},
                     {"bytes", bytes}});
    return median;
  }
  void line(const char* name, double ms) {
    std::printf("%-44s %9.4f %37.5f\n", name, ms, 1e3 * ms / static_cast<double>(tokens_));
    rows_.push_back({{"kernel", name}, {"ms", ms}});
  }
  const Json& rows() const { return rows_; }

 private:
  std::int64_t tokens_;
  Json rows_ = Json::array();
};

/// Element bytes of normal values: `distinct` of them, repeated.
inline std::vector<std::uint8_t> normal_bytes(Element element, std::int64_t count, double scale,
                                              std::uint64_t seed) {
  Random random(seed);
  std::vector<std::uint8_t> bytes(static_cast<std::size_t>(count * element_bytes(element)));
  for (std::int64_t i = 0; i < count; ++i) {
    const auto value = static_cast<float>(scale * random.normal());
    if (element == Element::f32) {
      std::memcpy(&bytes[static_cast<std::size_t>(4 * i)], &value, 4);
    } else {
      const std::uint16_t bits = bf16_bits(value);
      std::memcpy(&bytes[static_cast<std::size_t>(2 * i)], &bits, 2);
    }
  }
  return bytes;
}

/// Uniform for power 1; the larger, the more selections go to few experts.
inline std::vector<std::int64_t> random_index(const Shape& s, double power) {
  Random random(7);
  std::vector<std::int64_t> index(static_cast<std::size_t>(s.chosen()));
  for (auto& expert : index) {
    expert = static_cast<std::int64_t>(std::pow(random.uniform(), power) *
                                       static_cast<double>(s.experts));
  }
  return index;
}

/// Pointers of one layer's data, on the device or the host.
struct Data {
  void *xp, *grad, *table, *pre, *acc, *grad_xp, *grad_table;
  std::int64_t* index;
  float *scores, *p, *grad_scores;
  RowWeights* weights;
  std::uint32_t *expert, *selection, *offsets;
  void* workspace;
  float* partial;

  EthosExperts forward(const Shape& s, Element element) const {
    return {.xp = xp,
            .scores = scores,
            .index = index,
            .table = table,
            .acc = acc,
            .p = p,
            .tokens = s.tokens,
            .selections = s.selections(),
            .experts = s.experts,
            .width = s.width,
            .element = element};
  }
  EthosExpertsGrad backward(const Shape& s, Element element) const {
    return {.grad = grad,
            .scores = scores,
            .index = index,
            .table = table,
            .p = p,
            .grad_scores = grad_scores,
            .weights = weights,
            .grad_xp = grad_xp,
            .tokens = s.tokens,
            .selections = s.selections(),
            .experts = s.experts,
            .width = s.width,
            .element = element};
  }
  ExpertLists lists(const Shape& s) const {
    return {.index = index,
            .count = s.chosen(),
            .experts = s.experts,
            .expert = expert,
            .selection = selection,
            .offsets = offsets,
            .workspace = workspace};
  }
  ExpertGrad sums(const Shape& s, Element element, bool with_pre) const {
    return {.grad = grad,
            .vectors = xp,
            .weights = weights,
            .lists = lists(s),
            .output = grad_table,
            .input = nullptr,
            .pre = with_pre ? pre : nullptr,
            .partial = partial,
            .tokens = s.tokens,
            .selections = s.selections(),
            .width = s.width,
            .element = element};
  }
};

/// Bytes that the walks ask for, from wherever: a row a selection and what goes with it.
struct Bytes {
  double walk, forward, backward, lists, sums, pre;
  Bytes(const Shape& s, Element element) {
    const auto size = static_cast<double>(element_bytes(element));
    const auto chosen = static_cast<double>(s.chosen());
    const double row = static_cast<double>(s.width) * size;
    const double token_rows = static_cast<double>(s.tokens) * row;
    walk = chosen * row;
    forward = walk + 2 * token_rows + chosen * (8 + 4 + 4);
    backward = walk + 2 * token_rows + chosen * (8 + 4 + 4 + 4 + 8);
    lists = chosen * (8 + 8 + 3 * 16 + 8);
    sums = 2 * walk + static_cast<double>(s.experts) * row + chosen * (4 + 8);
    pre = static_cast<double>(s.experts) * row;
  }
};

}  // namespace subspace::kernels
