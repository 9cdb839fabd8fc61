#include "kernels/product_key_topk.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/over_batch.h"

namespace subspace::kernels {
namespace {

constexpr std::int64_t kRows = 16;  // a thread takes at a time
/// sum_i floor(64 / (i + 1)) is 280.
constexpr std::size_t kMostPairs = 280;

float value_at(const void* row, Element element, std::int64_t i) {
  return element == Element::f32 ? static_cast<const float*>(row)[i]
                                 : bf16_value(static_cast<const std::uint16_t*>(row)[i]);
}

/// NaN is the largest and ties with itself.
bool larger(float a, float b) { return a > b || (std::isnan(a) && !std::isnan(b)); }

struct Entry {
  float value;
  std::int32_t at;
};

/// The k largest of a side, descending, equal ones in ascending order of place.
void best_of_side(const void* row, Element element, std::int64_t side, std::int64_t k,
                  Entry* best) {
  std::int64_t have = 0;
  float least = 0;  // of the k that are there
  for (std::int64_t i = 0; i < side; ++i) {
    const float value = value_at(row, element, i);
    if (have == k && !larger(value, least)) continue;
    std::int64_t place = have < k ? have++ : k - 1;
    for (; place > 0 && larger(value, best[place - 1].value); --place) {
      best[place] = best[place - 1];
    }
    best[place] = {value, static_cast<std::int32_t>(i)};
    least = best[have - 1].value;
  }
}

/// A pair's sum, exactly: sum + rest.
struct Pair {
  float sum;
  float rest;
  std::int64_t index;
};

Pair add(const Entry& a, const Entry& b, std::int64_t side) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  Pair pair{a.value + b.value, 0, std::int64_t{a.at} * side + b.at};
  if (std::isnan(pair.sum) && !std::isnan(a.value) && !std::isnan(b.value)) pair.sum = -kInfinity;
  if (std::isfinite(pair.sum)) {
    // Knuth's two-sum; each operation is rounded to float32 on every processor built for.
    const float other = pair.sum - a.value;
    pair.rest = (a.value - (pair.sum - other)) + (b.value - other);
  }
  return pair;
}

bool before(const Pair& a, const Pair& b) {
  if (larger(a.sum, b.sum)) return true;
  if (larger(b.sum, a.sum)) return false;
  return a.rest != b.rest ? a.rest > b.rest : a.index < b.index;
}

bool shown_before(const Pair& a, const Pair& b) {
  if (larger(a.sum, b.sum)) return true;
  return !larger(b.sum, a.sum) && a.index < b.index;
}

void softmax(const float* scores, float* weights, std::int64_t k) {
  float sum = 0;
  for (std::int64_t j = 0; j < k; ++j) {
    weights[j] = std::exp(scores[j] - scores[0]);
    sum += weights[j];
  }
  for (std::int64_t j = 0; j < k; ++j) weights[j] /= sum;
}

void route(const ProductKeyTopk& p, std::int64_t row) {
  std::array<Entry, kMostWinners> first;
  std::array<Entry, kMostWinners> second;
  std::array<Pair, kMostPairs> pairs;
  const std::int64_t offset = row * p.side * element_bytes(p.element);
  best_of_side(static_cast<const char*>(p.s1) + offset, p.element, p.side, p.k, first.data());
  best_of_side(static_cast<const char*>(p.s2) + offset, p.element, p.side, p.k, second.data());
  const auto sum = [&](std::int64_t i, std::int64_t j) {
    return add(first[static_cast<std::size_t>(i)], second[static_cast<std::size_t>(j)], p.side);
  };
  // At least k sums reach that of (i, j) where (i + 1)(j + 1) >= k; the best such bound leaves few.
  float bound = -std::numeric_limits<float>::infinity();
  for (std::int64_t i = 0; i < p.k; ++i) {
    const float reached = sum(i, (p.k + i) / (i + 1) - 1).sum;
    if (larger(reached, bound)) bound = reached;
  }
  auto end = pairs.begin();
  for (std::int64_t i = 0; i < p.k; ++i) {
    for (std::int64_t j = 0; (i + 1) * (j + 1) <= p.k; ++j) {
      const Pair pair = sum(i, j);
      if (!larger(bound, pair.sum)) *end++ = pair;
    }
  }
  const auto winners = pairs.begin() + p.k;
  std::nth_element(pairs.begin(), winners - 1, end, before);
  std::sort(pairs.begin(), winners, shown_before);
  for (std::int64_t j = 0; j < p.k; ++j) {
    p.scores[row * p.k + j] = pairs[static_cast<std::size_t>(j)].sum;
    p.index[row * p.k + j] = pairs[static_cast<std::size_t>(j)].index;
  }
  if (p.weights != nullptr) softmax(p.scores + row * p.k, p.weights + row * p.k, p.k);
}

void put(void* row, Element element, std::int64_t at, float value) {
  if (element == Element::f32) {
    static_cast<float*>(row)[at] = value;
  } else {
    static_cast<std::uint16_t*>(row)[at] = bf16_bits(value);
  }
}

/// One side of one row, of `side` places. A place's sum is formed at its first winner.
void scatter(void* out, const ProductKeyTopkGrad& p, const std::int64_t* places,
             const float* grads) {
  std::memset(out, 0, static_cast<std::size_t>(p.side * element_bytes(p.element)));
  for (std::int64_t j = 0; j < p.k; ++j) {
    const std::int64_t mine = places[j];
    if (std::find(places, places + j, mine) != places + j) continue;
    float sum = 0;
    for (std::int64_t i = j; i < p.k; ++i) sum += places[i] == mine ? grads[i] : 0;
    put(out, p.element, mine, sum);
  }
}

/// Both sides of one row: all NaN if a winner is none of the side^2 pairs.
void scatter_row(const ProductKeyTopkGrad& p, std::int64_t row, const float* grads) {
  const std::int64_t bytes = p.side * element_bytes(p.element);
  void* const sides[2] = {static_cast<char*>(p.grad_s1) + row * bytes,
                          static_cast<char*>(p.grad_s2) + row * bytes};
  std::array<std::int64_t, kMostWinners> places[2];
  for (std::int64_t j = 0; j < p.k; ++j) {
    const std::int64_t index = p.index[row * p.k + j];
    if (index < 0 || index >= p.side * p.side) {
      constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
      for (void* side : sides) {
        for (std::int64_t i = 0; i < p.side; ++i) put(side, p.element, i, kNan);
      }
      return;
    }
    places[0][static_cast<std::size_t>(j)] = index / p.side;
    places[1][static_cast<std::size_t>(j)] = index % p.side;
  }
  for (int which = 0; which < 2; ++which) scatter(sides[which], p, places[which].data(), grads);
}

}  // namespace

