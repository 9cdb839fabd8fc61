#include <cuda_bf16.h>

#include <algorithm>
#include <cstdint>

#include "kernels/cuda_check.cuh"
#include "kernels/product_key_topk.h"
#include "kernels/warp_rows.cuh"

namespace subspace::kernels {
namespace {

using Wide = unsigned long long;

constexpr int kWarps = 4;  // of a block
constexpr int kFew = 128;  // values past the threshold that are ranked by counting

/// Order-preserving bits: 0 is below everything, NaN above everything, and the zeros are equal.
__device__ unsigned ordered(float value) {
  const unsigned bits = __float_as_uint(value + 0.0f);
  if (isnan(value)) return 0xffffffffu;
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ float from_ordered(unsigned key) {
  return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key);
}

/// Keys of a type's values, and candidates: a key and its place, the smaller place the larger.
template <Element kElement>
struct Keys;

template <>
struct Keys<Element::f32> {
  using Candidate = Wide;
  static __device__ float value_at(const void* row, int i) {
    return __ldg(static_cast<const float*>(row) + i);
  }
  static __device__ unsigned key_of(float value) { return ordered(value); }
  static __device__ float value_of(unsigned key) { return from_ordered(key); }
  static __device__ void unpack(const uint4& raw, unsigned* key) {
    key[0] = ordered(__uint_as_float(raw.x));
    key[1] = ordered(__uint_as_float(raw.y));
    key[2] = ordered(__uint_as_float(raw.z));
    key[3] = ordered(__uint_as_float(raw.w));
  }
  static __device__ Wide candidate(unsigned key, int place) {
    return Wide{key} << 32 | ~static_cast<unsigned>(place);
  }
  static __device__ unsigned key_in(Wide c) { return static_cast<unsigned>(c >> 32); }
  static __device__ int place_in(Wide c) { return static_cast<int>(~static_cast<unsigned>(c)); }
};

/// Sixteen bits are the whole key, and a place (below 32768) fits into the others.
template <>
struct Keys<Element::bf16> {
  using Candidate = unsigned;
  static __device__ float value_at(const void* row, int i) {
    return __uint_as_float(unsigned{__ldg(static_cast<const unsigned short*>(row) + i)} << 16);
  }
  static __device__ unsigned key_of(float value) { return ordered(value) & 0xffff0000u; }
  static __device__ float value_of(unsigned key) {
    return __uint_as_float(key >> 31 ? key & 0x7fff0000u : ~key & 0xffff0000u);
  }
  static __device__ void unpack(const uint4& raw, unsigned* key) {
    const unsigned words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      // Two at a time. Adding zero makes one zero of both and one NaN of all, 0x7fff.
      const __nv_bfloat162 sum = __hadd2(reinterpret_cast<const __nv_bfloat162&>(words[i]),
                                         __floats2bfloat162_rn(0.0f, 0.0f));
      const unsigned bits = reinterpret_cast<const unsigned&>(sum);
      const unsigned negative = (bits >> 15 & 0x00010001u) * 0xffffu;
      const unsigned both = bits ^ (negative | 0x80008000u);
      key[2 * i] = both << 16;
      key[2 * i + 1] = both & 0xffff0000u;
    }
  }
  static __device__ unsigned candidate(unsigned key, int place) {
    return key | (0xffffu - static_cast<unsigned>(place));
  }
  static __device__ unsigned key_in(unsigned c) { return c & 0xffff0000u; }
  static __device__ int place_in(unsigned c) { return static_cast<int>(0xffffu - (c & 0xffffu)); }
};

/// kValues values of a row a lane, of a part of the row that starts at `from`. Vectors of 16 bytes
/// where rows are so aligned; value i of a lane stands at place(i).
template <Element kElement, int kValues>
struct Part {
  static constexpr int kVector = Vector<kElement>::kValues;
  unsigned key[kValues];
  int from;

