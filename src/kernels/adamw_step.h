// One number's step, the same on CPU and GPU.
#pragma once

#include <cmath>

#include "kernels/adamw.h"

#ifdef __CUDACC__
#define SUBSPACE_BOTH __host__ __device__
#else
#define SUBSPACE_BOTH
#endif

namespace subspace::kernels {

struct AdamwRates {
  float mean_kept, mean_new, square_kept, square_new, eps;
  SUBSPACE_BOTH AdamwRates(double beta1, double beta2, double eps_value)
      : mean_kept(static_cast<float>(beta1)),
        mean_new(static_cast<float>(1 - beta1)),
        square_kept(static_cast<float>(beta2)),
        square_new(static_cast<float>(1 - beta2)),
        eps(static_cast<float>(eps_value)) {}
};

SUBSPACE_BOTH inline AdamwState adamw_state_of(double beta1, double beta2, double max_norm,
                                               double square, float steps, float learning_rate) {
  AdamwState out;
  const double norm = sqrt(square);
  out.norm = static_cast<float>(norm);
  // Finite is what is left of a difference with itself.
  out.skipped = out.norm - out.norm == 0 ? 0.0f : 1.0f;
  out.steps = steps + (1 - out.skipped);
  const double clip = max_norm > 0 ? max_norm / (norm + 1e-6) : 1;
  out.clip = static_cast<float>(clip < 1 ? clip : 1);
  out.decays = learning_rate;
  out.rate = static_cast<float>(learning_rate / (1 - pow(beta1, static_cast<double>(out.steps))));
  out.root = static_cast<float>(1 / sqrt(1 - pow(beta2, static_cast<double>(out.steps))));
  return out;
}

SUBSPACE_BOTH inline void adamw_number(const AdamwState& state, const AdamwRates& rates,
                                       float decay, float gradient, float& master, float& mean,
                                       float& square) {
  const float g = gradient * state.clip;
  mean = rates.mean_kept * mean + rates.mean_new * g;
  square = rates.square_kept * square + rates.square_new * g * g;
  master -= state.decays * decay * master;
  master -= state.rate * mean / (sqrtf(square) * state.root + rates.eps);
}

}  // namespace subspace::kernels
