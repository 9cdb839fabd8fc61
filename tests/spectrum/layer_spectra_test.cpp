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
  const auto found = layer_spectra(given, options).maps;
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
  for (const MapSpectra& s : layer_spectra(layer, options).maps) {
    if (s.map == "V" || s.map == "VO") {
      EXPECT_EQ(s.heads[1].abs().max().item<double>(), 0) << s.map;
    }
  }
}

const MapSpectra& find(const LayerMaps& maps, const std::string& name) {
  for (const MapSpectra& s : maps.maps) {
    if (s.map == name) return s;
  }
  throw std::runtime_error("no map " + name);
}

SpectraOptions at_offset(std::int64_t delta) {
  SpectraOptions options;
  options.offsets = {delta};
  return options;
}

TEST(LayerSpectraTest, ModelSpaceCarriesFusedMapsThroughTheLatents) {
  at::manual_seed(5);
  const AttentionLayer layer = latent();
  for (const bool exact : {false, true}) {
    SpectraOptions options = at_offset(7);
    options.space = Space::model;
    options.exact = exact;
    const LayerMaps found = layer_spectra(layer, options);
    const at::Tensor q = at::matmul(layer.qa, layer.q), k = at::matmul(layer.kva, layer.k),
                     v = at::matmul(layer.kva, layer.v),
                     q_rope = rotate(at::matmul(layer.qa, layer.q_rope), layer.rotary, 7);
    const at::Tensor qk = at::matmul(q, k.transpose(1, 2)), vo = at::matmul(v, layer.o);
    auto rows = [](const at::Tensor& x) { return at::linalg_svdvals(x.flatten(0, 1)); };
    auto columns = [](const at::Tensor& x) { return at::linalg_svdvals(at::cat(x.unbind(0), 1)); };
    auto check = [&](const char* map, const at::Tensor& heads, const at::Tensor& stack) {
      const MapSpectra& s = find(found, map);
      if (heads.defined()) {
        expect_close(s.heads, at::linalg_svdvals(heads).narrow(-1, 0, s.heads.size(1)), map);
      }
      if (stack.defined()) expect_close(s.stack, stack.narrow(0, 0, s.stack.size(0)), map);
    };
    check("QK", qk, rows(qk));
    check("KQ", {}, columns(qk));
    check("VO", vo, rows(vo));
    check("OV", {}, columns(vo));
    check("QK@7", at::matmul(q_rope, layer.kpe.t()), {});
    EXPECT_EQ(find(found, "QK").shape, (std::vector<std::int64_t>{31, 31}));
    EXPECT_EQ(find(found, "VO").stack_shape, (std::vector<std::int64_t>{93, 31}));
    // The plain maps stay what they are.
    expect_close(find(found, "Q").heads, at::linalg_svdvals(layer.q), "Q");
  }
}

TEST(LayerSpectraTest, ModelSpaceGoesThroughTheSharedOutput) {
  at::manual_seed(6);
  AttentionLayer layer = grouped(4, 4);
  layer.ob = normal({2, 29, 37});
  SpectraOptions options;
  options.space = Space::model;
  const LayerMaps found = layer_spectra(layer, options);
  const at::Tensor o = at::matmul(layer.o, layer.ob.repeat_interleave(2, 0));
  const at::Tensor vo = at::matmul(layer.v, o);
  expect_close(find(found, "VO").heads, at::linalg_svdvals(vo).narrow(1, 0, 5), "VO");
  const at::Tensor& stack = find(found, "VO").stack;
  expect_close(stack, at::linalg_svdvals(vo.flatten(0, 1)).narrow(0, 0, stack.size(0)), "stack");
  expect_close(find(found, "OB").stack, at::linalg_svdvals(layer.ob.flatten(0, 1)), "OB");
}