  __device__ int place(int i) const {
    const int lane = threadIdx.x % 32;
    return from + (i / kVector * 32 + lane) * kVector + i % kVector;
  }
  __device__ void load(const void* row, int side, bool aligned, int start) {
    from = start;
#pragma unroll
    for (int i = 0; i < kValues; i += kVector) {
      if (aligned && place(i) < side) {
        Keys<kElement>::unpack(__ldg(static_cast<const uint4*>(row) + place(i) / kVector), key + i);
      } else {
#pragma unroll
        for (int c = 0; c < kVector; ++c) {
          const int at = place(i + c);
          key[i + c] = at < side ? Keys<kElement>::key_of(Keys<kElement>::value_at(row, at)) : 0;
        }
      }
    }
  }
};

struct Winner {
  float value;
  int place;
};

/// Winners up to kMost, and the pairs of them that can win: sum_i floor(kMost / (i + 1)), and how
/// many of these a lane looks at.
template <int kMost>
struct Pairs;
template <>
struct Pairs<16> {
  static constexpr int kCount = 50, kPerLane = 2;
};
template <>
struct Pairs<64> {
  static constexpr int kCount = 280, kPerLane = 9;
};

/// What a warp works in. Lists end in zeros, which are below every candidate, up to a whole vector.
template <Element kElement, int kMost>
struct alignas(16) Scratch {
  using Candidate = typename Keys<kElement>::Candidate;
  Candidate few[2][kFew + 16 / sizeof(Candidate)];
  Wide sums[Pairs<kMost>::kCount + 2];
  unsigned index[Pairs<kMost>::kCount + 2];  // where sums are not exact
  Winner winner[2][kMost];                   // the best of both sides, descending
  Wide best[kMost];                          // score and the index's complement
};

/// Lane l gets the l-th largest of the warp's values.
__device__ unsigned sorted_descending(unsigned value) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int size = 2; size <= 32; size *= 2) {
#pragma unroll
    for (int stride = size / 2; stride > 0; stride /= 2) {
      const unsigned other = __shfl_xor_sync(kWholeWarp, value, stride);
      const bool larger = ((lane & stride) == 0) == ((lane & size) == 0);
      value = larger ? max(value, other) : min(value, other);
    }
  }
  return value;
}

/// A threshold that at least k of the warp's 32 (k up to 32) or 64 values reach: the k-th largest,
/// or for k above 32 its upper half.
template <int kMost>
__device__ unsigned threshold_of(unsigned even, unsigned odd, int k) {
  if (kMost <= 32 || k <= 32) {
    const unsigned sorted = sorted_descending(max(even, odd));
    return max(__shfl_sync(kWholeWarp, sorted, k - 1), 1u);
  }
  unsigned threshold = 0;
#pragma unroll 1
  for (unsigned bit = 1u << 31; bit >= 1u << 16; bit >>= 1) {
    const unsigned t = threshold | bit;
    const int count =
        __popc(__ballot_sync(kWholeWarp, even >= t)) + __popc(__ballot_sync(kWholeWarp, odd >= t));
    if (count >= k) threshold = t;
  }
  return max(threshold, 1u);
}

/// How much stands before this lane's `mine`, and the sum over the warp.
__device__ unsigned places_before(unsigned mine, unsigned& all) {
  const int lane = threadIdx.x % 32;
  unsigned sum = mine;
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const unsigned other = __shfl_up_sync(kWholeWarp, sum, offset);
    if (lane >= offset) sum += other;
  }
  all = __shfl_sync(kWholeWarp, sum, 31);
  return sum - mine;
}

/// How many of a list are larger than `mine`, 16 bytes of it at a time.
__device__ int larger_than(unsigned mine, const unsigned* list, int count) {
  int larger = 0;
  for (int c = 0; c < count; c += 4) {
    const uint4 four = *reinterpret_cast<const uint4*>(list + c);
    larger += (four.x > mine) + (four.y > mine) + (four.z > mine) + (four.w > mine);
  }
  return larger;
}
__device__ int larger_than(Wide mine, const Wide* list, int count) {
  int larger = 0;
  for (int c = 0; c < count; c += 2) {
    const ulonglong2 two = *reinterpret_cast<const ulonglong2*>(list + c);
    larger += (two.x > mine) + (two.y > mine);
  }
  return larger;
}

