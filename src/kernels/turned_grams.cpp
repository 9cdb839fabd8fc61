#include "kernels/turned_grams.h"

#include <algorithm>

#include "kernels/turned_grams_body.h"

namespace subspace::kernels {

TurnedGramsSteps turned_grams_portable() { return turned_rows; }

std::int64_t turn_row(std::int64_t planes, std::int64_t rest) {
  return whole_packs(2 * planes + rest);
}

std::int64_t turn_row_of_rest(std::int64_t planes) { return whole_packs(planes); }

std::int64_t turn_numbers(std::int64_t planes, std::int64_t rest) {
  return planes * turn_row(planes, rest) + rest * turn_row_of_rest(planes);
}

namespace {

void clear(const TurnedGrams& p) {
  std::fill_n(p.mean, p.lefts * p.rights, 0.0);
  if (p.each) std::fill_n(p.each, 2 * p.tables.offsets, 0.0);
  if (p.planes) std::fill_n(p.planes, (p.tables.planes + 1) * p.lefts * p.rights, 0.0);
}

}  // namespace

void turned_grams(const TurnedGrams& p, std::vector<double>& scratch, Isa isa) {
  clear(p);
  const std::int64_t k = 2 * p.tables.planes + p.tables.rest;
  const std::int64_t stride = 2 * turn_row(p.tables.planes, p.tables.rest);
  // Zeros, since what pads a row is multiplied like the rest of it.
  scratch.assign(static_cast<std::size_t>((p.lefts + 2 * p.rights + 4) * stride + 2 * k), 0.0);
#if defined(__x86_64__)
  if (isa != Isa::portable) return turned_grams_avx2()(p, scratch.data());
#else
  (void)isa;
#endif
  turned_grams_portable()(p, scratch.data());
}

}  // namespace subspace::kernels
