#include <cstdint>

#include "kernels/cuda_check.cuh"
#include "kernels/rotary_heads.h"
#include "kernels/warp_rows.cuh"

namespace subspace::kernels {
namespace {

constexpr int kThreads = 256;

/// Sizes in 16-byte vectors. A head is taken in units: a vector that does not turn, or a vector of
/// first and one of second elements of pairs.
struct Units {
  int begin, half, width, own, value;
  int still;  // vectors of a head that do not turn
  int head;   // units of a head
  template <typename T>
  Units(const RotaryHeads& p, std::int64_t value_width, T kValues)
      : begin(static_cast<int>(p.begin / kValues)),
        half(static_cast<int>(p.dims / 2 / kValues)),
        width(static_cast<int>(p.width / kValues)),
        own(static_cast<int>(p.own_keys / kValues)),
        value(static_cast<int>(value_width / kValues)),
        still(width - 2 * half),
        head(still + half) {}
};

/// The place of vectors in rows of heads.
__device__ uint4* vector_at(const HeadRows& rows, std::int64_t token, int head, int vector,
                            int bytes) {
  auto* start = static_cast<char*>(const_cast<void*>(rows.data));
  return reinterpret_cast<uint4*>(start + (token * rows.token + head * rows.head) * bytes) + vector;
}

template <Element kElement>
struct Turn {
  static constexpr int kValues = Vector<kElement>::kValues;
  float c[kValues], s[kValues];

