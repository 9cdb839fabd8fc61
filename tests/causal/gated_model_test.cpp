#include "causal/gated_model.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include <random>

#include "base/atomic_file.h"
#include "base/error.h"
#include "causal/causal_run.h"
#include "train/induction.h"

namespace subspace {
namespace {

constexpr std::int64_t kWidth = 24, kHeads = 4, kHead = 6, kVocabulary = 40;

class Gated : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    at::set_num_threads(1);  // products of a few numbers: threads would only wait for each other
    at::manual_seed(11);
    std::random_device seed;
    folder_ = std::filesystem::temp_directory_path() / ("subspace_gated_" + std::to_string(seed()));
    make(Json::object());
  }
  void TearDown() override { remove_tree(folder_); }

  /// A model of its kind with random weights, and random changes of all its matrices.
  void make(const Json& more) {
    Json config = {{"model_type", "llama"},    {"hidden_size", kWidth},
                   {"num_hidden_layers", 3},   {"num_attention_heads", kHeads},
                   {"head_dim", kHead},        {"vocab_size", kVocabulary},
                   {"intermediate_size", 20},  {"max_position_embeddings", 32},
                   {"initializer_range", 0.4}, {"num_key_value_heads", 2}};
    if (std::string(GetParam()) == "attention_only") {
      config.update({{"model_type", "subspace_decoder"},
                     {"hidden_act", "none"},
                     {"num_key_value_heads", kHeads},
                     {"qk_rope_head_dim", 4}});
      config.erase("intermediate_size");
    }
    if (std::string(GetParam()) == "biases") config["attention_bias"] = true;
    config.update(more);
    nn::Model::Options options;
    options.dtype = at::kDouble;
    const nn::Model model(nn::read_model_config(config, "test"), options);
    const at::NoGradGuard no_gradient;
    for (const nn::Parameter& parameter : model.parameters().all()) {
      if (parameter.value.dim() == 1) {
        at::Tensor value = parameter.value;
        value.add_(0.3 * at::randn_like(value));
      }
    }
    nn::save_model(model, folder_);
    groups_ = model.config().attention.kv_heads;
    for (std::int64_t i = 0; i < 3; ++i) changes_.push_back(random_change(i));
  }

  LayerChange random_change(std::int64_t index) const {
    auto normal = [](std::vector<std::int64_t> shape) {
      return 0.4 * at::randn(shape, at::kDouble);
    };
    LayerChange out;
    out.index = index;
    out.q = {normal({1, kWidth, 3}), normal({kHeads, 3, kHead}), {}, {}};
    out.k = {normal({1, kWidth, 3}), normal({groups_, 3, kHead}), {}, {}};
    out.v = {normal({1, kWidth, 3}), normal({groups_, 3, kHead}), normal({groups_, kHead}) + 1, {}};
    out.o = {normal({kHeads, kHead, 3}), normal({1, 3, kWidth}), {}, {}};
    if (std::string(GetParam()) == "biases") {
      out.q_bias = normal({kHeads, kHead});
      out.o_bias = normal({kWidth});
    }
    return out;
  }

  static at::Tensor tokens() { return at::randint(kVocabulary, {3, 9}, at::kLong); }

  static void expect_equal(const at::Tensor& found, const at::Tensor& expected) {
    const double error = ((found - expected).norm() / expected.norm()).item<double>();
    EXPECT_TRUE(error <= 1e-12) << error;
  }

  std::filesystem::path folder_;
  std::int64_t groups_ = 0;
  std::vector<LayerChange> changes_;
};

// P2, and the two ends of every gate.
TEST_P(Gated, AllGatesOneIsTheMergedModelAndAllZeroTheBase) {
  const GatedModel model(folder_, changes_, at::kDouble, 1);
  nn::Input input;
  input.tokens = tokens();
  const at::NoGradGuard no_gradient;
  expect_equal(model.hidden(input.tokens, model.gates(1)), model.merged(1)->hidden(input));
  expect_equal(model.hidden(input.tokens, model.gates(0)), model.base_model(1)->hidden(input));
}

TEST_P(Gated, GatesOfOneMatrixAreTheModelWithThatMatrixAlone) {
  const at::NoGradGuard no_gradient;
  nn::Input input;
  input.tokens = tokens();
  const GatedModel model(folder_, changes_, at::kDouble, 1);
  const GatedTerm terms[] = {GatedTerm::q, GatedTerm::k, GatedTerm::v, GatedTerm::o};
  for (const GatedTerm term : terms) {
    std::vector<LayerChange> alone(3);
    for (std::size_t i = 0; i < 3; ++i) {
      alone[i].index = changes_[i].index;
      if (term == GatedTerm::q) alone[i].q = changes_[i].q, alone[i].q_bias = changes_[i].q_bias;
      if (term == GatedTerm::k) alone[i].k = changes_[i].k;
      if (term == GatedTerm::v) alone[i].v = changes_[i].v;
      if (term == GatedTerm::o) alone[i].o = changes_[i].o, alone[i].o_bias = changes_[i].o_bias;
    }
    at::Tensor gates = model.gates(0);
    gates.select(1, static_cast<std::int64_t>(term)).fill_(1);
    const GatedModel only(folder_, alone, at::kDouble, 1);
    expect_equal(model.hidden(input.tokens, gates), only.merged(1)->hidden(input));
  }
}