/// The k best of a side where many are equal: the largest that is left, k times.
template <Element kElement>
__device__ void best_one_by_one(const void* row, int side, int k, Winner* winner) {
  const int lane = threadIdx.x % 32;
  Wide last = ~Wide{0};
  for (int rank = 0; rank < k; ++rank) {
    Wide best = 0;
    for (int i = lane; i < side; i += 32) {
      const unsigned key = Keys<kElement>::key_of(Keys<kElement>::value_at(row, i));
      const Wide mine = Wide{key} << 32 | ~static_cast<unsigned>(i);
      // No bound at first: NaN at place 0 has all bits set.
      if ((rank == 0 || mine < last) && mine > best) best = mine;
    }
    const auto upper = static_cast<unsigned>(best >> 32);
    const unsigned high = __reduce_max_sync(kWholeWarp, upper);
    const unsigned low =
        __reduce_max_sync(kWholeWarp, upper == high ? static_cast<unsigned>(best) : 0);
    last = Wide{high} << 32 | low;
    if (lane == 0) winner[rank] = {Keys<kElement>::value_of(high), static_cast<int>(~low)};
  }
  __syncwarp();
}

/// The k best of both sides, best first, equal ones by place. Both at once: each waits for the
/// exchanges of its own.
template <Element kElement, int kValues, bool kWhole, int kMost>
__device__ void best_of_sides(const void* const (&row)[2], int side, int k, bool aligned,
                              Scratch<kElement, kMost>& s) {
  using K = Keys<kElement>;
  const int lane = threadIdx.x % 32;
  constexpr int kPart = 32 * kValues;
  constexpr int kPad = 16 / sizeof(typename K::Candidate) - 1;
  Part<kElement, kValues> part[2];
  // Largest of this lane's even and odd values: 64 groups of the row for k above 32, else 32.
  unsigned even[2] = {}, odd[2] = {}, threshold[2];
  for (int start = 0; start < (kWhole ? 1 : side); start += kPart) {
#pragma unroll
    for (int w = 0; w < 2; ++w) part[w].load(row[w], side, aligned, start);
#pragma unroll
    for (int w = 0; w < 2; ++w) {
#pragma unroll
      for (int i = 0; i < kValues; i += 2) {
        even[w] = max(even[w], part[w].key[i]);
        odd[w] = max(odd[w], part[w].key[i + 1]);
      }
    }
  }
#pragma unroll
  for (int w = 0; w < 2; ++w) threshold[w] = threshold_of<kMost>(even[w], odd[w], k);
  // Places in the lists of both sides, in one number: a row has no more than 2^15 values.
  unsigned mine = 0, all;
  for (int start = 0; start < (kWhole ? 1 : side); start += kPart) {
    if (!kWhole) {
#pragma unroll
      for (int w = 0; w < 2; ++w) part[w].load(row[w], side, aligned, start);
    }
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      mine += part[0].key[i] >= threshold[0] ? 1u : 0u;
      mine += part[1].key[i] >= threshold[1] ? 65536u : 0u;
    }
  }
  const unsigned before = places_before(mine, all);
  unsigned at[2] = {before & 65535, before >> 16};
  const int count[2] = {static_cast<int>(all & 65535), static_cast<int>(all >> 16)};
  const bool few[2] = {count[0] <= kFew, count[1] <= kFew};
  for (int start = 0; start < (kWhole ? 1 : side); start += kPart) {
    if (!kWhole) {
#pragma unroll
      for (int w = 0; w < 2; ++w) part[w].load(row[w], side, aligned, start);
    }
#pragma unroll
    for (int w = 0; w < 2; ++w) {
      if (!few[w]) continue;
#pragma unroll
      for (int i = 0; i < kValues; ++i) {
        if (part[w].key[i] < threshold[w]) continue;
        s.few[w][at[w]++] = K::candidate(part[w].key[i], part[w].place(i));
      }
    }
  }
#pragma unroll
  for (int w = 0; w < 2; ++w) {
    if (few[w] && lane < kPad) s.few[w][count[w] + lane] = 0;
  }
  __syncwarp();
#pragma unroll
  for (int w = 0; w < 2; ++w) {
    if (!few[w]) {
      best_one_by_one<kElement>(row[w], side, k, s.winner[w]);
      continue;
    }
    for (int c = lane; c < count[w]; c += 32) {
      const auto candidate = s.few[w][c];
      const int rank = larger_than(candidate, s.few[w], count[w]);
      if (rank < k) {
        s.winner[w][rank] = {K::value_of(K::key_in(candidate)), K::place_in(candidate)};
      }
    }
  }
  __syncwarp();
}

