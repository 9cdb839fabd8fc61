#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <cmath>

#include "base/error.h"
#include "train/memory.h"
#include "train/trainer.h"

namespace subspace::train {
namespace {

/// Logits of a whole pass of a decoder would take tens of gigabytes.
constexpr std::int64_t kRowsOfLogits = 4096;

/// `pass`: the rows of the pass under way.
Evaluation over_passes(const nn::Model& model, const Batches& batches, c10::Device device,
                       std::int64_t rows, std::int64_t& pass) {
  const at::NoGradGuard no_gradient;
  const bool image = model.config().image.has_value();
  const c10::ScalarType dtype = model.parameters().all().front().value.scalar_type();
  // Sums in float64 on the device: a mean over millions of tokens must not depend on how many were
  // added before.
  const auto options = at::TensorOptions().dtype(at::kDouble).device(device);
  at::Tensor loss = at::zeros({}, options), hits = at::zeros({}, options);
  Evaluation out;
  out.classes = model.config().classifies();
  std::int64_t seen = 0;
  for (std::int64_t n = 0; rows == 0 || seen < rows; ++n) {
    const auto made = batches.held_out(n);
    if (!made) break;
    pass = image ? made->input.pixels.size(0) : made->input.tokens.size(0);
    const Batch batch = made->to(device, dtype);
    seen += pass;
    const at::Tensor vectors = image ? model.hidden(batch.input).select(1, 0)
                                     : model.hidden_rows(batch.input, batch.predicted);
    for (std::int64_t begin = 0; begin < vectors.size(0); begin += kRowsOfLogits) {
      const std::int64_t size = std::min(kRowsOfLogits, vectors.size(0) - begin);
      const at::Tensor part = vectors.narrow(0, begin, size);
      const at::Tensor targets = batch.targets.narrow(0, begin, size);
      loss.add_(model.loss_sum(part, targets));
      hits.add_((model.logits(part).argmax(-1) == targets).sum());
    }
    out.count += batch.count;
  }
  if (out.count == 0) {
    fail(ErrorCode::NotFound,
         "the data has no held-out rows to evaluate on; prepare it with a valid or test split");
  }
  out.loss = loss.item<double>() / static_cast<double>(out.count);
  out.accuracy = hits.item<double>() / static_cast<double>(out.count);
  const auto words = static_cast<double>(batches.held_out_words());
  if (words > 0 && !out.classes) {
    out.word_perplexity =
        std::exp(out.loss * static_cast<double>(batches.held_out_text_tokens()) / words);
  }
  return out;
}

}  // namespace

Evaluation evaluate(const nn::Model& model, const Batches& batches, c10::Device device,
                    std::int64_t rows) {
  std::int64_t pass = 0;
  try {
    return over_passes(model, batches, device, rows, pass);
  } catch (const std::exception& error) {
    if (!is_out_of_memory(error)) throw;
    fail(ErrorCode::Io,
         "evaluation: out of memory of {} with {} rows a pass; take fewer: --batch-size of `eval`, "
         "batch_size in training",
         device.str(), pass == 0 ? "the" : std::to_string(pass));
  }
}

Json to_json(const Evaluation& evaluation) {
  if (evaluation.classes) {
    return {{"loss", evaluation.loss},
            {"accuracy", evaluation.accuracy},
            {"examples", evaluation.count}};
  }
  Json json = {{"loss", evaluation.loss},
               {"perplexity", std::exp(evaluation.loss)},
               {"accuracy", evaluation.accuracy},
               {"tokens", evaluation.count}};
  if (evaluation.word_perplexity > 0) json["word_perplexity"] = evaluation.word_perplexity;
  return json;
}

}  // namespace subspace::train
