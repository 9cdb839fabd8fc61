#pragma once

#include <cstdint>
#include <vector>

namespace subspace::kernels {

// Plain loops in double precision: what every fast version is compared with. They share no code
// with those, allocate, and take indices in range for granted.

using Doubles = std::vector<double>;
using Indices = std::vector<std::int64_t>;

/// All side^2 sums of each row, sorted by the rule of ProductKeyTopk, of which the first k are
/// kept. s1, s2: [rows, side]; scores, index: [rows, k].
void product_key_topk_reference(const float* s1, const float* s2, std::int64_t rows,
                                std::int64_t side, std::int64_t k, float* scores,
                                std::int64_t* index);

/// Shapes and inputs shared by the layers of experts: scores, index [tokens, selections].
struct Routed {
  std::int64_t tokens = 0;
  std::int64_t selections = 0;
  std::int64_t experts = 0;
  std::int64_t width = 0;
  Doubles scores;
  Indices index;
};

/// EthosExperts. xp, acc: [tokens, width]; table: [experts, width]; p: [tokens, selections].
struct ExpertsForward {
  Doubles acc;
  Doubles p;
};
ExpertsForward ethos_experts_reference(const Routed& r, const Doubles& xp, const Doubles& table);
/// StoredExperts; `acc` is y.
ExpertsForward stored_experts_reference(const Routed& r, const Doubles& x, const Doubles& down,
                                        const Doubles& up);

/// Gradients of sum(grad * acc). `output` and `input` are the weights a and dp of each selection.
struct ExpertsBackward {
  Doubles scores;
  Doubles output;
  Doubles input;
  Doubles vectors;  // of xp or x
  Doubles table;    // of the table, or of `up`
  Doubles down;
};
ExpertsBackward ethos_experts_grad_reference(const Routed& r, const Doubles& xp,
                                             const Doubles& table, const Doubles& grad);
ExpertsBackward stored_experts_grad_reference(const Routed& r, const Doubles& x,
                                              const Doubles& down, const Doubles& up,
                                              const Doubles& grad);

/// The whole layer after routing; row vectors.
///
///   h_e = gelu(z_e W1),   y = (1 / heads) sum_j gelu(x . W_u h_e(j)) s_j (h_e(j) W_v)
///
/// x [tokens, width], z [experts, latent], w1 [latent, hidden], w_u [width, hidden],
/// w_v [hidden, width].
struct EthosLayer {
  Routed routed;  // its width is the model's
  std::int64_t hidden = 0;
  std::int64_t latent = 0;
  std::int64_t heads = 1;
  Doubles x;
  Doubles z;
  Doubles w1;
  Doubles w_u;
  Doubles w_v;
};
struct EthosLayerGrad {
  Doubles x;
  Doubles scores;
  Doubles z;
  Doubles w1;
  Doubles w_u;
  Doubles w_v;
};

/// As defined: forms both `width`-wide vectors of an expert for each selection.
Doubles ethos_layer_naive(const EthosLayer& layer);
EthosLayerGrad ethos_layer_naive_grad(const EthosLayer& layer, const Doubles& grad_y);
/// As computed: a table of experts, x W_u once a token, acc in the hidden width, acc W_v once.
Doubles ethos_layer_reordered(const EthosLayer& layer);
EthosLayerGrad ethos_layer_reordered_grad(const EthosLayer& layer, const Doubles& grad_y);

}  // namespace subspace::kernels
