#pragma once

#include <variant>

#include "nn/attention.h"
#include "nn/expert_usage.h"
#include "nn/neuron_experts.h"

namespace subspace::nn {

/// W2 gelu(W1 x + b1) + b2 with the exact gelu, or W2 (silu(Wg x) * (W1 x)), biases if configured.
class FeedForward {
 public:
  struct Names {
    std::string gate, up, down;
  };
  FeedForward(Parameters& parameters, const FeedForwardConfig& config, std::int64_t width,
              const Names& names);
  at::Tensor operator()(const at::Tensor& x) const;
  /// The same without the last bias, which is `output_bias()`.
  at::Tensor without_bias(const at::Tensor& x) const;
  const at::Tensor& output_bias() const { return down_.bias; }

 private:
  at::Tensor inner(const at::Tensor& x) const;

  bool gated_;
  Linear up_, down_;  // gated: gate and up from one product
};

/// A mixture of gated experts, as DeepSeek-V3 (Liu et al. 2024, section 2.1.2) routes it.
///
///   s = sigmoid(x R) (or softmax);  the `active` largest of s + b are chosen, after all but the
///   best groups of experts are ruled out (a group's score: its two largest, summed)
///   y = shared(x) + scaling sum_chosen (s_e / sum s) expert_e(x)
///
/// b, the correction bias, takes no gradient: after_step() moves it by `bias_speed` towards equal
/// load. The balance loss, if there is a coefficient: alpha E sum_e f_e P_e with f_e the share of
/// choices that fell on e and P_e the mean of its normalised score, over the tokens of the pass
/// (Fedus et al. 2021; DeepSeek-V3's is the same over each sequence).
///
/// Cost: where there are more experts than twice the active ones, each computes its own tokens: on
/// the CPU one after the other, on the GPU (bfloat16, compute capability 9 and up) in two grouped
/// products over tokens sorted by expert, which need no word from the device. Elsewhere all experts
/// compute all tokens in two products, E / active times the arithmetic.
class MixtureOfExperts {
 public:
  MixtureOfExperts(Parameters& parameters, const MoeConfig& config, std::int64_t width,
                   const std::string& base);
  at::Tensor operator()(const at::Tensor& x, PassContext& pass) const;
  void after_step();
  const ExpertUsage& usage() const { return usage_; }

  /// Three ways to compute the experts, for x [N, d], choices and their weights [N, active]. The
  /// grouped products have no float64.
  at::Tensor all_experts(const at::Tensor& x, const at::Tensor& chosen,
                         const at::Tensor& weights) const;
  at::Tensor chosen_experts(const at::Tensor& x, const at::Tensor& chosen,
                            const at::Tensor& weights) const;
  at::Tensor grouped_experts(const at::Tensor& x, const at::Tensor& chosen,
                             const at::Tensor& weights) const;

 private:
  struct Route {
    at::Tensor chosen, weights;  // [N, active]
  };
  at::Tensor computed(const at::Tensor& x, const Route& route) const;
  Route route(const at::Tensor& x, PassContext& pass) const;
  at::Tensor without_weak_groups(const at::Tensor& scores) const;

  MoeConfig config_;
  std::int64_t width_;
  at::Tensor router_, bias_;
  at::Tensor up_, down_;     // [E 2 m, d] gate and up of each expert, [E d, m]
  mutable at::Tensor load_;  // [E] choices since the last step
  ExpertUsage usage_;
  std::optional<FeedForward> shared_;
};

/// One layer: pre-norm  x + attention(norm(x)), then the same with the feed-forward part, or
/// post-norm (BERT)  norm(x + attention(x)). Without a feed-forward part the first half alone.
class Block {
 public:
  Block(Parameters& parameters, const ModelConfig& config, std::int64_t index);
  at::Tensor operator()(const at::Tensor& x, PassContext& pass) const;
  /// The same on a residual stream, whose last addition is left to the norm that comes next. If the
  /// pass asks for rows, the stream goes on with those alone: [1, P, d].
  void operator()(Residual& stream, PassContext& pass) const;
  void after_step();
  /// Of its experts; nullptr if it has none.
  const ExpertUsage* usage() const;
  /// nullptr if it has none.
  const NeuronExperts* neuron_experts() const { return std::get_if<NeuronExperts>(&feed_forward_); }

 private:
  at::Tensor feed_forward(const at::Tensor& x, PassContext& pass) const;

  bool post_norm_;
  std::optional<Attention> attention_;
  NormLayer first_, second_;
  std::variant<std::monostate, FeedForward, MixtureOfExperts, NeuronExperts> feed_forward_;
};

/// Name in front of a layer's tensors, "model.layers.3.".
std::string layer_name(const ModelConfig& config, std::int64_t index);

}  // namespace subspace::nn