/// A pair's score in ordered bits; `rest` is what rounding left out.
__device__ unsigned sum_of(float a, float b, float& rest) {
  float sum = __fadd_rn(a, b);
  rest = 0;
  if (isnan(sum) && !isnan(a) && !isnan(b)) sum = -INFINITY;
  if (isfinite(sum)) {
    const float other = __fsub_rn(sum, a);  // Knuth's two-sum
    rest = __fadd_rn(__fsub_rn(a, __fsub_rn(sum, other)), __fsub_rn(b, other));
  }
  return ordered(sum);
}

/// This lane's share of the pairs (i, j) of the sorted sides with (i + 1)(j + 1) <= k, as i << 8 |
/// j, or -1; and of the bounds: for each i the least j with (i + 1)(j + 1) >= k.
template <int kMost>
struct LanePairs {
  static constexpr int kPerLane = Pairs<kMost>::kPerLane, kBounds = (kMost + 31) / 32;
  int pair[kPerLane], bound[kBounds];
  __device__ explicit LanePairs(int k) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n < kPerLane; ++n) {
      int left = n * 32 + lane, i = 0;
      while (i < k && left >= k / (i + 1)) left -= k / ++i;
      pair[n] = i < k ? i << 8 | left : -1;
    }
#pragma unroll
    for (int n = 0; n < kBounds; ++n) {
      const int i = n * 32 + lane;
      bound[n] = i < k ? i << 8 | ((k + i) / (i + 1) - 1) : -1;
    }
  }
};

/// The k best pairs into s.best in the order in which they are written.
template <Element kElement, int kMost>
__device__ void best_pairs(Scratch<kElement, kMost>& s, const LanePairs<kMost>& pairs, int k,
                           int side) {
  constexpr int kPerLane = Pairs<kMost>::kPerLane;
  const int lane = threadIdx.x % 32;
  // At least k sums reach s1[i] + s2[j] where (i + 1)(j + 1) >= k. The best of such bounds leaves
  // few to be ranked.
  unsigned bound = 0;
  float rest[kPerLane];
#pragma unroll
  for (int n = 0; n < LanePairs<kMost>::kBounds; ++n) {
    const int pair = pairs.bound[n];
    if (pair < 0) continue;
    bound =
        max(bound, sum_of(s.winner[0][pair >> 8].value, s.winner[1][pair & 255].value, rest[0]));
  }
  bound = __reduce_max_sync(kWholeWarp, bound);
  unsigned sum[kPerLane], mine = 0, all;
  bool exact = true;
#pragma unroll
  for (int n = 0; n < kPerLane; ++n) {
    const int pair = pairs.pair[n];
    sum[n] = 0;
    if (pair < 0) continue;
    sum[n] = sum_of(s.winner[0][pair >> 8].value, s.winner[1][pair & 255].value, rest[n]);
    if (sum[n] < bound) continue;
    ++mine;
    exact = exact && rest[n] == 0;
  }
  unsigned at = places_before(mine, all);
  const int few = static_cast<int>(all);
  // Sums that rounding left alone are compared together with their places, as one number.
  exact = __all_sync(kWholeWarp, exact);
#pragma unroll
  for (int n = 0; n < kPerLane; ++n) {
    const int pair = pairs.pair[n];
    if (pair < 0 || sum[n] < bound) continue;
    const unsigned index =
        static_cast<unsigned>(s.winner[0][pair >> 8].place) * side + s.winner[1][pair & 255].place;
    s.sums[at] = Wide{sum[n]} << 32 | (exact ? ~index : ordered(rest[n]));
    s.index[at] = index;
    ++at;
  }
  if (lane == 0) s.sums[few] = 0;
  __syncwarp();
  if (exact) {
    for (int c = lane; c < few; c += 32) {
      const int rank = larger_than(s.sums[c], s.sums, few);
      if (rank < k) s.best[rank] = s.sums[c];
    }
    __syncwarp();
    return;
  }
  // The exact sums say who wins, the rounded ones in which order.
  for (int c = lane; c < few; c += 32) {
    const Wide own = s.sums[c];
    const unsigned index = s.index[c];
    int rank = 0;
    for (int o = 0; o < few; ++o) {
      rank += s.sums[o] > own || (s.sums[o] == own && s.index[o] < index);
    }
    if (rank < k) s.best[rank] = own >> 32 << 32 | ~index;
  }
  __syncwarp();
  Wide winner[(kMost + 31) / 32];
  int place[(kMost + 31) / 32];
  for (int part = 0; part * 32 + lane < k; ++part) {
    winner[part] = s.best[part * 32 + lane];
    place[part] = 0;
    for (int o = 0; o < k; ++o) place[part] += s.best[o] > winner[part];
  }
  __syncwarp();
  for (int part = 0; part * 32 + lane < k; ++part) s.best[place[part]] = winner[part];
  __syncwarp();
}

