#include "kernels/product_key_topk.h"

#include <algorithm>
#include <array>
#include <cmath>
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
  std::int64_t at;
};

/// The k largest of a side, descending, equal ones in ascending order of place.
void best_of_side(const void* row, Element element, std::int64_t side, std::int64_t k,
                  Entry* best) {
  std::int64_t have = 0;
  for (std::int64_t i = 0; i < side; ++i) {
    const float value = value_at(row, element, i);
    if (have == k && !larger(value, best[k - 1].value)) continue;
    std::int64_t place = have < k ? have++ : k - 1;
    for (; place > 0 && larger(value, best[place - 1].value); --place) {
      best[place] = best[place - 1];
    }
    best[place] = {value, i};
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
  Pair pair{a.value + b.value, 0, a.at * side + b.at};
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
  auto end = pairs.begin();
  for (std::int64_t i = 0; i < p.k; ++i) {
    for (std::int64_t j = 0; (i + 1) * (j + 1) <= p.k; ++j) {
      *end++ = add(first[static_cast<std::size_t>(i)], second[static_cast<std::size_t>(j)], p.side);
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

/// Whether every winner of a row is one of the side^2 pairs.
bool in_range(const ProductKeyTopkGrad& p, std::int64_t row) {
  const std::int64_t* index = p.index + row * p.k;
  return std::all_of(index, index + p.k,
                     [&](std::int64_t at) { return at >= 0 && at < p.side * p.side; });
}

void put(void* row, Element element, std::int64_t at, float value) {
  if (element == Element::f32) {
    static_cast<float*>(row)[at] = value;
  } else {
    static_cast<std::uint16_t*>(row)[at] = bf16_bits(value);
  }
}

/// One side of one row. A place's sum is formed at its first winner.
void scatter(const ProductKeyTopkGrad& p, std::int64_t row, const float* grads, bool first_side) {
  const std::int64_t bytes = p.side * element_bytes(p.element);
  char* out = static_cast<char*>(first_side ? p.grad_s1 : p.grad_s2) + row * bytes;
  if (!in_range(p, row)) {
    constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
    for (std::int64_t i = 0; i < p.side; ++i) put(out, p.element, i, kNan);
    return;
  }
  std::fill_n(out, bytes, char{0});
  const auto place = [&](std::int64_t j) {
    const std::int64_t index = p.index[row * p.k + j];
    return first_side ? index / p.side : index % p.side;
  };
  for (std::int64_t j = 0; j < p.k; ++j) {
    const std::int64_t mine = place(j);
    bool seen = false;
    for (std::int64_t i = 0; i < j && !seen; ++i) seen = place(i) == mine;
    if (seen) continue;
    float sum = 0;
    for (std::int64_t i = j; i < p.k; ++i) sum += place(i) == mine ? grads[i] : 0;
    put(out, p.element, mine, sum);
  }
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
      scatter(p, row, grads.data(), true);
      scatter(p, row, grads.data(), false);
    }
  });
}

}  // namespace subspace::kernels
