#include "train/induction.h"

#include <ATen/ATen.h>

#include <map>
#include <numeric>

#include "base/error.h"
#include "base/random.h"
#include "nn/config_fields.h"

namespace subspace::train {
namespace {

/// The stream of random numbers of held-out pass n is this one's n-th neighbour; no training pass
/// is as late.
constexpr std::uint64_t kHeldOut = std::uint64_t{1} << 62;

const std::map<std::string, InductionTask::Answer> kAnswers = {
    {"base", InductionTask::Answer::base},
    {"ov", InductionTask::Answer::ov},
    {"skip", InductionTask::Answer::skip},
    {"rev", InductionTask::Answer::rev}};

class Induction : public Batches {
 public:
  Induction(const InductionTask& task, const Settings& settings)
      : task_(task), settings_(settings) {}

  Batch training(std::int64_t step, std::int64_t part) const override {
    return make(settings_.seed, static_cast<std::uint64_t>(step * settings_.accumulate + part));
  }
  std::optional<Batch> held_out(std::int64_t n) const override {
    if (n >= task_.held_out) return std::nullopt;
    return make(0, kHeldOut + static_cast<std::uint64_t>(n));
  }
  std::string id() const override {
    for (const auto& [name, answer] : kAnswers) {
      if (answer != task_.answer) continue;
      return fmt::format("induction {} {} {} {} {} {} {} {}", name, task_.symbols, task_.length,
                         task_.repeat, task_.first, task_.last, task_.swaps, task_.held_out);
    }
    return {};
  }

 private:
  static std::int64_t below(Random& random, std::int64_t end) {
    return static_cast<std::int64_t>(random.uniform() * static_cast<double>(end));
  }

  std::int64_t answer(const std::vector<std::int64_t>& p, std::int64_t place) const {
    auto at = [&](std::int64_t i) { return p[static_cast<std::size_t>(i)]; };
    switch (task_.answer) {
      case InductionTask::Answer::skip:
        return at(place + 2);
      case InductionTask::Answer::rev:
        return at(place - 1);
      case InductionTask::Answer::ov: {
        const std::int64_t symbol = at(place + 1);
        if (symbol > 2 * task_.swaps) return symbol;
        return symbol % 2 == 1 ? symbol + 1 : symbol - 1;
      }
      default:
        return at(place + 1);
    }
  }

  Batch make(std::uint64_t seed, std::uint64_t stream) const {
    Random random(seed, stream);
    const std::int64_t rows = settings_.batch_size, width = task_.tokens();
    at::Tensor tokens = at::zeros({rows, width}, at::kInt);
    auto* row = tokens.data_ptr<std::int32_t>();
    std::vector<std::int64_t> places, wanted, p(static_cast<std::size_t>(task_.symbols));
    for (std::int64_t r = 0; r < rows; ++r, row += width) {
      std::iota(p.begin(), p.end(), std::int64_t{1});
      for (std::int64_t i = 0; i < task_.length; ++i) {
        std::swap(p[static_cast<std::size_t>(i)],
                  p[static_cast<std::size_t>(i + below(random, task_.symbols - i))]);
        row[1 + i] = static_cast<std::int32_t>(p[static_cast<std::size_t>(i)]);
      }
      const std::int64_t first = task_.first + below(random, task_.last - task_.first + 1);
      for (std::int64_t i = 0; i < task_.repeat; ++i) {
        const std::int64_t column = 1 + task_.length + i;
        row[column] = static_cast<std::int32_t>(p[static_cast<std::size_t>(first + i)]);
        places.push_back(r * width + column);
        wanted.push_back(answer(p, first + i));
      }
    }
    Batch batch;
    batch.input.tokens = tokens;
    batch.predicted = at::tensor(places, at::kLong);
    batch.targets = at::tensor(wanted, at::kLong);
    batch.count = static_cast<std::int64_t>(wanted.size());
    batch.tokens = rows * width;
    return batch;
  }

  InductionTask task_;
  Settings settings_;
};

}  // namespace

InductionTask read_induction_task(const Json& json, const std::string& where) {
  nn::ConfigFields in(json, where);
  in.must_be("kind", "induction", "the one task that is generated");
  InductionTask task;
  const std::string answer = in.choice_or("answer", "base", {"base", "ov", "rev", "skip"});
  task.answer = kAnswers.at(answer);
  task.symbols = in.positive_or("symbols", task.symbols);
  task.length = in.positive_or("length", task.length);
  task.repeat = in.positive_or("repeat", task.repeat);
  task.first = in.count_or("first", task.first);
  task.last = in.count_or("last", task.last);
  task.swaps = in.count_or("swaps", task.swaps);
  task.held_out = in.positive_or("held_out", task.held_out);
  in.finish_object("a task", "docs/training.md");
  if (task.length > task.symbols) in.contradiction("length", "there are too few symbols for it");
  if (2 * task.swaps > task.symbols) in.contradiction("swaps", "there are too few symbols for it");
  if (task.last < task.first) in.contradiction("last", "it is before first");
  if (task.first < 1) in.contradiction("first", "expected 1 at least: rev answers one before");
  if (task.last + task.repeat + 1 > task.length) {
    in.contradiction("last", fmt::format("with repeat {} skip would answer behind p's {} symbols",
                                         task.repeat, task.length));
  }
  return task;
}

std::unique_ptr<Batches> induction_batches(const InductionTask& task, const nn::ModelConfig& model,
                                           const Settings& settings) {
  if (model.task != nn::Task::causal_lm) {
    fail(ErrorCode::InvalidValue, "the task is for decoders; model_type '{}' is none",
         model.model_type);
  }
  if (model.vocab < task.symbols + 1 || model.positions < task.tokens()) {
    fail(ErrorCode::InvalidValue,
         "the task has {} tokens and rows of {}; the model's vocab_size is {}, "
         "max_position_embeddings {}",
         task.symbols + 1, task.tokens(), model.vocab, model.positions);
  }
  return std::make_unique<Induction>(task, settings);
}

std::unique_ptr<Batches> open_folder(const std::filesystem::path& folder,
                                     const nn::ModelConfig& model, const Settings& settings) {
  const std::filesystem::path task = folder / "task.json";
  if (std::filesystem::exists(task)) {
    return induction_batches(read_induction_task(read_json_file(task), task.string()), model,
                             settings);
  }
  return open_batches(std::make_shared<const Dataset>(folder), model, settings);
}

}  // namespace subspace::train