  __device__ Turn(const RotaryHeads& p, std::int64_t position, int j) {
    const std::int64_t at = position * (p.dims / 2) + j * kValues;
#pragma unroll
    for (int i = 0; i < kValues; i += 4) {
      const float4 four_c = *reinterpret_cast<const float4*>(p.cos + at + i);
      const float4 four_s = *reinterpret_cast<const float4*>(p.sin + at + i);
      c[i] = four_c.x, c[i + 1] = four_c.y, c[i + 2] = four_c.z, c[i + 3] = four_c.w;
      s[i] = four_s.x, s[i + 1] = four_s.y, s[i + 2] = four_s.z, s[i + 3] = four_s.w;
    }
  }
};

/// Pairs from two vectors: side by side (a0 b0 a1 b1 ..), or all a and all b.
template <int kValues>
__device__ void take_apart(float (&x)[kValues], float (&y)[kValues]) {
  float both[2 * kValues];
#pragma unroll
  for (int i = 0; i < kValues; ++i) {
    both[i] = x[i];
    both[kValues + i] = y[i];
  }
#pragma unroll
  for (int i = 0; i < kValues; ++i) {
    x[i] = both[2 * i];
    y[i] = both[2 * i + 1];
  }
}
template <int kValues>
__device__ void put_together(float (&x)[kValues], float (&y)[kValues]) {
  float both[2 * kValues];
#pragma unroll
  for (int i = 0; i < kValues; ++i) {
    both[2 * i] = x[i];
    both[2 * i + 1] = y[i];
  }
#pragma unroll
  for (int i = 0; i < kValues; ++i) {
    x[i] = both[i];
    y[i] = both[kValues + i];
  }
}

/// Vector number of the still unit `u`: before and behind the turning part.
__device__ int still_vector(const Units& n, int u) { return u < n.begin ? u : u + 2 * n.half; }

/// A thread a unit of a query or key head. Index counts threads: 32 bits where they suffice, since
/// dividing 64 costs more than all the rest.
template <Element kElement, typename Index>
__global__ void __launch_bounds__(kThreads) forward(RotaryHeads p, Units n) {
  using Type = Vector<kElement>;
  constexpr int kValues = Type::kValues;
  constexpr int kBytes = 16 / kValues;
  const int heads = static_cast<int>(p.heads + p.kv_heads);
  const auto units = static_cast<Index>(heads * n.head);
  const Index index = Index{blockIdx.x} * kThreads + threadIdx.x;
  const Index number = index / units;
  if (number >= p.tokens) return;
  const int rest = static_cast<int>(index - number * units);
  const std::int64_t token = number;
  int head = rest / n.head;
  const int unit = rest % n.head;
  const bool query = head < p.heads;
  if (!query) head -= static_cast<int>(p.heads);
  const auto from = [&](int vector) {
    if (query) return vector_at(p.q, token, head, vector, kBytes);
    if (vector >= n.own) return vector_at(p.shared, token, 0, vector - n.own, kBytes);
    return vector_at(p.k, token, head, vector, kBytes);
  };
  uint4* to = query ? static_cast<uint4*>(p.q_out) + (token * p.heads + head) * n.width
                    : static_cast<uint4*>(p.k_out) + (token * p.kv_heads + head) * n.width;
  if (unit < n.still) {
    const int vector = still_vector(n, unit);
    to[vector] = *from(vector);
    return;
  }
  const int j = unit - n.still;
  const int first = n.begin + (p.interleaved ? 2 * j : j);
  const int second = p.interleaved ? first + 1 : first + n.half;
  float a[kValues], b[kValues];
  Type::unpack(*from(first), a);
  Type::unpack(*from(second), b);
  if (p.interleaved) take_apart(a, b);
  const Turn<kElement> turn(p, number % static_cast<Index>(p.length), j);
#pragma unroll
  for (int i = 0; i < kValues; ++i) {
    const float x = a[i];
    a[i] = x * turn.c[i] - b[i] * turn.s[i];
    b[i] = x * turn.s[i] + b[i] * turn.c[i];
  }
  to[n.begin + j] = Type::pack(a);
  to[n.begin + n.half + j] = Type::pack(b);
}

/// Turns a pair of gradient vectors back and puts them in the projection's order.
template <Element kElement>
__device__ void turn_back(const RotaryHeads& p, const Turn<kElement>& turn,
                          float (&a)[Vector<kElement>::kValues],
                          float (&b)[Vector<kElement>::kValues]) {
#pragma unroll
  for (int i = 0; i < Vector<kElement>::kValues; ++i) {
    const float x = a[i];
    a[i] = x * turn.c[i] + b[i] * turn.s[i];
    b[i] = b[i] * turn.c[i] - x * turn.s[i];
  }
  if (p.interleaved) put_together(a, b);
}

/// A thread a unit of a query head, of a key head's own part, of the shared key, or a vector of a
/// value head, in this order within a token.
template <Element kElement, typename Index>
__global__ void __launch_bounds__(kThreads) backward(RotaryHeadsGrad g, Units n) {
  using Type = Vector<kElement>;
  constexpr int kValues = Type::kValues;
  constexpr int kBytes = 16 / kValues;
  const RotaryHeads& p = g.forward;
  const bool shares = n.own < n.width;
  const int key_units = shares ? n.own : n.head;
  const int shared_units = shares ? n.head - n.own : 0;
  const int heads = static_cast<int>(p.heads), kv_heads = static_cast<int>(p.kv_heads);
  const auto all =
      static_cast<Index>(heads * n.head + kv_heads * (key_units + n.value) + shared_units);
  const Index index = Index{blockIdx.x} * kThreads + threadIdx.x;
  const Index number = index / all;
  if (number >= p.tokens) return;
  int rest = static_cast<int>(index - number * all);
  const std::int64_t token = number;
  const auto* grad_q = static_cast<const uint4*>(g.grad_q) + token * heads * n.width;
  const auto* grad_k = static_cast<const uint4*>(g.grad_k) + token * kv_heads * n.width;

  const uint4* from;
  HeadRows to;
  int head = 0, unit = 0, count = 1;  // of heads whose gradients are summed
  if (rest < heads * n.head) {
    head = rest / n.head;
    unit = rest % n.head;
    from = grad_q + head * n.width;
    to = p.q;
  } else if (rest -= heads * n.head; rest < kv_heads * key_units) {
    head = rest / key_units;
    unit = rest % key_units;
    from = grad_k + head * n.width;
    to = p.k;
  } else if (rest -= kv_heads * key_units; rest < shared_units) {
    unit = n.own + rest;
    from = grad_k;
    to = p.shared;
    count = kv_heads;
  } else {
    rest -= shared_units;
    head = rest / n.value;
    const int vector = rest % n.value;
    const auto* grad_v = static_cast<const uint4*>(g.grad_v) + token * kv_heads * n.value;
    *vector_at(g.v, token, head, vector, kBytes) = grad_v[rest];
    return;
  }
  const int shift = count > 1 || (shares && from == grad_k && unit >= n.own) ? n.own : 0;
  if (unit < n.still) {
    const int vector = still_vector(n, unit);
    if (count == 1) {
      *vector_at(to, token, head, vector - shift, kBytes) = from[vector];
      return;
    }
    float sum[kValues] = {};
    for (int h = 0; h < count; ++h) {
      float a[kValues];
      Type::unpack(from[h * n.width + vector], a);
#pragma unroll
      for (int i = 0; i < kValues; ++i) sum[i] += a[i];
    }
    *vector_at(to, token, head, vector - shift, kBytes) = Type::pack(sum);
    return;
  }
  const int j = unit - n.still;
  float a[kValues] = {}, b[kValues] = {};
  for (int h = 0; h < count; ++h) {
    float more_a[kValues], more_b[kValues];
    Type::unpack(from[h * n.width + n.begin + j], more_a);
    Type::unpack(from[h * n.width + n.begin + n.half + j], more_b);
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      a[i] += more_a[i];
      b[i] += more_b[i];
    }
  }
  turn_back<kElement>(p, Turn<kElement>(p, number % static_cast<Index>(p.length), j), a, b);
  const int first = n.begin + (p.interleaved ? 2 * j : j);
  const int second = p.interleaved ? first + 1 : first + n.half;
  *vector_at(to, token, head, first - shift, kBytes) = Type::pack(a);
  *vector_at(to, token, head, second - shift, kBytes) = Type::pack(b);
}

unsigned blocks_for(std::int64_t threads) {
  return static_cast<unsigned>((threads + kThreads - 1) / kThreads);
}
/// The last block's threads included.
bool few(std::int64_t threads) { return threads + kThreads <= std::int64_t{1} << 32; }

template <Element kElement>
void launch(const RotaryHeads& p, cudaStream_t stream) {
  const Units n(p, 0, Vector<kElement>::kValues);
  const std::int64_t threads = p.tokens * (p.heads + p.kv_heads) * n.head;
  if (few(threads)) {
    forward<kElement, std::uint32_t><<<blocks_for(threads), kThreads, 0, stream>>>(p, n);
  } else {
    forward<kElement, std::int64_t><<<blocks_for(threads), kThreads, 0, stream>>>(p, n);
  }
}

template <Element kElement>
void launch(const RotaryHeadsGrad& g, cudaStream_t stream) {
  const RotaryHeads& p = g.forward;
  const Units n(p, g.value, Vector<kElement>::kValues);
  const bool shares = n.own < n.width;
  const std::int64_t all = p.heads * n.head + p.kv_heads * ((shares ? n.own : n.head) + n.value) +
                           (shares ? n.head - n.own : 0);
  if (few(p.tokens * all)) {
    backward<kElement, std::uint32_t><<<blocks_for(p.tokens * all), kThreads, 0, stream>>>(g, n);
  } else {
    backward<kElement, std::int64_t><<<blocks_for(p.tokens * all), kThreads, 0, stream>>>(g, n);
  }
}

}  // namespace

void rotary_heads_cuda(const RotaryHeads& p, Stream stream) {
  if (p.tokens == 0) return;
  auto* queue = static_cast<cudaStream_t>(stream);
  p.element == Element::f32 ? launch<Element::f32>(p, queue) : launch<Element::bf16>(p, queue);
  check_cuda(cudaGetLastError(), "rotary_heads");
}

void rotary_heads_grad_cuda(const RotaryHeadsGrad& p, Stream stream) {
  if (p.forward.tokens == 0) return;
  auto* queue = static_cast<cudaStream_t>(stream);
  p.forward.element == Element::f32 ? launch<Element::f32>(p, queue)
                                    : launch<Element::bf16>(p, queue);
  check_cuda(cudaGetLastError(), "rotary_heads_grad");
}

}  // namespace subspace::kernels
