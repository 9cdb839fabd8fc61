#pragma once

#include <cstdint>
#include <vector>

#include "kernels/isa.h"

namespace subspace::kernels {

/// A matrix G [k, k] by its rows: C itself, or W C with W [k, p] and C [p, k].
struct GramRows {
  const double* c = nullptr;
  std::int64_t c_row = 0;     ///< from a row of C to the next
  const double* w = nullptr;  ///< null: G = C
  std::int64_t w_row = 0, w_column = 0;
  std::int64_t p = 0;
};

/// Cosines and sines of what a k x k matrix's blocks turn by, row by row, each row padded by zeros:
/// turn_row numbers for plane f, with plane g by theta_f - theta_g, then by theta_f + theta_g, then
/// with unrotated coordinates by theta_f; after the planes turn_row_of_rest numbers for each
/// unrotated one, with plane g by theta_g.
struct TurnTables {
  std::int64_t planes = 0, rest = 0;                      ///< k = 2 planes + rest
  const double *mean_cos = nullptr, *mean_sin = nullptr;  ///< [turn_numbers]
  const double *cos = nullptr, *sin = nullptr;            ///< [offsets, turn_numbers]
  std::int64_t offsets = 0;
  double still = 1;  ///< factor on a plane's products with itself
};
std::int64_t turn_row(std::int64_t planes, std::int64_t rest);
std::int64_t turn_row_of_rest(std::int64_t planes);
/// Of a whole table.
std::int64_t turn_numbers(std::int64_t planes, std::int64_t rest);

/// Inner products of matrices L_l with turned ones R_r: sum of L o (T R T^T), T the rotation of a
/// head by an offset, coordinates in the order planes' first sides, their second sides, unrotated.
/// See lora/offsets.h for how a rotation becomes k^2 cosines and sines.
///
/// mean    [left, right] out: with the tables' mean
/// each    [offsets, 2] out, or null: at each of the tables' offsets, the first of the `mixes`
///         products of sums, sum_l left_mix L_l with sum_r right_mix R_r, and the other ones summed
/// planes  [planes + 1, left, right] out, or null: what each plane with itself gives to the mean
///         over all offsets there are, and last what the unrotated coordinates give
///
/// No matrix is formed: rows are made, cut, turned and multiplied while they are in the cache.
/// Operations: 2 k^2 (p of each + left right + ..). Error: k eps of the product of the norms.
struct TurnedGrams {
  const GramRows* left = nullptr;
  std::int64_t lefts = 0;
  const GramRows* right = nullptr;
  std::int64_t rights = 0;
  TurnTables tables;
  double* mean = nullptr;
  const double *left_mix = nullptr, *right_mix = nullptr;  ///< [mixes, lefts], [mixes, rights]
  std::int64_t mixes = 0;
  double *each = nullptr, *planes = nullptr;
};

/// The same bits on any thread; `scratch` keeps its memory from one call to the next.
void turned_grams(const TurnedGrams& p, std::vector<double>& scratch, Isa isa = best_isa());

}  // namespace subspace::kernels