TEST(LayerSpectraTest, PublishedConventionsHaveThePublishedFaults) {
  at::manual_seed(8);
  AttentionLayer layer = latent();
  SpectraOptions options = published_2025();
  options.offsets = {};
  const LayerMaps found = layer_spectra(layer, options);
  const AttentionLayer folded = fold_norms(layer);
  // Fault 4: QA is folded, KVA and Kpe are not.
  expect_close(find(found, "QA").stack, at::linalg_svdvals(folded.qa), "QA");
  expect_close(find(found, "KVA").stack, at::linalg_svdvals(layer.kva), "KVA");
  expect_close(find(found, "Kpe").stack, at::linalg_svdvals(layer.kpe), "Kpe");
  // Fault 1: kv_b_proj [heads (6 + 5), 11] row by row, cut once.
  std::vector<at::Tensor> rows;
  for (std::int64_t head = 0; head < 3; ++head) {
    rows.push_back(folded.k[head].t());
    rows.push_back(folded.v[head].t());
  }
  const at::Tensor kv_b = at::cat(rows, 0);
  const at::Tensor k = kv_b.narrow(0, 0, 18).reshape({3, 6, 11});
  const at::Tensor v = kv_b.narrow(0, 18, 15).reshape({3, 5, 11});
  expect_close(find(found, "K").heads, at::linalg_svdvals(k), "K");
  expect_close(find(found, "V").heads, at::linalg_svdvals(v), "V");
  const at::Tensor qk = at::matmul(folded.q, k);
  const at::Tensor once = by_head_factor(qk, HeadScaling::spectral);
  // Fault 3: the stack QK is divided twice by what it was first divided by.
  const at::Tensor twice = once / at::linalg_svdvals(qk).select(1, 0).view({-1, 1, 1});
  expect_close(find(found, "KQ").stack, at::linalg_svdvals(at::cat(once.unbind(0), 1)), "KQ");
  expect_close(find(found, "QK").stack, at::linalg_svdvals(twice.flatten(0, 1)), "QK");
}

TEST(LayerSpectraTest, NotFiniteWeightsAreRefusedByNameOrMarked) {
  at::manual_seed(9);
  AttentionLayer layer = grouped(4, 2);
  layer.v[1][0][0] = std::numeric_limits<double>::quiet_NaN();
  layer.o[0][0][0] = std::numeric_limits<double>::infinity();
  try {
    layer_spectra(layer, {});
    FAIL() << "NaN was let through";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::NotFinite);
    EXPECT_NE(std::string(error.what()).find("head 1 of V"), std::string::npos) << error.what();
  }
  SpectraOptions options = at_offset(0);
  options.mark_nonfinite = true;
  const LayerMaps found = layer_spectra(layer, options);
  auto marked = [&](const char* map) {
    std::vector<std::int64_t> heads;
    const at::Tensor& values = find(found, map).heads;
    for (std::int64_t i = 0; i < values.size(0); ++i) {
      const auto nan = values[i].isnan();
      EXPECT_EQ(nan.any().item<bool>(), nan.all().item<bool>());
      if (nan.all().item<bool>()) heads.push_back(i);
    }
    return heads;
  };
  EXPECT_EQ(marked("V"), (std::vector<std::int64_t>{1}));
  EXPECT_EQ(marked("O"), (std::vector<std::int64_t>{0}));
  EXPECT_EQ(marked("VO"), (std::vector<std::int64_t>{0, 2, 3}));
  EXPECT_TRUE(marked("Q").empty());
  EXPECT_TRUE(marked("QK@0").empty());
  EXPECT_EQ(found.notes.size(), 2u);
  AttentionLayer without = layer;
  without.o = layer.o.clone();
  without.o[0].zero_();
  expect_close(find(found, "O").stack, at::linalg_svdvals(without.o.flatten(0, 1)), "O stack");
}

TEST(LayerSpectraTest, NotFiniteSharedMatricesCannotBeMarked) {
  AttentionLayer layer = latent();
  layer.kva[2][3] = std::numeric_limits<double>::infinity();
  SpectraOptions options;
  options.mark_nonfinite = true;
  EXPECT_THROW(layer_spectra(layer, options), Error);
}

}  // namespace
}  // namespace subspace
