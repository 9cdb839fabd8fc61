#include "spectrum/layer_spectra.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <map>

#include "attention/fused.h"
#include "base/error.h"

namespace subspace {
namespace {

at::Tensor normal(std::vector<std::int64_t> shape) { return at::randn(shape, at::kDouble); }

Norm rms(std::int64_t width) {
  return {Norm::Kind::rms, at::rand({width}, at::kDouble) + 0.5, {}, 1e-6};
}

/// Widths all different, so that a transposition shows.
AttentionLayer grouped(std::int64_t heads, std::int64_t groups) {
  AttentionLayer layer;
  layer.q = normal({heads, 23, 6});
  layer.k = normal({groups, 23, 6});
  layer.v = normal({groups, 23, 5});
  layer.o = normal({heads, 5, 29});
  layer.input = rms(23);
  layer.rotary = {Rotary::Layout::half, 6, 0, {1.0, 0.3, 0.01}, 1.0};
  return layer;
}

AttentionLayer latent() {
  AttentionLayer layer;
  layer.qa = normal({31, 13});
  layer.kva = normal({31, 11});
  layer.kpe = normal({31, 4});
  layer.q = normal({3, 13, 6});
  layer.q_rope = normal({3, 13, 4});
  layer.k = normal({3, 11, 6});
  layer.v = normal({3, 11, 5});
  layer.o = normal({3, 5, 31});
  layer.input = rms(31);
  layer.q_latent = rms(13);
  layer.kv_latent = rms(11);
  layer.rotary = {Rotary::Layout::interleaved, 4, 0, {1.0, 0.1}, 1.3};
  return layer;
}

void expect_close(const at::Tensor& found, const at::Tensor& expected, const std::string& what) {
  ASSERT_EQ(found.sizes(), expected.sizes()) << what;
  // Gram matrices resolve values down to about 1e-8 of the largest.
  const double error = (found - expected).abs().max().item<double>();
  const double bound = 3e-8 * expected.max().item<double>();
  EXPECT_TRUE(error <= bound) << what << ": " << error << " > " << bound;
}

at::Tensor by_head_factor(const at::Tensor& heads, HeadScaling scaling) {
  if (scaling == HeadScaling::none) return heads;
  const at::Tensor values = at::linalg_svdvals(heads);
  const at::Tensor size =
      scaling == HeadScaling::spectral ? values.select(1, 0) : values.square().sum(1).sqrt();
  return heads / size.view({-1, 1, 1});
}

/// Everything dense, straight from the definitions.
void check(const AttentionLayer& given, const SpectraOptions& options) {
  const AttentionLayer layer = options.fold_norms ? fold_norms(given) : given;
  const std::int64_t heads = layer.heads(), per = heads / layer.groups();
  const at::Tensor k = layer.k.repeat_interleave(per, 0);
  const at::Tensor v = layer.v.repeat_interleave(per, 0);
  auto rows = [&](const at::Tensor& x) {
    return at::linalg_svdvals(by_head_factor(x, options.normalize).flatten(0, 1));
  };
  auto columns = [&](const at::Tensor& x) {
    const at::Tensor scaled = by_head_factor(x, options.normalize);
    return at::linalg_svdvals(at::cat(scaled.unbind(0), 1));
  };
  std::map<std::string, std::pair<at::Tensor, at::Tensor>> expected;
  expected["Q"] = {at::linalg_svdvals(layer.q), columns(layer.q)};
  expected["K"] = {at::linalg_svdvals(layer.k), columns(layer.k)};
  expected["V"] = {at::linalg_svdvals(layer.v), columns(layer.v)};
  expected["O"] = {at::linalg_svdvals(layer.o), rows(layer.o)};
  const at::Tensor vo = at::matmul(v, layer.o);
  const at::Tensor qk = at::matmul(layer.q, k.transpose(1, 2));
  auto first = [](const at::Tensor& values, std::int64_t n) { return values.narrow(-1, 0, n); };
  expected["VO"] = {first(at::linalg_svdvals(vo), 5), rows(vo)};
  expected["OV"] = {{}, columns(vo)};
  expected["QK"] = {first(at::linalg_svdvals(qk), 6), rows(qk)};
  expected["KQ"] = {{}, columns(qk)};
  if (layer.is_mla()) {
    expected["Qpe"] = {at::linalg_svdvals(layer.q_rope), columns(layer.q_rope)};
    expected["QA"] = {{}, at::linalg_svdvals(layer.qa)};
    expected["KVA"] = {{}, at::linalg_svdvals(layer.kva)};
    expected["Kpe"] = {{}, at::linalg_svdvals(layer.kpe)};
  }
  for (const std::int64_t delta : options.offsets) {
    const at::Tensor left = layer.is_mla() ? layer.q_rope : layer.q;
    const at::Tensor right = layer.is_mla() ? layer.kpe.expand({heads, -1, -1}) : k;
    // R(delta) written out: row vectors, +sin above the diagonal of each pair.
    const auto& rotary = layer.rotary;
    at::Tensor turn = at::eye(left.size(2), at::kDouble);
    for (std::int64_t f = 0; f < rotary.dims / 2; ++f) {
      const bool half = rotary.layout == Rotary::Layout::half;
      const std::int64_t a = half ? f : 2 * f, b = half ? f + rotary.dims / 2 : 2 * f + 1;
      const double angle = static_cast<double>(delta) * rotary.frequencies[std::size_t(f)];
      const double scale = rotary.scale * rotary.scale;
      turn[a][a] = turn[b][b] = scale * std::cos(angle);
      turn[a][b] = scale * std::sin(angle);
      turn[b][a] = -scale * std::sin(angle);
    }
    const at::Tensor product = at::matmul(at::matmul(left, turn), right.transpose(1, 2));
    expected["QK@" + std::to_string(delta)] = {first(at::linalg_svdvals(product), left.size(2)),
                                               {}};
  }
  const auto found = layer_spectra(given, options);
  EXPECT_EQ(found.size(), expected.size());
  for (const MapSpectra& s : found) {
    ASSERT_TRUE(expected.contains(s.map)) << s.map;
    const auto& [by_head, stack] = expected[s.map];
    ASSERT_EQ(s.heads.defined(), by_head.defined()) << s.map;
    ASSERT_EQ(s.stack.defined(), stack.defined()) << s.map;
    if (by_head.defined()) expect_close(s.heads, by_head, s.map + ".heads");
    if (stack.defined()) expect_close(s.stack, stack, s.map + ".stack");
  }
}

struct Case {
  const char* name;
  AttentionLayer (*make)();
};

class LayerSpectra : public testing::TestWithParam<Case> {};

TEST_P(LayerSpectra, EqualsDenseSvdUnderEveryConvention) {
  at::manual_seed(3);
  const AttentionLayer layer = GetParam().make();
  for (const bool exact : {false, true}) {
    for (const bool fold : {false, true}) {
      for (const auto scaling :
           {HeadScaling::none, HeadScaling::spectral, HeadScaling::frobenius}) {
        SpectraOptions options;
        options.normalize = scaling;
        options.fold_norms = fold;
        options.exact = exact;
        options.offsets = {0, 3, 256};
        check(layer, options);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Layers, LayerSpectra,
                         testing::Values(Case{"mha", [] { return grouped(4, 4); }},
                                         Case{"gqa", [] { return grouped(4, 2); }},
                                         Case{"mqa", [] { return grouped(4, 1); }},
                                         Case{"one_head", [] { return grouped(1, 1); }},
                                         Case{"mla", [] { return latent(); }}),
                         [](const auto& info) { return info.param.name; });

TEST(LayerSpectraTest, ZeroHeadsAreZero) {
  at::manual_seed(4);
  AttentionLayer layer = grouped(3, 3);
  layer.v.select(0, 1).zero_();
  SpectraOptions options;
  options.normalize = HeadScaling::spectral;
  options.offsets = {};
  for (const MapSpectra& s : layer_spectra(layer, options)) {
    if (s.map == "V" || s.map == "VO") {
      EXPECT_EQ(s.heads[1].abs().max().item<double>(), 0) << s.map;
    }
  }
}

TEST(LayerSpectraTest, NotFiniteWeightsAreRefused) {
  AttentionLayer layer = grouped(2, 2);
  layer.o[0][0][0] = std::numeric_limits<double>::quiet_NaN();
  EXPECT_THROW(layer_spectra(layer, {}), std::exception);
}

}  // namespace
}  // namespace subspace
