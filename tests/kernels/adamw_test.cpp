// AdamW over many tensors against its equations in double precision.
#include "kernels/adamw.h"

#include <limits>

#include "kernels/training_kernels.h"

namespace subspace::kernels {
namespace {

/// Tensors of odd sizes, cut into runs, on a backend.
class Model {
 public:
  Model(Backend backend, Element element, std::vector<std::int64_t> sizes)
      : backend_(backend), element_(element) {
    for (const std::int64_t size : sizes) {
      count_ += size;
      ends_.push_back(count_);
    }
    master_ = normals(Element::f32, count_, 1, 4);
    masters_.emplace(backend, floats(master_));
    const std::vector<float> zeros(static_cast<std::size_t>(count_), 0);
    gradients_.emplace(backend, zeros);
    means_.emplace(backend, zeros);
    squares_.emplace(backend, zeros);
    values_.emplace(backend, count_ * element_bytes(element));
    state_.emplace(backend, std::vector<AdamwState>(1));
    std::vector<AdamwRun> runs;
    std::int64_t begin = 0;
    for (std::size_t i = 0; i < ends_.size(); ++i) {
      for (; begin < ends_[i]; begin += runs.back().count) {
        runs.push_back({masters_->data() + begin, gradients_->data() + begin,
                        means_->data() + begin, squares_->data() + begin,
                        values_->data() + begin * element_bytes(element),
                        std::min(kAdamwRun, ends_[i] - begin), decay(i)});
      }
    }
    partial_.emplace(backend, static_cast<std::int64_t>(runs.size()));
    runs_count_ = static_cast<std::int64_t>(runs.size());
    runs_.emplace(backend, runs);
    mean_.resize(master_.size());
    square_.resize(master_.size());
  }

  /// One step of both; `scale` is the size of the gradients.
  void step(float rate, double scale, double max_norm, int seed, float poison = 0) {
    Doubles gradient = normals(Element::f32, count_, scale, static_cast<std::uint64_t>(seed));
    if (poison != 0) gradient[gradient.size() / 2] = poison;
    // The table points at this memory, so the numbers go into it.
    Buffer<float> fresh(backend_, floats(gradient));
    copy(gradients_->data(), fresh.data());
    Buffer<float> rate_there(backend_, std::vector<float>{rate});
    const Adamw p{.runs = runs_->data(),
                  .count = runs_count_,
                  .learning_rate = rate_there.data(),
                  .state = state_->data(),
                  .partial = partial_->data(),
                  .beta1 = 0.9,
                  .beta2 = 0.99,
                  .eps = 1e-8,
                  .max_norm = max_norm,
                  .element = element_};
    SUBSPACE_RUN_ON(backend_, adamw, p);
    state_->values();  // waits
    if (poison == 0) reference_step(rate, gradient, max_norm);
  }

  void expect_reference() {
    const double relative = std::abs(state().norm - norm_) / norm_;
    EXPECT_FALSE(!(relative <= 2 * unit())) << state().norm << " " << norm_;
    EXPECT_EQ(state().steps, static_cast<float>(steps_));
    Doubles bound, value_bound;
    for (std::size_t i = 0; i < master_.size(); ++i) {
      // A step moves a number by about the rate; each is off by some 20 roundings of that, and the
      // number itself by two.
      bound.push_back(unit() * (2.0 * steps_ * std::abs(master_[i]) + 30 * moved_) + 1e-12);
      value_bound.push_back(bound.back() + stored(element_) * std::abs(master_[i]));
    }
    expect_within(wide(masters_->values()), master_, bound, "master");
    expect_within(decode(element_, values_->values()), master_, value_bound, "value");
    for (const float g : gradients_->values()) ASSERT_EQ(g, 0);
  }

  AdamwState state() { return state_->values()[0]; }
  std::vector<float> masters() { return masters_->values(); }

 private:
  static float decay(std::size_t tensor) { return tensor % 2 == 0 ? 0.1f : 0.0f; }

  void copy(float* to, const float* from) const {
    const std::size_t bytes = static_cast<std::size_t>(count_) * sizeof(float);
#ifdef SUBSPACE_CUDA
    if (backend_ == Backend::cuda) {
      EXPECT_EQ(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToDevice), cudaSuccess);
      return;
    }
#endif
    std::memcpy(to, from, bytes);
  }

  void reference_step(double rate, const Doubles& gradient, double max_norm) {
    ++steps_;
    double squares = 0;
    for (const double g : gradient) squares += g * g;
    norm_ = std::sqrt(squares);
    const double clip = max_norm > 0 ? std::min(1.0, max_norm / (norm_ + 1e-6)) : 1;
    std::size_t tensor = 0;
    for (std::size_t i = 0; i < gradient.size(); ++i) {
      while (static_cast<std::int64_t>(i) >= ends_[tensor]) ++tensor;
      const double g = gradient[i] * clip;
      mean_[i] = 0.9 * mean_[i] + 0.1 * g;
      square_[i] = 0.99 * square_[i] + 0.01 * g * g;
      const double m = mean_[i] / (1 - std::pow(0.9, steps_));
      const double v = square_[i] / (1 - std::pow(0.99, steps_));
      master_[i] -= rate * static_cast<double>(decay(tensor)) * master_[i];
      master_[i] -= rate * m / (std::sqrt(v) + 1e-8);
    }
    // |m| / sqrt(v) is at most (1 - b1) / sqrt(1 - b2) / sqrt(1 - b1^2 / b2), below 4 here.
    moved_ += 4 * rate;
  }

  Backend backend_;
  Element element_;
  std::int64_t count_ = 0, runs_count_ = 0;
  std::vector<std::int64_t> ends_;
  std::optional<Buffer<float>> masters_, gradients_, means_, squares_;
  std::optional<Bytes> values_;
  std::optional<Buffer<AdamwState>> state_;
  std::optional<Buffer<double>> partial_;
  std::optional<Buffer<AdamwRun>> runs_;
  Doubles master_, mean_, square_;
  double norm_ = 0, moved_ = 0;
  int steps_ = 0;
};

class AdamwOn : public OnBackend {};

TEST_P(AdamwOn, FollowsTheEquations) {
  Model model(backend(), element(), {4096 * 3, 64, 1, 5000, 7, 4100});
  for (int step = 0; step < 6; ++step) {
    // Now clipped, now not.
    model.step(0.01f * static_cast<float>(step + 1), step % 2 == 0 ? 3 : 0.001, 2, 20 + step);
    model.expect_reference();
  }
}

TEST_P(AdamwOn, WithoutClipping) {
  Model model(backend(), element(), {1000});
  model.step(0.1f, 5, 0, 3);
  model.expect_reference();
}

TEST_P(AdamwOn, AGradientThatIsNotFiniteChangesNothing) {
  Model model(backend(), element(), {64, 5000});
  model.step(0.1f, 1, 1, 3);
  const std::vector<float> before = model.masters();
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    model.step(0.1f, 1, 1, 4, bad);
    EXPECT_EQ(model.masters(), before);
    EXPECT_FALSE(std::isfinite(model.state().norm));
    EXPECT_EQ(model.state().steps, 1);
  }
  model.step(0.1f, 1, 1, 5);
  model.expect_reference();
}

SUBSPACE_ON_BACKENDS(AdamwOn);

}  // namespace
}  // namespace subspace::kernels
