// Gram matrices and products, by the own kernel and by the library, against plain formulas.
#include "spectrum/gram.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <limits>

#include "spectrum/product.h"

namespace subspace {
namespace {

constexpr double kEps = std::numeric_limits<double>::epsilon();

class Products : public ::testing::TestWithParam<Multiplier> {
 protected:
  void SetUp() override { at::manual_seed(3); }

  /// `bound`: the same sums of absolute values; `terms` of each.
  static void expect_near(const at::Tensor& found, const at::Tensor& want, const at::Tensor& bound,
                          std::int64_t terms) {
    ASSERT_EQ(found.sizes(), want.sizes());
    const at::Tensor within =
        (found - want).abs() <= bound * (static_cast<double>(terms + 8) * kEps);
    EXPECT_TRUE(within.all().item<bool>()) << (found - want).abs().max().item<double>();
  }
  /// Only the own kernel promises it to the bit.
  static void expect_symmetric(const at::Tensor& x) {
    EXPECT_TRUE(GetParam() == Multiplier::library || x.equal(x.mT()));
  }
};

at::Tensor normals(at::IntArrayRef shape) { return at::randn(shape, at::kDouble); }

TEST_P(Products, OfEveryLayout) {
  const at::Tensor a = normals({40, 90}), b = normals({90, 70});
  const at::Tensor want = at::einsum("ik,kj->ij", {a, b});
  const at::Tensor bound = at::einsum("ik,kj->ij", {a.abs(), b.abs()});
  for (const at::Tensor& left :
       {a, a.t().contiguous().t(), normals({40, 180}).slice(1, 0, 180, 2)}) {
    for (const at::Tensor& right :
         {b, b.t().contiguous().t(), normals({90, 99}).narrow(1, 9, 70)}) {
      // Strided ones are given the values here.
      const at::Tensor x = at::empty_strided(left.sizes(), left.strides(), a.options()).copy_(a);
      const at::Tensor y = at::empty_strided(right.sizes(), right.strides(), a.options()).copy_(b);
      expect_near(product(x, y, GetParam()), want, bound, 90);
    }
  }
}

TEST_P(Products, OfBatches) {
  const at::Tensor a = normals({5, 20, 30}), b = normals({5, 30, 10});
  const auto want = [](const at::Tensor& x, const at::Tensor& y) {
    return at::einsum("hik,hkj->hij", {x, y});
  };
  expect_near(product(a, b, GetParam()), want(a, b), want(a.abs(), b.abs()), 30);
  const at::Tensor turned = b.mT().contiguous().mT();
  expect_near(product(a, turned, GetParam()), want(a, b), want(a.abs(), b.abs()), 30);
  const at::Tensor one = b.narrow(0, 2, 1).expand({5, 30, 10});
  for (const at::Tensor& shared : {one, b.narrow(0, 2, 1), b[2]}) {
    expect_near(product(a, shared, GetParam()), want(a, one), want(a.abs(), one.abs()), 30);
  }
  const at::Tensor first = a[1], spread = first.expand({5, 20, 30});
  expect_near(product(first, b, GetParam()), want(spread, b), want(spread.abs(), b.abs()), 30);
}

TEST_P(Products, OfNothing) {
  EXPECT_EQ(product(normals({0, 4}), normals({4, 3}), GetParam()).sizes(), (at::IntArrayRef{0, 3}));
  EXPECT_TRUE(product(normals({2, 0}), normals({0, 3}), GetParam()).eq(0).all().item<bool>());
}

TEST_P(Products, GramMatrices) {
  for (const std::int64_t n : {1, 7, 130, 600}) {
    const at::Tensor x = normals({90, n}), w = at::rand({90}, at::kDouble);
    const at::Tensor turned = x.t().contiguous().t();
    const auto want = [](const at::Tensor& y, const at::Tensor& v) {
      return at::einsum("ki,k,kj->ij", {y, v, y});
    };
    for (const at::Tensor& y : {x, turned}) {
      const at::Tensor plain = gram_of_columns(y, GetParam());
      expect_near(plain, want(x, at::ones_like(w)), want(x.abs(), at::ones_like(w)), 90);
      expect_symmetric(plain);
      const at::Tensor weighted = gram_of_columns(y, w, GetParam());
      expect_near(weighted, want(x, w), want(x.abs(), w), 90);
      expect_symmetric(weighted);
    }
    // A weight for every row, though they lie apart.
    const at::Tensor apart = at::rand({180}, at::kDouble).slice(0, 0, 180, 2);
    expect_near(gram_of_columns(x, apart, GetParam()), want(x, apart), want(x.abs(), apart), 90);
  }
}

TEST_P(Products, WeightedGramMatrices) {
  for (const std::int64_t k : {1, 30, 700}) {
    const at::Tensor x = normals({20, k, 65}), root = normals({20, k, 3});
    const at::Tensor w = at::einsum("hia,hja->hij", {root, root});
    const auto want = [](const at::Tensor& y, const at::Tensor& v) {
      return at::einsum("hki,hkl,hlj->ij", {y, v, y});
    };
    const at::Tensor bound = want(x.abs(), w.abs());
    for (const at::Tensor& y : {x, x.mT().contiguous().mT()}) {
      const at::Tensor found = weighted_gram(y, w, GetParam());
      expect_near(found, want(x, w), bound, 2 * k + 20 * k);
      expect_symmetric(found);
    }
  }
}

TEST_P(Products, GramMatricesOfHeads) {
  const at::Tensor x = normals({9, 50, 33});
  const at::Tensor want = at::einsum("hki,hkj->hij", {x, x});
  const at::Tensor bound = at::einsum("hki,hkj->hij", {x.abs(), x.abs()});
  for (const at::Tensor& y :
       {x, x.mT().contiguous().mT(), x.permute({1, 0, 2}).contiguous().permute({1, 0, 2})}) {
    const at::Tensor found = gram_of_heads(y, GetParam());
    expect_near(found, want, bound, 50);
    expect_symmetric(found);
  }
}

INSTANTIATE_TEST_SUITE_P(By, Products, ::testing::Values(Multiplier::own, Multiplier::library),
                         [](const auto& info) {
                           return info.param == Multiplier::own ? "own" : "library";
                         });

TEST(Multiplier, FollowsFromTheProcessorAlone) {
  using kernels::Isa;
  using kernels::Vendor;
  EXPECT_EQ(multiplier(Vendor::other, Isa::avx2), Multiplier::own);
  EXPECT_EQ(multiplier(Vendor::other, Isa::avx512), Multiplier::own);
  EXPECT_EQ(multiplier(Vendor::other, Isa::portable), Multiplier::library);
  for (const Isa isa : {Isa::portable, Isa::avx2, Isa::avx512}) {
    EXPECT_EQ(multiplier(Vendor::intel, isa), Multiplier::library);
  }
  EXPECT_EQ(multiplier_for(at::zeros({2}, at::kFloat)), Multiplier::library);
  EXPECT_EQ(multiplier_for(at::zeros({2}, at::kDouble)),
            multiplier(kernels::processor_vendor(), kernels::widest_isa()));
}

TEST(Multiplier, ThreadsChangeNoBitOfTheOwnProduct) {
  at::manual_seed(4);
  const int threads = at::get_num_threads();
  const at::Tensor x = normals({300, 400});
  at::set_num_threads(1);
  const at::Tensor one = gram_of_columns(x, Multiplier::own);
  at::set_num_threads(3);
  const at::Tensor three = gram_of_columns(x, Multiplier::own);
  at::set_num_threads(threads);
  EXPECT_TRUE(one.equal(three));
}

}  // namespace
}  // namespace subspace
