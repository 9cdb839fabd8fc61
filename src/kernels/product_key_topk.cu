#include <cuda_bf16.h>

#include <algorithm>
#include <cstdint>

#include "kernels/cuda_check.cuh"
#include "kernels/product_key_topk.h"
#include "kernels/warp_rows.cuh"

namespace subspace::kernels {
namespace {

using Key = unsigned long long;

constexpr int kWarps = 4;    // of a block
constexpr int kFew = 128;    // values past the threshold that are ranked by counting
constexpr int kPairs = 288;  // sum_i floor(64 / (i + 1)) is 280

/// Order-preserving bits: 0 is below everything, NaN above everything, and the zeros are equal.
__device__ unsigned ordered(float value) {
  const unsigned bits = __float_as_uint(value + 0.0f);
  if (isnan(value)) return 0xffffffffu;
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ float from_ordered(unsigned key) {
  return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key);
}

template <Element kElement>
__device__ float value_at(const void* row, int i) {
  if constexpr (kElement == Element::f32) return __ldg(static_cast<const float*>(row) + i);
  return __uint_as_float(unsigned{__ldg(static_cast<const unsigned short*>(row) + i)} << 16);
}

/// What a warp works in.
struct Scratch {
  Key few[kFew];
  float value[2][kMostWinners];  // the best of both sides, descending
  int place[2][kMostWinners];
  Key sums[kPairs];  // a pair's sum: rounded, then what rounding left out
  unsigned index[kPairs];
  Key best[kMostWinners];
  unsigned best_index[kMostWinners];
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
      float v[kVector];
      if (aligned && place(i) < side) {
        Vector<kElement>::unpack(__ldg(static_cast<const uint4*>(row) + place(i) / kVector), v);
#pragma unroll
        for (int c = 0; c < kVector; ++c) key[i + c] = ordered(v[c]);
      } else {
#pragma unroll
        for (int c = 0; c < kVector; ++c) {
          key[i + c] = place(i + c) < side ? ordered(value_at<kElement>(row, place(i + c))) : 0;
        }
      }
    }
  }
};

/// Raises `threshold` bit by bit, in its upper half, while at least k keys reach it.
template <typename Count>
__device__ unsigned threshold_for(int k, Count count) {
  unsigned threshold = 0;
#pragma unroll 1
  for (unsigned bit = 1u << 31; bit >= 1u << 16; bit >>= 1) {
    if (count(threshold | bit) >= k) threshold |= bit;
  }
  return max(threshold, 1u);
}

__device__ unsigned warp_max(unsigned value) { return __reduce_max_sync(kWholeWarp, value); }

/// The k best of one side, best first, equal ones by place.
template <Element kElement, int kValues, bool kWhole>
__device__ void best_of_side(const void* row, int side, int k, bool aligned, Scratch& s,
                             int which) {
  const int lane = threadIdx.x % 32;
  constexpr int kPart = 32 * kValues;
  Part<kElement, kValues> part;
  // Largest of this lane's even and odd values: 64 groups of the row for k above 32, else 32.
  unsigned even = 0, odd = 0;
  for (int start = 0; start < (kWhole ? 1 : side); start += kPart) {
    part.load(row, side, aligned, start);
#pragma unroll
    for (int i = 0; i < kValues; i += 2) {
      even = max(even, part.key[i]);
      odd = max(odd, part.key[i + 1]);
    }
  }
  if (k <= 32) even = max(even, odd);
  const unsigned threshold = threshold_for(k, [&](unsigned t) {
    int count = __popc(__ballot_sync(kWholeWarp, even >= t));
    if (k > 32) count += __popc(__ballot_sync(kWholeWarp, odd >= t));
    return count;
  });
  int count = 0;
  for (int start = 0; start < (kWhole ? 1 : side); start += kPart) {
    if (!kWhole) part.load(row, side, aligned, start);
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      const bool takes = part.key[i] >= threshold;
      const unsigned mask = __ballot_sync(kWholeWarp, takes);
      const int at = count + __popc(mask & ((1u << lane) - 1));
      if (takes && at < kFew) {
        s.few[at] = Key{part.key[i]} << 32 | ~static_cast<unsigned>(part.place(i));
      }
      count += __popc(mask);
    }
  }
  __syncwarp();
  const auto keep = [&](int rank, Key key) {
    s.value[which][rank] = from_ordered(static_cast<unsigned>(key >> 32));
    s.place[which][rank] = static_cast<int>(~static_cast<unsigned>(key));
  };
  if (count <= kFew) {
    for (int mine = lane; mine < count; mine += 32) {
      const Key key = s.few[mine];
      int rank = 0;
      for (int c = 0; c < count; ++c) rank += s.few[c] > key;
      if (rank < k) keep(rank, key);
    }
    __syncwarp();
    return;
  }
  // Many equal values: the largest that is left, k times.
  Key last = ~Key{0};
  for (int rank = 0; rank < k; ++rank) {
    Key best = 0;
    for (int i = lane; i < side; i += 32) {
      const Key key = Key{ordered(value_at<kElement>(row, i))} << 32 | ~static_cast<unsigned>(i);
      if (key < last && key > best) best = key;
    }
    const unsigned high = warp_max(static_cast<unsigned>(best >> 32));
    const unsigned low =
        warp_max(static_cast<unsigned>(best >> 32) == high ? static_cast<unsigned>(best) : 0);
    last = Key{high} << 32 | low;
    if (lane == 0) keep(rank, last);
  }
  __syncwarp();
}