// A head's gates are the model whose adapter has that head alone (of q and o, which are a head's
// own).
TEST_P(Gated, GatesOfOneHeadAreTheAdapterOnThatHead) {
  const at::NoGradGuard no_gradient;
  nn::Input input;
  input.tokens = tokens();
  const GatedModel model(folder_, changes_, at::kDouble, 1);
  std::vector<LayerChange> alone(3);
  for (std::size_t i = 0; i < 3; ++i) alone[i].index = changes_[i].index;
  alone[1].q = changes_[1].q;
  alone[1].q.b = changes_[1].q.b.clone();
  alone[1].o = changes_[1].o;
  alone[1].o.a = changes_[1].o.a.clone();
  for (const std::int64_t other : {0, 1, 3}) {
    alone[1].q.b[other].zero_();
    alone[1].o.a[other].zero_();
  }
  std::vector<LayerChange> without_biases = changes_;
  for (LayerChange& change : without_biases) change.q_bias = change.o_bias = at::Tensor();
  const GatedModel plain(folder_, without_biases, at::kDouble, 1);
  at::Tensor gates = plain.gates(0);
  gates[1][static_cast<std::int64_t>(GatedTerm::q)][2] = 1;
  gates[1][static_cast<std::int64_t>(GatedTerm::o)][2] = 1;
  expect_equal(plain.hidden(input.tokens, gates),
               GatedModel(folder_, alone, at::kDouble, 1).merged(1)->hidden(input));
}

TEST_P(Gated, AnEdgeActsOnItsReaderAloneAndOnlyWhereThereIsAnAdapter) {
  const at::NoGradGuard no_gradient;
  const at::Tensor input = tokens();
  const GatedModel model(folder_, changes_, at::kDouble, 1);
  const at::Tensor gates = model.gates(1), plain = model.hidden(input, gates);
  for (const Mode mode : kModes) {
    for (const Route route : {Route::bn, Route::nb, Route::nn}) {
      const EdgeGate off{0, 1, 2, 3, mode, route, 0}, open{0, 1, 2, 3, mode, route, 1};
      expect_equal(model.hidden(input, gates, {open}), plain);
      const double moved =
          ((model.hidden(input, gates, {off}) - plain).norm() / plain.norm()).item<double>();
      EXPECT_GT(moved, 1e-6) << mode_name(mode) << kRouteNames[static_cast<std::size_t>(route)];
    }
  }
  // Without the reader's adapter nothing of it can be withheld, without the writer's nothing of
  // his.
  std::vector<LayerChange> reader_only = changes_;
  reader_only[0] = {};
  std::vector<LayerChange> writer_only = changes_;
  writer_only[2] = {};
  const GatedModel no_writer(folder_, reader_only, at::kDouble, 1);
  const GatedModel no_reader(folder_, writer_only, at::kDouble, 1);
  const EdgeGate nb{0, 1, 2, 3, Mode::q, Route::nb, 0}, bn{0, 1, 2, 3, Mode::q, Route::bn, 0};
  expect_equal(no_writer.hidden(input, gates, {nb}), no_writer.hidden(input, gates));
  expect_equal(no_reader.hidden(input, gates, {bn}), no_reader.hidden(input, gates));
}

TEST_P(Gated, EffectsAddUpAndCiteTheirParts) {
  const GatedModel model(folder_, changes_, at::kDouble, 1);
  train::InductionTask task;
  task.symbols = 20;
  task.held_out = 3;
  train::Settings settings;
  settings.batch_size = 4;
  const auto batches = train::induction_batches(task, model.config(), settings);
  CausalOptions options;
  options.orders = 2;
  options.edges = {{0, 0, 1, 1, Mode::k}};
  const Json result = causal_effects(model, *batches, changes_, options);
  for (const char* kind : {"groups", "heads"}) {
    double sum = 0;
    for (const Json& part : result.at(kind)) sum += part.at("shapley").at("mean").get<double>();
    const double drop = result.at("loss").at("drop").at("mean").get<double>();
    EXPECT_NEAR(sum, drop, 1e-9 * std::max(1.0, std::abs(drop)));
  }
  EXPECT_EQ(result.at("groups").size(), 6U);
  EXPECT_EQ(result.at("heads").size(), 24U);
  EXPECT_EQ(result.at("terms").size(), 18U);
  ASSERT_EQ(result.at("edges").size(), 1U);
  EXPECT_EQ(result.at("edges")[0].at("routes").size(), 3U);
  EXPECT_LE(result.at("check").at("merged").get<double>(), 1e-10);
  const std::string csv = causal_csv(result);
  EXPECT_EQ(std::count(csv.begin(), csv.end(), '\n'), 1 + 6 + 24 + 18 + 72 + 1);
}

INSTANTIATE_TEST_SUITE_P(Models, Gated, ::testing::Values("grouped", "attention_only", "biases"));

using GatedRefusal = Gated;

TEST_P(GatedRefusal, OtherModelsAreRefusedByName) {
  changes_.clear();
  make({{"model_type", "subspace_decoder"}, {"position_embedding_type", "absolute"}});
  try {
    GatedModel(folder_, changes_, at::kDouble, 1);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::Unsupported);
    EXPECT_NE(std::string(error.what()).find("learned positions"), std::string::npos);
  }
}

INSTANTIATE_TEST_SUITE_P(Models, GatedRefusal, ::testing::Values("grouped"));

}  // namespace
}  // namespace subspace