template <Element kElement, int kMost>
__device__ void write_winners(const ProductKeyTopk& p, const Scratch<kElement, kMost>& s,
                              std::int64_t row, int k) {
  constexpr int kParts = (kMost + 31) / 32;
  const int lane = threadIdx.x % 32;
  const float largest = from_ordered(static_cast<unsigned>(s.best[0] >> 32));
  float power[kParts], sum = 0;
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    const int rank = part * 32 + lane;
    power[part] = 0;
    if (rank >= k) continue;
    const Wide best = s.best[rank];
    const float score = from_ordered(static_cast<unsigned>(best >> 32));
    p.scores[row * k + rank] = score;
    p.index[row * k + rank] = ~static_cast<unsigned>(best);
    power[part] = expf(score - largest);
    sum += power[part];
  }
  if (p.weights == nullptr) return;
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(kWholeWarp, sum, offset);
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    const int rank = part * 32 + lane;
    if (rank < k) p.weights[row * k + rank] = power[part] / sum;
  }
}

template <Element kElement, int kValues, bool kWhole, int kMost>
__global__ void __launch_bounds__(32 * kWarps) route(ProductKeyTopk p) {
  __shared__ Scratch<kElement, kMost> scratch[kWarps];
  const int k = static_cast<int>(p.k), side = static_cast<int>(p.side);
  Scratch<kElement, kMost>& s = scratch[threadIdx.x / 32];
  const LanePairs<kMost> pairs(k);
  constexpr int kBytes = kElement == Element::f32 ? 4 : 2;
  const bool aligned = side % Vector<kElement>::kValues == 0 &&
                       reinterpret_cast<std::uintptr_t>(p.s1) % 16 == 0 &&
                       reinterpret_cast<std::uintptr_t>(p.s2) % 16 == 0;
  for (std::int64_t row = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / 32; row < p.rows;
       row += std::int64_t{gridDim.x} * kWarps) {
    const std::int64_t offset = row * side * kBytes;
    const void* const both[2] = {static_cast<const char*>(p.s1) + offset,
                                 static_cast<const char*>(p.s2) + offset};
    best_of_sides<kElement, kValues, kWhole>(both, side, k, aligned, s);
    best_pairs(s, pairs, k, side);
    write_winners(p, s, row, k);
    __syncwarp();
  }
}

unsigned grid_for(std::int64_t rows) {
  return static_cast<unsigned>(std::min<std::int64_t>((rows + kWarps - 1) / kWarps, 132 * 64));
}

template <Element kElement, int kMost>
void launch(const ProductKeyTopk& p, cudaStream_t stream) {
  const unsigned grid = grid_for(p.rows);
  if (p.side <= 256) {
    route<kElement, 8, true, kMost><<<grid, 32 * kWarps, 0, stream>>>(p);
  } else if (p.side <= 512) {
    route<kElement, 16, true, kMost><<<grid, 32 * kWarps, 0, stream>>>(p);
  } else {
    route<kElement, 16, false, kMost><<<grid, 32 * kWarps, 0, stream>>>(p);
  }
}

}  // namespace

void product_key_topk_cuda(const ProductKeyTopk& p, Stream stream) {
  if (p.rows == 0) return;
  auto* queue = static_cast<cudaStream_t>(stream);
  const bool few = p.k <= 16;
  if (p.element == Element::f32) {
    few ? launch<Element::f32, 16>(p, queue) : launch<Element::f32, 64>(p, queue);
  } else {
    few ? launch<Element::bf16, 16>(p, queue) : launch<Element::bf16, 64>(p, queue);
  }
  check_cuda(cudaGetLastError(), "product_key_topk");
}

}  // namespace subspace::kernels
