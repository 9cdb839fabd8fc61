// What the tests of a training step's kernels share: operands on a backend, and bounds.
#pragma once

#include <cmath>

#include "kernels/on_backend.h"
#include "kernels/training_reference.h"

namespace subspace::kernels {

using Bytes = Buffer<std::uint8_t>;

/// Unit roundoff of float32 sums, and of a stored value.
inline double unit() { return std::ldexp(1, -24); }
inline double stored(Element element) { return std::ldexp(1, element == Element::f32 ? -24 : -8); }

inline Doubles wide(const std::vector<float>& values) { return {values.begin(), values.end()}; }

class OnBackend : public ::testing::TestWithParam<std::tuple<Backend, Element>> {
 protected:
  void SetUp() override {
    if (const std::string why = missing_for(backend()); !why.empty()) GTEST_SKIP() << why;
  }
  Backend backend() const { return std::get<0>(GetParam()); }
  Element element() const { return std::get<1>(GetParam()); }
};

/// The portable CPU version and the GPU's.
inline std::vector<Backend> two_backends() {
  std::vector<Backend> all = backends();
  std::erase(all, Backend::avx2);
  return all;
}

inline std::string case_name(const ::testing::TestParamInfo<std::tuple<Backend, Element>>& info) {
  return std::string(name_of(std::get<0>(info.param))) +
         (std::get<1>(info.param) == Element::f32 ? "_f32" : "_bf16");
}

#define SUBSPACE_ON_BACKENDS(fixture)                                                          \
  INSTANTIATE_TEST_SUITE_P(All, fixture,                                                       \
                           ::testing::Combine(::testing::ValuesIn(two_backends()),             \
                                              ::testing::Values(Element::f32, Element::bf16)), \
                           case_name)

/// kernel_cuda(p, nullptr) or kernel_cpu(p, 2).
#ifdef SUBSPACE_CUDA
#define SUBSPACE_RUN_ON(backend, kernel, p) \
  (backend) == Backend::cuda ? kernel##_cuda(p, nullptr) : kernel##_cpu(p, 2)
#else
#define SUBSPACE_RUN_ON(backend, kernel, p) kernel##_cpu(p, 2)
#endif

}  // namespace subspace::kernels
