#pragma once

#include "nn/attention.h"
#include "nn/expert_usage.h"
#include "nn/router.h"

namespace subspace::nn {

/// A feed-forward layer of single-neuron experts, x [.., d] -> [.., d], with j over the H k
/// selections of a token, their weights s_j and experts e = e(j), gelu the exact one:
///
///   ethos  h_e = gelu(z_e W1),  y = (1/H) (sum_j gelu(h_e . x W_u) s_j h_e) W_v
///          (Medford et al. 2025); stored: z [N, d_l]
///   peer   y = sum_j gelu(u_e . x) s_j v_e  (He 2024); stored: u, v [N, d]
///   molae  y = (sum_j gelu(u_e . x W_u) s_j v_e) W_v; stored: u, v [N, d_l], in one latent space
///          read and written by matrices that all experts share (MoLAE's idea, Liu et al. 2025, on
///          PEER's experts)
///
/// Tensors beside the router's: ethos expert_latents, w1 [d_h, d_l], w_u [d_h, d], w_v [d, d_h];
/// peer expert_down, expert_up; molae these and w_u, w_v; each with ".weight".
/// First values: latents standard normal; everything else such that vectors of unit power give
/// activations of unit power and one selection with weight and activation one gives unit power
/// (peer and molae: H selections, one a head). docs/ethos.md has the formulas.
class NeuronExperts {
 public:
  NeuronExperts(Parameters& parameters, const NeuronExpertsConfig& config, std::int64_t width,
                const std::string& base);
  at::Tensor operator()(const at::Tensor& x, const PassContext& pass) const;

  const NeuronExpertsConfig& config() const { return config_; }
  const ExpertUsage& usage() const { return usage_; }
  /// What the experts add for x [T, d] and choices that are given.
  at::Tensor experts(const at::Tensor& x, const Selections& chosen) const;
  Selections route(const at::Tensor& x, bool training = false) const {
    return router_(x, training);
  }

 private:
  void build(Parameters& parameters, std::int64_t width, const std::string& base);

  NeuronExpertsConfig config_;
  ProductKeyRouter router_;
  Linear read_, write_;   // W_u, W_v; not of peer
  at::Tensor z_, w1_;     // ethos
  at::Tensor down_, up_;  // peer, molae
  ExpertUsage usage_;
};

}  // namespace subspace::nn