/// Sums of the pairs that can win.
__device__ void add_pairs(Scratch& s, const unsigned short* pairs, int count, int side) {
  for (int c = threadIdx.x % 32; c < count; c += 32) {
    const int i = pairs[c] >> 8, j = pairs[c] & 255;
    const float a = s.value[0][i], b = s.value[1][j];
    float sum = __fadd_rn(a, b), rest = 0;
    if (isnan(sum) && !isnan(a) && !isnan(b)) sum = -INFINITY;
    if (isfinite(sum)) {
      const float other = __fsub_rn(sum, a);  // Knuth's two-sum
      rest = __fadd_rn(__fsub_rn(a, __fsub_rn(sum, other)), __fsub_rn(b, other));
    }
    s.sums[c] = Key{ordered(sum)} << 32 | ordered(rest);
    s.index[c] = static_cast<unsigned>(s.place[0][i]) * side + s.place[1][j];
  }
  __syncwarp();
}

/// The k best pairs into s.best, best first; then equal scores by index.
__device__ void best_pairs(Scratch& s, int count, int k) {
  const int lane = threadIdx.x % 32;
  const unsigned threshold = threshold_for(k, [&](unsigned t) {
    int reach = 0;
    for (int start = 0; start < count; start += 32) {
      const bool has = start + lane < count && (s.sums[start + lane] >> 32) >= t;
      reach += __popc(__ballot_sync(kWholeWarp, has));
    }
    return reach;
  });
  // Those that reach it move to the front; a lane never writes what another has yet to read.
  int few = 0;
  for (int start = 0; start < count; start += 32) {
    const int c = start + lane;
    const Key sum = c < count ? s.sums[c] : 0;
    const unsigned index = c < count ? s.index[c] : 0;
    const bool takes = (sum >> 32) >= threshold;
    const unsigned mask = __ballot_sync(kWholeWarp, takes);
    __syncwarp();
    if (takes) {
      const int at = few + __popc(mask & ((1u << lane) - 1));
      s.sums[at] = sum;
      s.index[at] = index;
    }
    few += __popc(mask);
    __syncwarp();
  }
  for (int mine = lane; mine < few; mine += 32) {
    const Key sum = s.sums[mine];
    const unsigned index = s.index[mine];
    int rank = 0;
    for (int c = 0; c < few; ++c) {
      rank += s.sums[c] > sum || (s.sums[c] == sum && s.index[c] < index);
    }
    if (rank < k) {
      s.best[rank] = sum;
      s.best_index[rank] = index;
    }
  }
  __syncwarp();
}

