#include "attention/fused.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "attention/rope.h"
#include "base/error.h"

namespace subspace {
namespace {

at::Tensor normal(std::vector<std::int64_t> shape) { return at::randn(shape, at::kDouble); }

void expect_equal(const at::Tensor& found, const at::Tensor& expected) {
  ASSERT_EQ(found.sizes(), expected.sizes());
  const double error = (found - expected).abs().max().item<double>();
  const double bound = 1e-12 * expected.abs().max().item<double>();
  EXPECT_TRUE(error <= bound) << error << " > " << bound;
}

Rotary rotary(Rotary::Layout layout, std::int64_t begin = 0, double scale = 1) {
  return {layout, 6, begin, {1.0, 0.3, 0.01}, scale};
}

AttentionLayer grouped() {
  AttentionLayer layer;
  layer.q = normal({6, 23, 8});
  layer.k = normal({2, 23, 8});
  layer.v = normal({2, 23, 5});
  layer.o = normal({6, 5, 29});
  layer.rotary = rotary(Rotary::Layout::half);
  return layer;
}

class Rotation : public ::testing::TestWithParam<Rotary::Layout> {};

TEST_P(Rotation, OffsetsAddAndLengthsStay) {
  const Rotary r = rotary(GetParam(), 2);
  const at::Tensor x = normal({3, 5, 8});
  expect_equal(rotate(rotate(x, r, 4), r, 7), rotate(x, r, 11));
  expect_equal(rotate(x, r, 0), x);
  expect_equal(rotate(x, r, 9).norm(2, -1), x.norm(2, -1));
  expect_equal(rotate(x, r, 9).narrow(-1, 0, 2), x.narrow(-1, 0, 2));
}

TEST_P(Rotation, BothSidesTurnedAreOneRotationByTheDifference) {
  const Rotary r = rotary(GetParam(), 0, 1.3);
  Rotary side = r;
  side.scale = std::sqrt(r.scale);  // rotate() applies its square; one side carries scale once
  const at::Tensor q = normal({4, 6}), k = normal({5, 6});
  const at::Tensor turned = at::matmul(rotate(q, side, 17), rotate(k, side, 5).t());
  expect_equal(turned, at::matmul(rotate(q, r, 12), k.t()));
}

INSTANTIATE_TEST_SUITE_P(Layouts, Rotation,
                         ::testing::Values(Rotary::Layout::half, Rotary::Layout::interleaved));

TEST(Rotation, TurnsTheFirstPairAsDocumented) {
  const at::Tensor x = at::eye(6, at::kDouble)[0];
  const at::Tensor half = rotate(x, rotary(Rotary::Layout::half), 2);
  EXPECT_DOUBLE_EQ(half[0].item<double>(), std::cos(2.0));
  EXPECT_DOUBLE_EQ(half[3].item<double>(), std::sin(2.0));
  const at::Tensor pairs = rotate(x, rotary(Rotary::Layout::interleaved), 2);
  EXPECT_DOUBLE_EQ(pairs[1].item<double>(), std::sin(2.0));
}

TEST(Rope, BothSpellingsOfTheConfigurationAgree) {
  const Json old_way = {{"rope_theta", 500.0},
                        {"rope_scaling", {{"type", "linear"}, {"factor", 4.0}}}};
  const Json new_way = {
      {"rope_parameters", {{"rope_type", "linear"}, {"factor", 4.0}, {"rope_theta", 500.0}}}};
  std::vector<std::vector<double>> found;
  for (const Json& json : {old_way, new_way}) {
    const Fields config(json, "config.json");
    found.push_back(make_rotary(config, read_rope(config), 6, Rotary::Layout::half).frequencies);
  }
  EXPECT_EQ(found[0], found[1]);
  ASSERT_EQ(found[0].size(), 3U);
  EXPECT_DOUBLE_EQ(found[0][1], std::pow(500.0, -2.0 / 6) / 4);
}

TEST(Rope, LongRopeDividesByTheShortFactorsAndScales) {
  Json json = {{"max_position_embeddings", 4096},
               {"rope_scaling",
                {{"type", "longrope"},
                 {"original_max_position_embeddings", 1024},
                 {"short_factor", {1.0, 1.5, 4.0}},
                 {"long_factor", {8.0, 8.0, 8.0}}}}};
  const Fields config(json, "config.json");
  const Rotary found = make_rotary(config, read_rope(config), 6, Rotary::Layout::half);
  ASSERT_EQ(found.frequencies.size(), 3U);
  EXPECT_DOUBLE_EQ(found.frequencies[0], 1);
  EXPECT_DOUBLE_EQ(found.frequencies[2], std::pow(10000.0, -4.0 / 6) / 4);
  EXPECT_DOUBLE_EQ(found.scale, std::sqrt(1 + std::log(4.0) / std::log(1024.0)));
  for (const Json& wrong : {Json{1.0, 1.5}, Json{1.0, 1.5, 0.0}, Json{1.0, 1.5, "4"}, Json(3)}) {
    json["rope_scaling"]["short_factor"] = wrong;
    EXPECT_THROW(make_rotary(config, read_rope(config), 6, Rotary::Layout::half), Error);
  }
}

TEST(Rope, OddWidthIsRefused) {
  const Json json = {{"rope_theta", 500.0}};
  const Fields config(json, "config.json");
  EXPECT_THROW(make_rotary(config, read_rope(config), 7, Rotary::Layout::half), Error);
}

TEST(Fused, FactorsMultiplyToTheMapsOfEachHeadAndItsGroup) {
  const AttentionLayer layer = grouped();
  const Factored messages = vo(layer), logits = qk(layer);
  for (std::int64_t head = 0; head < 6; ++head) {
    const std::int64_t group = head / 3;
    expect_equal(at::matmul(messages.left[head], messages.right[head]),
                 at::matmul(layer.v[group], layer.o[head]));
    expect_equal(at::matmul(logits.left[head], logits.right[head]),
                 at::matmul(layer.q[head], layer.k[group].t()));
  }
}

TEST(Fused, OffsetZeroIsThePlainMapAndNoRotationHasNoOffsets) {
  AttentionLayer layer = grouped();
  const Factored plain = qk(layer), turned = qk_at(layer, 0);
  expect_equal(at::matmul(turned.left, turned.right), at::matmul(plain.left, plain.right));
  layer.rotary.layout = Rotary::Layout::none;
  EXPECT_THROW(qk_at(layer, 1), Error);
}

TEST(FoldNorms, RmsWeightMovesIntoWhatReadsIt) {
  AttentionLayer layer = grouped();
  layer.input = {Norm::Kind::rms, normal({23}), {}, 1e-6};
  layer.k_head = {Norm::Kind::rms, normal({8}), {}, 1e-6};
  const AttentionLayer folded = fold_norms(layer);
  EXPECT_EQ(folded.input.kind, Norm::Kind::none);
  EXPECT_EQ(folded.k_head.kind, Norm::Kind::none);
  const at::Tensor x = normal({7, 23});
  expect_equal(at::matmul(x, folded.v), at::matmul(x * layer.input.weight, layer.v));
  expect_equal(at::matmul(x, folded.k),
               at::matmul(x * layer.input.weight, layer.k) * layer.k_head.weight);
  expect_equal(folded.o, layer.o);
}

TEST(FoldNorms, LayerNormCentresToo) {
  AttentionLayer layer = grouped();
  layer.input = {Norm::Kind::layer, normal({23}), normal({23}), 1e-6};
  const AttentionLayer folded = fold_norms(layer);
  const at::Tensor x = normal({7, 23});
  const at::Tensor centred = x - x.mean(-1, true);
  const at::Tensor read = centred * layer.input.weight + layer.input.bias;
  expect_equal(at::matmul(x, folded.q) + folded.q_bias.unsqueeze(1), at::matmul(read, layer.q));
}

TEST(FoldNorms, LatentNormsAndScalesMoveIntoTheHeads) {
  AttentionLayer layer;
  layer.qa = normal({31, 13});
  layer.kva = normal({31, 11});
  layer.kpe = normal({31, 6});
  layer.q = normal({3, 13, 8});
  layer.q_rope = normal({3, 13, 6});
  layer.k = normal({3, 11, 8});
  layer.v = normal({3, 11, 5});
  layer.o = normal({3, 5, 31});
  layer.input = {Norm::Kind::rms, normal({31}), {}, 1e-6};
  layer.q_latent = {Norm::Kind::rms, normal({13}), {}, 1e-6};
  layer.kv_latent = {Norm::Kind::rms, normal({11}), {}, 1e-6};
  layer.q_latent_scale = 1.7;
  layer.kv_latent_scale = 0.6;
  const AttentionLayer folded = fold_norms(layer);
  const at::Tensor x = normal({7, 31}), q = normal({7, 13}), kv = normal({7, 11});
  for (const auto& [found, given] :
       {std::pair{folded.qa, layer.qa}, {folded.kva, layer.kva}, {folded.kpe, layer.kpe}}) {
    expect_equal(at::matmul(x, found), at::matmul(x * layer.input.weight, given));
  }
  for (const auto& [found, given] : {std::pair{folded.q, layer.q}, {folded.q_rope, layer.q_rope}}) {
    expect_equal(at::matmul(q, found), at::matmul(q * layer.q_latent.weight * 1.7, given));
  }
  for (const auto& [found, given] : {std::pair{folded.k, layer.k}, {folded.v, layer.v}}) {
    expect_equal(at::matmul(kv, found), at::matmul(kv * layer.kv_latent.weight * 0.6, given));
  }
}

TEST(FoldNorms, SharedKeyAndLatentQueriesWithoutAKeyLatent) {
  AttentionLayer layer;
  layer.qa = normal({31, 13});
  layer.q = normal({4, 13, 8});
  layer.k = layer.v = normal({1, 31, 8});
  layer.o = normal({4, 8, 5});
  layer.ob = normal({2, 5, 31});
  layer.values_share_key = true;
  layer.input = {Norm::Kind::rms, normal({31}), {}, 1e-6};
  layer.q_latent = {Norm::Kind::rms, normal({13}), {}, 1e-6};
  layer.q_head = {Norm::Kind::rms, {}, {}, 1e-6};
  layer.k_head = {Norm::Kind::rms, normal({8}), {}, 1e-6};
  const AttentionLayer folded = fold_norms(layer);
  EXPECT_EQ(folded.q_head.kind, Norm::Kind::none);
  const at::Tensor x = normal({7, 31}), c = normal({7, 13});
  expect_equal(at::matmul(x, folded.qa), at::matmul(x * layer.input.weight, layer.qa));
  expect_equal(at::matmul(c, folded.q), at::matmul(c * layer.q_latent.weight, layer.q));
  const at::Tensor key = at::matmul(x * layer.input.weight, layer.k) * layer.k_head.weight;
  expect_equal(at::matmul(x, folded.k), key);
  expect_equal(at::matmul(x, folded.v), key);
  expect_equal(folded.o, layer.o);
  expect_equal(folded.ob, layer.ob);
}

}  // namespace
}  // namespace subspace
