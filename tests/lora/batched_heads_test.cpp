// What heads have in common over the model's width, formed all at once as for a GPU, against the
// head by head way of the CPU; and layers side by side against one after another.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>

#include "lora/heads_run.h"
#include "lora/random_layer.h"
#include "lora/selftest_cases.h"
#include "lora/spans.h"

namespace subspace {
namespace {

using testing::expect_close;
using testing::normal;
using testing::RandomLayer;

struct LayerCase {
  std::string name;
  AttentionLayer layer;
  LayerChange change;
};

std::vector<LayerCase> layer_cases() {
  std::vector<LayerCase> all;
  const auto add = [&](const std::string& name, const RandomLayer& given) {
    all.push_back({name, given.layer, given.change});
  };
  add("a key for each head", {0, 40, 3, 3, 8, 8});
  add("groups", {0, 40, 6, 2, 8, 5});
  add("one key", {0, 40, 4, 1, 8, 8});
  add("queries and values", {0, 40, 4, 2, 8, 8, "qv"});
  add("no adapter", {0, 40, 4, 2, 8, 8, ""});
  add("wider heads than the model", {0, 9, 2, 1, 12, 12});
  RandomLayer rotary(0, 40, 4, 2, 8, 8), stored(0, 40, 4, 2, 8, 8), thin(0, 40, 4, 2, 8, 8);
  rotary.layer.rotary = {Rotary::Layout::half, 8, 0, {1, 0.3, 0.1, 0.02}, 1.2};
  add("rotary, YaRN's factor", rotary);
  // As a checkpoint stores them: columns of a head lie in one piece.
  stored.layer.q = stored.layer.q.transpose(1, 2).contiguous().transpose(1, 2);
  stored.layer.k = stored.layer.k.transpose(1, 2).contiguous().transpose(1, 2);
  add("columns in one piece", stored);
  // Within the base's span to 1e-6 of its length: Gram matrices would lose what is outside.
  thin.change.q.a =
      at::matmul(thin.layer.q[0], normal({8, 3})).unsqueeze(0) + 1e-6 * normal({1, 40, 3});
  add("an adapter almost within the base's span", thin);
  RandomLayer deficient(0, 40, 2, 1, 8, 8);
  deficient.layer.v.select(2, 3).copy_(deficient.layer.v.select(2, 0));
  add("a base without full rank", deficient);
  selftest::Draw draw(3);
  const selftest::Latents latents = selftest::random_latents(draw);
  all.push_back({"latents", latents.layer, latents.change});
  return all;
}

void expect_same(const CircuitMetrics& found, const CircuitMetrics& expected, double bound) {
  for (at::Tensor CircuitMetrics::*member :
       {&CircuitMetrics::gram, &CircuitMetrics::fro, &CircuitMetrics::split, &CircuitMetrics::align,
        &CircuitMetrics::curve, &CircuitMetrics::values_base, &CircuitMetrics::values_adapted,
        &CircuitMetrics::values_delta, &CircuitMetrics::rank_delta, &CircuitMetrics::intruder_vec,
        &CircuitMetrics::intruder_sub, &CircuitMetrics::eigen}) {
    const at::Tensor &x = found.*member, &y = expected.*member;
    ASSERT_EQ(x.defined(), y.defined());
    if (!x.defined() || y.numel() == 0) continue;
    EXPECT_TRUE(x.is_cpu());
    EXPECT_TRUE(at::equal(x.isnan(), y.isnan()));
    expect_close(x.nan_to_num(), y.nan_to_num(), bound);
  }
  ASSERT_EQ(found.angles.size(), expected.angles.size());
  for (std::size_t j = 0; j < found.angles.size(); ++j) {
    expect_close(found.angles[j].cosines, expected.angles[j].cosines, 1e-9);
  }
}

TEST(BatchedHeads, EveryNumberIsThatOfOneHeadAtATime) {
  for (const LayerCase& given : layer_cases()) {
    const ::testing::ScopedTrace trace(__FILE__, __LINE__, given.name);
    for (const Circuit& circuit : circuits(given.layer, given.change)) {
      MetricOptions plain, batched;
      plain.curve = batched.curve = {0, 1, 7};
      plain.window = batched.window = {0, 1, 2, 3};
      batched.batched = true;
      expect_same(circuit_metrics(circuit, batched), circuit_metrics(circuit, plain), 1e-10);
    }
  }
}

TEST(BatchedHeads, SharedFeaturesAreThose) {
  for (const LayerCase& given : layer_cases()) {
    const ::testing::ScopedTrace trace(__FILE__, __LINE__, given.name);
    for (const Circuit& circuit : circuits(given.layer, given.change)) {
      ProductOptions options;
      options.batched = true;
      const CircuitProducts products = products_of(circuit, options);
      const auto found = shared_bases(products, frames_of(products));
      const auto expected = shared_bases(circuit, frames_of(circuit));
      ASSERT_EQ(found.size(), expected.size());
      for (std::size_t j = 0; j < found.size(); ++j) {
        EXPECT_EQ(found[j].change, expected[j].change);
        expect_close(found[j].values, expected[j].values, 1e-10);
        expect_close(found[j].load, expected[j].load, 1e-8);
      }
    }
  }
}

TEST(BatchedHeads, ASecondMomentWeighsTheSame) {
  const RandomLayer given(0, 30, 4, 2, 6, 6);
  MetricOptions plain, batched;
  plain.weight = batched.weight = normal({30, 30});
  batched.batched = true;
  for (const Circuit& circuit : circuits(given.layer, given.change)) {
    expect_same(circuit_metrics(circuit, batched), circuit_metrics(circuit, plain), 1e-10);
  }
}

TEST(Spans, ProductsBetweenAreTheOnesOfEachHead) {
  const RandomLayer given(0, 20, 6, 2, 4, 4);
  const Circuit circuit = circuits(given.layer, given.change)[0];
  const Spans left = spans_of(circuit.left), right = spans_of(circuit.right);
  for (const bool batched : {false, true}) {
    const at::Tensor all = products_between(right, left, batched);
    ASSERT_EQ(all.sizes(), (at::IntArrayRef{6, 7, 7}));
    for (std::int64_t head = 0; head < 6; ++head) {
      const at::Tensor y = side_by_side(right, head / 3, 2), x = side_by_side(left, head, 6);
      expect_close(all[head], at::matmul(y.t(), x));
      expect_close(part_between(all, right, 1, left, 0)[head],
                   at::matmul(given.change.k.a[0].t(), given.layer.q[head]));
    }
  }
  expect_close(batched_gram(left, 6)[5],
               at::matmul(side_by_side(left, 5, 6).t(), side_by_side(left, 5, 6)));
}

/// Five layers, as a file would give them.
HeadsSource source_of(std::vector<RandomLayer>& layers) {
  HeadsSource source;
  source.load = [&layers](std::int64_t i) { return layers[static_cast<std::size_t>(i)].layer; };
  source.change = [&layers](std::int64_t i) { return layers[static_cast<std::size_t>(i)].change; };
  return source;
}

Json heads_of(const HeadsSource& source, HeadsOptions options, const char* name) {
  options.out = std::filesystem::path(::testing::TempDir()) / name;
  options.layers = {0, 1, 2, 3, 4};
  std::vector<std::int64_t> order;
  options.on_layer = [&order](const LayerResult& layer, const Json& entries) {
    order.push_back(layer.layer);
    EXPECT_EQ(entries.size(), 8u);
  };
  Json json = run_lora_heads(source, options);
  EXPECT_EQ(order, options.layers);
  EXPECT_TRUE(std::filesystem::exists(options.out / "heads.safetensors"));
  std::filesystem::remove_all(options.out);
  json.erase("times");
  return json;
}

TEST(HeadsRun, LayersSideBySideGiveTheSame) {
  std::vector<RandomLayer> layers;
  for (std::int64_t i = 0; i < 5; ++i) layers.emplace_back(i, 50, 4, 2, 12, 12);
  const HeadsSource source = source_of(layers);
  HeadsOptions one, many;
  one.layers_at_once = 1;
  many.layers_at_once = 3;
  const int threads = at::get_num_threads();
  const Json expected = heads_of(source, one, "one"), found = heads_of(source, many, "many");
  EXPECT_EQ(at::get_num_threads(), threads);
  EXPECT_EQ(expected.at("heads").size(), 40u);
  EXPECT_EQ(expected.at("heads"), found.at("heads"));
  EXPECT_EQ(expected.at("layers"), found.at("layers"));
}

TEST(HeadsRun, AFailingLayerEndsTheRunFromAnyThread) {
  std::vector<RandomLayer> layers;
  for (std::int64_t i = 0; i < 5; ++i) layers.emplace_back(i, 50, 4, 2, 12, 12);
  layers[2].layer.v[0][3][2] = std::nan("");
  HeadsOptions options;
  options.out = std::filesystem::path(::testing::TempDir()) / "failing";
  options.layers = {0, 1, 2, 3, 4};
  for (const int at_once : {1, 3}) {
    options.layers_at_once = at_once;
    EXPECT_ANY_THROW(run_lora_heads(source_of(layers), options)) << at_once;
    EXPECT_FALSE(std::filesystem::exists(options.out / "heads.json"));
  }
  std::filesystem::remove_all(options.out);
}

/// Numbers of heads.json that are not null, in order.
void numbers_of(const Json& json, std::vector<double>& out) {
  if (json.is_number()) out.push_back(json.get<double>());
  if (!json.is_structured()) return;
  for (const Json& part : json) numbers_of(part, out);
}

TEST(HeadsRun, AGpuGivesTheSame) {
  if (!at::hasCUDA()) GTEST_SKIP() << "needs a GPU";
  std::vector<RandomLayer> layers;
  for (std::int64_t i = 0; i < 5; ++i) layers.emplace_back(i, 50, 4, 2, 12, 12);
  HeadsOptions cpu, gpu;
  gpu.device = at::Device(at::kCUDA, 0);
  std::vector<double> expected, found;
  numbers_of(heads_of(source_of(layers), cpu, "cpu").at("heads"), expected);
  numbers_of(heads_of(source_of(layers), gpu, "gpu").at("heads"), found);
  ASSERT_EQ(found.size(), expected.size());
  for (std::size_t j = 0; j < found.size(); ++j) {
    EXPECT_TRUE(std::abs(found[j] - expected[j]) <= 1e-9 * std::max(1.0, std::abs(expected[j])))
        << j << ": " << found[j] << " for " << expected[j];
  }
  for (const LayerCase& given : layer_cases()) {
    const ::testing::ScopedTrace trace(__FILE__, __LINE__, given.name);
    const LayerResult on_cpu = layer_heads(given.layer, given.change, cpu);
    const LayerResult on_gpu = layer_heads(given.layer, given.change, gpu);
    ASSERT_EQ(on_cpu.circuits.size(), on_gpu.circuits.size());
    for (std::size_t c = 0; c < on_cpu.circuits.size(); ++c) {
      expect_same(on_gpu.circuits[c].metrics, on_cpu.circuits[c].metrics, 1e-10);
    }
  }
}

}  // namespace
}  // namespace subspace