void product_key_topk_cpu(const ProductKeyTopk& p, int threads) {
  over_batch((p.rows + kRows - 1) / kRows, threads, [&](std::int64_t block) {
    const std::int64_t end = std::min(p.rows, (block + 1) * kRows);
    for (std::int64_t row = block * kRows; row < end; ++row) route(p, row);
  });
}

void product_key_topk_grad_cpu(const ProductKeyTopkGrad& p, int threads) {
  over_batch((p.rows + kRows - 1) / kRows, threads, [&](std::int64_t block) {
    const std::int64_t end = std::min(p.rows, (block + 1) * kRows);
    for (std::int64_t row = block * kRows; row < end; ++row) {
      std::array<float, kMostWinners> grads;
      std::copy_n(p.grad + row * p.k, p.k, grads.begin());
      if (p.weights != nullptr) {
        const float* weights = p.weights + row * p.k;
        float inner = 0;
        for (std::int64_t j = 0; j < p.k; ++j) {
          inner += weights[j] * grads[static_cast<std::size_t>(j)];
        }
        for (std::int64_t j = 0; j < p.k; ++j) {
          float& grad = grads[static_cast<std::size_t>(j)];
          grad = weights[j] * (grad - inner);
        }
      }
      scatter_row(p, row, grads.data());
    }
  });
}

}  // namespace subspace::kernels
