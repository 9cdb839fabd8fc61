#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "attention/layer.h"
#include "lora/layer_change.h"
#include "lora/selftest.h"
#include "lora/terms.h"

namespace subspace::selftest {

/// Random numbers of one case.
class Draw {
 public:
  explicit Draw(std::uint64_t seed);
  at::Tensor normal(at::IntArrayRef shape);
  /// Orthonormal columns, Haar.
  at::Tensor orthonormal(std::int64_t rows, std::int64_t columns);
  /// Invertible, condition number about 3.
  at::Tensor invertible(std::int64_t n);
  std::int64_t whole(std::int64_t least, std::int64_t most);

 private:
  at::Generator generator_;
};

/// One nn.Linear as stored, W [out, in], and its adapter: W' = W + B A.
struct Linear {
  at::Tensor weight, a, b;
  at::Tensor merged() const { return a.defined() ? weight + at::matmul(b, a) : weight; }
};
Linear linear(Draw& draw, std::int64_t out, std::int64_t in, std::int64_t rank);

enum Adapters : unsigned { kQ = 1, kK = 2, kV = 4, kO = 8, kAll = 15 };

/// Multi-head (G = H), grouped or multi-query attention as stored, and cut into heads.
struct Heads {
  std::int64_t heads, groups, d, d_k, d_v;
  Linear q, k, v, o;
  AttentionLayer layer;
  LayerChange change;
};
Heads random_heads(Draw& draw, unsigned adapters = kAll);
/// The same with widths that are given; rank 0 in the mask: no adapter.
Heads heads_of(Draw& draw, std::int64_t heads, std::int64_t groups, std::int64_t d,
               std::int64_t d_k, std::int64_t d_v, unsigned adapters);
/// Cuts `case.q` .. into `layer` and `change` again, after one of them was changed.
void cut(Heads& heads);

/// DeepSeek's latents, with norms on them, every matrix adapted.
struct Latents {
  std::int64_t heads, d, nope, rope, value, r_q, r_kv;
  Linear q_a, q_b, kv_a, kv_b, o;
  AttentionLayer layer;
  LayerChange change;
};
Latents random_latents(Draw& draw);

/// Some rotary embedding for heads of width k: either layout, whole or partial, scaled or not.
Rotary random_rotary(Draw& draw, std::int64_t k);
/// x [n, k] at positions 0 .. n-1 turned pair by pair, plain loops.
at::Tensor at_positions(const at::Tensor& x, const Rotary& rotary);

/// (W + A B) diag(gain) + full, formed, [n, in, out].
at::Tensor merged(const at::Tensor& weight, const MatrixChange& change);

Circuit circuit_of(const std::vector<Circuit>& circuits, Circuit::Kind kind);
/// Sum of all terms' matrices, [H, ..]; the rotation must be in the circuit.
at::Tensor sum_of_terms(const Circuit& circuit);
at::Tensor dense_term(const Circuit& circuit, const std::string& name);

/// max |found - expected| / max |expected|; infinity where a number is not finite or shapes differ.
double error_of(const at::Tensor& found, const at::Tensor& expected);
/// max |x|; infinity as above.
double largest(const at::Tensor& x);
/// How many singular values exceed `tolerance` times the largest.
std::int64_t rank_of(const at::Tensor& x, double tolerance = 1e-10);

std::vector<Property> term_properties();
std::vector<Property> model_properties();
std::vector<Property> metric_properties();
std::vector<Property> composition_properties();
std::vector<Property> loader_properties();

}  // namespace subspace::selftest
