#pragma once

#include <cstdint>

#include "kernels/device.h"
#include "kernels/element.h"

namespace subspace::kernels {

/// Product-key routing: the k best of the n^2 sums of two sides, per token and head.
///
///   (a, b) among the k best of s1[a] + s2[b];  index = a n + b;  weights = softmax(scores)
///
/// s1, s2   [rows, side] of `element` (rows = tokens times heads, side = n)
/// scores   [rows, k] float32 out, descending
/// index    [rows, k] out
/// weights  [rows, k] float32 out, or nullptr
///
/// The rule. Sums are compared exactly, as real numbers, and of equal sums the smaller index comes
/// first; that decides which k pairs win. Scores are the sums rounded to float32, and the winners
/// stand in descending order of these, again smaller index first. Where no two sums that differ
/// round to the same float32 (all sums of bfloat16 numbers of similar size, for one) this is plain
/// brute force over float32 sums. Comparing rounded sums instead would let a pair win that stands
/// outside the best k of both sides, for which all n^2 sums would have to be formed: with
/// s2 = {1e8}, every s1 below 1 in size ties.
///
/// Only pairs (i, j) of the two sorted sides with (i + 1)(j + 1) <= k can win: the (i + 1)(j + 1) -
/// 1 pairs before it in both sides have larger sums, or equal ones and smaller indices.
///
/// NaN counts as larger than any number, so that a NaN in a row shows as scores[row, 0]. A pair
/// with -infinity on one side has the score -infinity, whatever the other side, unless that is NaN.
/// Which of several infinite or NaN sums win is unspecified, though fixed.
///
/// 1 <= k <= 64 and k <= side <= 32768. Source: Lample et al., "Large Memory Layers with Product
/// Keys" (2019), where k^2 pairs are scored; sum_i floor(k / (i + 1)) suffice (50 for k = 16).
struct ProductKeyTopk {
  const void* s1 = nullptr;
  const void* s2 = nullptr;
  float* scores = nullptr;
  std::int64_t* index = nullptr;
  float* weights = nullptr;
  std::int64_t rows = 0;
  std::int64_t side = 0;
  std::int64_t k = 0;
  Element element = Element::f32;
};

constexpr std::int64_t kMostWinners = 64;

void product_key_topk_cpu(const ProductKeyTopk& p, int threads);
/// One warp a row: a threshold that at least k values reach, taken from the largest value of each
/// lane, leaves few enough to be ranked by counting.
void product_key_topk_cuda(const ProductKeyTopk& p, Stream stream);

/// Backward: the winners' gradients, scattered to both sides.
///
///   ds_j = grad_j, or with weights w (softmax): w_j (grad_j - sum_i w_i grad_i)
///   grad_s1[a] = sum of ds_j over winners with that a, in their order; grad_s2 likewise
///
/// grad              [rows, k] float32, of the scores, or of the weights where those are given
/// grad_s1, grad_s2  [rows, side] of `element`, out; every entry is written
///
/// A row with an index outside [0, side^2) becomes NaN on both sides, all of it, and no other does.
struct ProductKeyTopkGrad {
  const float* grad = nullptr;
  const std::int64_t* index = nullptr;
  const float* weights = nullptr;
  void* grad_s1 = nullptr;
  void* grad_s2 = nullptr;
  std::int64_t rows = 0;
  std::int64_t side = 0;
  std::int64_t k = 0;
  Element element = Element::f32;
};

void product_key_topk_grad_cpu(const ProductKeyTopkGrad& p, int threads);
void product_key_topk_grad_cuda(const ProductKeyTopkGrad& p, Stream stream);

}  // namespace subspace::kernels
