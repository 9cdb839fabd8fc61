#include "kernels/adamw.h"

#include <cmath>

#include "kernels/adamw_step.h"
#include "kernels/over_batch.h"

namespace subspace::kernels {

AdamwState adamw_state(const Adamw& p, double square, float steps, float learning_rate) {
  return adamw_state_of(p.beta1, p.beta2, p.max_norm, square, steps, learning_rate);
}

void adamw_cpu(const Adamw& p, int threads) {
  over_batch(p.count, threads, [&](std::int64_t i) {
    const AdamwRun& run = p.runs[i];
    double sum = 0;
    for (std::int64_t j = 0; j < run.count; ++j) {
      sum += static_cast<double>(run.gradient[j]) * run.gradient[j];
    }
    p.partial[i] = sum;
  });
  double square = 0;
  for (std::int64_t i = 0; i < p.count; ++i) square += p.partial[i];
  *p.state = adamw_state(p, square, p.state->steps, *p.learning_rate);
  const AdamwState state = *p.state;
  const AdamwRates rates(p.beta1, p.beta2, p.eps);
  over_batch(p.count, threads, [&](std::int64_t i) {
    const AdamwRun& run = p.runs[i];
    for (std::int64_t j = 0; j < run.count; ++j) {
      if (state.skipped == 0) {
        adamw_number(state, rates, run.decay, run.gradient[j], run.master[j], run.mean[j],
                     run.square[j]);
        if (run.value != nullptr && p.element == Element::bf16) {
          static_cast<std::uint16_t*>(run.value)[j] = bf16_bits(run.master[j]);
        } else if (run.value != nullptr) {
          static_cast<float*>(run.value)[j] = run.master[j];
        }
      }
      run.gradient[j] = 0;
    }
  });
}

}  // namespace subspace::kernels