/// Writes winner `rank` where its rounded score and its index put it.
__device__ void write_winners(const ProductKeyTopk& p, Scratch& s, std::int64_t row, int k) {
  const int lane = threadIdx.x % 32;
  float largest = 0, sum = 0, score[2] = {};
  int at[2] = {-1, -1};
  for (int part = 0; part < 2; ++part) {
    const int rank = part * 32 + lane;
    if (rank >= k) break;
    const auto mine = static_cast<unsigned>(s.best[rank] >> 32);
    const unsigned index = s.best_index[rank];
    int place = 0;
    for (int c = 0; c < k; ++c) {
      const auto other = static_cast<unsigned>(s.best[c] >> 32);
      place += other > mine || (other == mine && s.best_index[c] < index);
    }
    at[part] = place;
    score[part] = from_ordered(mine);
    p.scores[row * k + place] = score[part];
    p.index[row * k + place] = index;
  }
  if (p.weights == nullptr) return;
  __syncwarp();
  largest = from_ordered(static_cast<unsigned>(s.best[0] >> 32));
  for (int part = 0; part < 2; ++part) {
    score[part] = at[part] >= 0 ? expf(score[part] - largest) : 0;
    sum += score[part];
  }
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(kWholeWarp, sum, offset);
  for (int part = 0; part < 2; ++part) {
    if (at[part] >= 0) p.weights[row * k + at[part]] = score[part] / sum;
  }
}

template <Element kElement, int kValues, bool kWhole>
__global__ void __launch_bounds__(32 * kWarps) route(ProductKeyTopk p) {
  __shared__ Scratch scratch[kWarps];
  __shared__ unsigned short pairs[kPairs];
  const int k = static_cast<int>(p.k), side = static_cast<int>(p.side);
  int count = 0;
  for (int i = 0; i < k; ++i) {
    const int partners = k / (i + 1);
    for (int j = threadIdx.x; j < partners; j += 32 * kWarps) pairs[count + j] = i << 8 | j;
    count += partners;
  }
  __syncthreads();
  Scratch& s = scratch[threadIdx.x / 32];
  constexpr int kBytes = kElement == Element::f32 ? 4 : 2;
  const bool aligned = side % Vector<kElement>::kValues == 0 &&
                       reinterpret_cast<std::uintptr_t>(p.s1) % 16 == 0 &&
                       reinterpret_cast<std::uintptr_t>(p.s2) % 16 == 0;
  for (std::int64_t row = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / 32; row < p.rows;
       row += std::int64_t{gridDim.x} * kWarps) {
    const std::int64_t offset = row * side * kBytes;
    best_of_side<kElement, kValues, kWhole>(static_cast<const char*>(p.s1) + offset, side, k,
                                            aligned, s, 0);
    best_of_side<kElement, kValues, kWhole>(static_cast<const char*>(p.s2) + offset, side, k,
                                            aligned, s, 1);
    add_pairs(s, pairs, count, side);
    best_pairs(s, count, k);
    write_winners(p, s, row, k);
    __syncwarp();
  }
}

unsigned grid_for(std::int64_t rows) {
  return static_cast<unsigned>(std::min<std::int64_t>((rows + kWarps - 1) / kWarps, 132 * 64));
}

template <Element kElement>
void launch(const ProductKeyTopk& p, cudaStream_t stream) {
  const unsigned grid = grid_for(p.rows);
  if (p.side <= 256) {
    route<kElement, 8, true><<<grid, 32 * kWarps, 0, stream>>>(p);
  } else if (p.side <= 512) {
    route<kElement, 16, true><<<grid, 32 * kWarps, 0, stream>>>(p);
  } else if (p.side <= 1024) {
    route<kElement, 32, true><<<grid, 32 * kWarps, 0, stream>>>(p);
  } else {
    route<kElement, 16, false><<<grid, 32 * kWarps, 0, stream>>>(p);
  }
}

/// One warp a row of both sides; the row of sums is made in shared memory, kTile places at a time.
constexpr int kTile = 1024;

