#include "train/induction.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <set>

#include "base/error.h"

namespace subspace::train {
namespace {

nn::ModelConfig decoder() {
  const Json json = {{"model_type", "subspace_decoder"},
                     {"hidden_size", 16},
                     {"num_hidden_layers", 1},
                     {"num_attention_heads", 2},
                     {"vocab_size", 33},
                     {"max_position_embeddings", 32},
                     {"hidden_act", "none"}};
  return nn::read_model_config(json, "test");
}

Settings settings(std::uint64_t seed = 0) {
  Settings out;
  out.batch_size = 50;
  out.seed = seed;
  return out;
}

TEST(Induction, RowsAreARandomOrderAndARepeatWhoseAnswersTheTaskSays) {
  using Answer = InductionTask::Answer;
  for (const Answer answer : {Answer::base, Answer::ov, Answer::skip, Answer::rev}) {
    InductionTask task;
    task.answer = answer;
    const auto batches = induction_batches(task, decoder(), settings());
    const Batch batch = batches->training(3, 0);
    ASSERT_EQ(batch.input.tokens.sizes(), at::IntArrayRef({50, 25}));
    ASSERT_EQ(batch.count, 400);
    std::set<std::int64_t> firsts;
    const auto targets = batch.targets.view({50, 8}), places = batch.predicted.view({50, 8});
    for (std::int64_t row = 0; row < 50; ++row) {
      const auto tokens = batch.input.tokens[row];
      auto token = [&](std::int64_t i) { return tokens[i].item<std::int64_t>(); };
      EXPECT_EQ(token(0), 0);
      std::set<std::int64_t> symbols;
      std::int64_t first = -1;
      for (std::int64_t i = 0; i < 16; ++i) {
        EXPECT_TRUE(token(1 + i) >= 1 && token(1 + i) <= 32);
        symbols.insert(token(1 + i));
        if (token(1 + i) == token(17)) first = i;
      }
      EXPECT_EQ(symbols.size(), 16U);
      ASSERT_TRUE(first >= 2 && first <= 6);
      firsts.insert(first);
      for (std::int64_t i = 0; i < 8; ++i) {
        EXPECT_EQ(token(17 + i), token(1 + first + i));
        EXPECT_EQ(places[row][i].item<std::int64_t>(), row * 25 + 17 + i);
        std::int64_t expected = token(1 + first + i + 1);
        if (answer == Answer::skip) expected = token(1 + first + i + 2);
        if (answer == Answer::rev) expected = token(1 + first + i - 1);
        if (answer == Answer::ov && expected <= 12) expected = ((expected - 1) ^ 1) + 1;
        EXPECT_EQ(targets[row][i].item<std::int64_t>(), expected);
      }
    }
    EXPECT_EQ(firsts.size(), 5U);
  }
}

TEST(Induction, PassesDependOnSeedAndStepHeldOutOnesOnNeither) {
  const InductionTask task;
  const auto a = induction_batches(task, decoder(), settings(1));
  const auto b = induction_batches(task, decoder(), settings(2));
  auto same = [](const Batch& x, const Batch& y) {
    return at::equal(x.input.tokens, y.input.tokens);
  };
  EXPECT_TRUE(same(a->training(5, 0), a->training(5, 0)));
  EXPECT_FALSE(same(a->training(5, 0), a->training(6, 0)));
  EXPECT_FALSE(same(a->training(5, 0), b->training(5, 0)));
  EXPECT_TRUE(same(*a->held_out(4), *b->held_out(4)));
  EXPECT_FALSE(a->held_out(task.held_out));
}

TEST(Induction, ATaskThatCannotBeIsRefusedByField) {
  const std::pair<Json, const char*> wrong[] = {{{{"answer", "sideways"}}, "answer"},
                                                {{{"length", 40}}, "length"},
                                                {{{"last", 8}}, "last"},
                                                {{{"first", 0}, {"last", 3}}, "first"},
                                                {{{"swaps", 17}}, "swaps"},
                                                {{{"lenght", 16}}, "lenght"}};
  for (const auto& [json, field] : wrong) {
    try {
      read_induction_task(json, "task.json");
      FAIL() << field;
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(field), std::string::npos) << error.what();
    }
  }
  InductionTask large;
  large.symbols = 33;
  EXPECT_THROW(induction_batches(large, decoder(), settings()), Error);
}

}  // namespace
}  // namespace subspace::train