template <Element kElement>
__global__ void __launch_bounds__(32 * kWarps) scatter(ProductKeyTopkGrad p) {
  __shared__ float grads[kWarps][kMostWinners];
  __shared__ int places[kWarps][kMostWinners];
  __shared__ float tile[kWarps][kTile];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int k = static_cast<int>(p.k), side = static_cast<int>(p.side);
  for (std::int64_t row = std::int64_t{blockIdx.x} * kWarps + warp; row < p.rows;
       row += std::int64_t{gridDim.x} * kWarps) {
    float inner = 0;
    if (p.weights != nullptr) {
      for (int j = lane; j < k; j += 32) inner += p.weights[row * k + j] * p.grad[row * k + j];
      for (int offset = 16; offset > 0; offset /= 2) {
        inner += __shfl_xor_sync(kWholeWarp, inner, offset);
      }
    }
    for (int j = lane; j < k; j += 32) {
      const float grad = p.grad[row * k + j];
      grads[warp][j] = p.weights == nullptr ? grad : p.weights[row * k + j] * (grad - inner);
    }
    const auto pairs = static_cast<std::uint64_t>(p.side * p.side);
    bool outside = false;
    for (int j = lane; j < k; j += 32) {
      outside = outside || static_cast<std::uint64_t>(p.index[row * k + j]) >= pairs;
    }
    // Then no winner is put anywhere: a sum in the wrong place would not be seen.
    outside = __any_sync(kWholeWarp, outside);
    const float nothing = outside ? __uint_as_float(0x7fffffffu) : 0.0f;
    for (int which = 0; which < 2; ++which) {
      __syncwarp();
      for (int j = lane; j < k; j += 32) {
        const auto index = static_cast<unsigned>(p.index[row * k + j]);
        places[warp][j] = static_cast<int>(which == 0 ? index / side : index % side);
      }
      for (int start = 0; start < side; start += kTile) {
        const int length = min(kTile, side - start);
        for (int i = lane; i < length; i += 32) tile[warp][i] = nothing;
        __syncwarp();
        for (int j = lane; j < k && !outside; j += 32) {
          const int place = places[warp][j];
          if (place < start || place >= start + length) continue;
          // The first winner of a place sums for all of them, in order.
          float sum = 0;
          bool first = true;
          for (int i = 0; i < k; ++i) {
            const bool same = places[warp][i] == place;
            first = first && !(same && i < j);
            sum += same && i >= j ? grads[warp][i] : 0;
          }
          if (first) tile[warp][place - start] = sum;
        }
        __syncwarp();
        const std::int64_t base = row * side + start;
        if constexpr (kElement == Element::f32) {
          float* out = static_cast<float*>(which == 0 ? p.grad_s1 : p.grad_s2) + base;
          for (int i = lane; i < length; i += 32) __stcs(out + i, tile[warp][i]);
        } else {
          auto* out = static_cast<__nv_bfloat16*>(which == 0 ? p.grad_s1 : p.grad_s2) + base;
          if (side % 2 == 0) {
            for (int i = 2 * lane; i < length; i += 64) {
              *reinterpret_cast<__nv_bfloat162*>(out + i) =
                  __floats2bfloat162_rn(tile[warp][i], tile[warp][i + 1]);
            }
          } else {
            for (int i = lane; i < length; i += 32) out[i] = __float2bfloat16_rn(tile[warp][i]);
          }
        }
        __syncwarp();
      }
    }
  }
}

}  // namespace

void product_key_topk_cuda(const ProductKeyTopk& p, Stream stream) {
  if (p.rows == 0) return;
  auto* queue = static_cast<cudaStream_t>(stream);
  if (p.element == Element::f32) {
    launch<Element::f32>(p, queue);
  } else {
    launch<Element::bf16>(p, queue);
  }
  check_cuda(cudaGetLastError(), "product_key_topk");
}

void product_key_topk_grad_cuda(const ProductKeyTopkGrad& p, Stream stream) {
  if (p.rows == 0) return;
  auto* queue = static_cast<cudaStream_t>(stream);
  if (p.element == Element::f32) {
    scatter<Element::f32><<<grid_for(p.rows), 32 * kWarps, 0, queue>>>(p);
  } else {
    scatter<Element::bf16><<<grid_for(p.rows), 32 * kWarps, 0, queue>>>(p);
  }
  check_cuda(cudaGetLastError(), "product_key_topk_grad");
}

}  // namespace subspace::kernels
