#include "train/batches.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "base/error.h"

namespace subspace::train {
namespace {

/// The number of targets of a masked pass differs from step to step; whole multiples of this keep
/// its shapes few.
constexpr std::int64_t kTargetMultiple = 256;
/// So does the longest sentence of a pass: its rows are cut to a multiple of this.
constexpr std::int64_t kWidthMultiple = 16;
/// The step whose masks evaluation uses; no training step is as late.
constexpr std::uint64_t kEvaluationStep = (std::uint64_t{1} << 56) - 1;

at::Tensor ints(const std::vector<std::int32_t>& values, at::IntArrayRef shape) {
  at::Tensor out = at::empty(shape, at::kInt);
  std::copy(values.begin(), values.end(), out.data_ptr<std::int32_t>());
  return out;
}

class Folder : public Batches {
 public:
  Folder(std::shared_ptr<const Dataset> data, const nn::ModelConfig& model,
         const Settings& settings)
      : data_(std::move(data)),
        meta_(data_->meta()),
        settings_(settings),
        task_(model.task),
        order_(data_->split("train").rows(), settings.seed) {
    if (task_ == nn::Task::image_classification) {
      check_images(model);
    } else {
      check_text(model);
    }
    if (model.classifies()) check_classes(model.image ? model.image->labels : model.labels);
    if (task_ != nn::Task::masked_lm) return;
    const auto mask = meta_.tokenizer.special.find("mask");
    if (mask == meta_.tokenizer.special.end()) {
      fail(ErrorCode::InvalidValue,
           "the data's tokenizer ({}) has no mask token, which a masked model needs; prepare the "
           "text with a BERT vocabulary",
           meta_.tokenizer.name);
    }
    MaskingRule rule;
    rule.rate = settings.mask_probability;
    rule.mask_id = mask->second;
    rule.vocab_size = meta_.tokenizer.vocab_size;
    rule.special = meta_.tokenizer.never_masked;
    masking_.emplace(rule, settings.seed);
    evaluation_masking_.emplace(rule, 0);
  }

  Batch training(std::int64_t step, std::int64_t part) const override {
    const auto rows = static_cast<std::size_t>(settings_.batch_size);
    std::vector<std::int64_t> chosen(rows);
    const std::int64_t pass = step * settings_.accumulate + part;
    order_.rows(static_cast<std::uint64_t>(pass * settings_.batch_size), chosen);
    const auto first = static_cast<std::uint64_t>(part * settings_.batch_size *
                                                  std::max<std::int64_t>(1, meta_.length));
    return make(data_->split("train"), chosen, masking_, static_cast<std::uint64_t>(step), first);
  }

  std::optional<Batch> held_out(std::int64_t n) const override {
    const DataSplit* split = data_->held_out();
    if (split == nullptr) return std::nullopt;
    const std::int64_t begin = n * settings_.batch_size;
    const std::int64_t count = std::min(settings_.batch_size, split->rows() - begin);
    if (count <= 0) return std::nullopt;
    std::vector<std::int64_t> rows(static_cast<std::size_t>(count));
    for (std::int64_t i = 0; i < count; ++i) rows[static_cast<std::size_t>(i)] = begin + i;
    return make(*split, rows, evaluation_masking_, kEvaluationStep,
                static_cast<std::uint64_t>(begin * std::max<std::int64_t>(1, meta_.length)));
  }

  std::int64_t held_out_words() const override {
    return data_->held_out() == nullptr ? 0 : data_->held_out()->meta().words;
  }
  std::int64_t held_out_text_tokens() const override {
    return data_->held_out() == nullptr ? 0 : data_->held_out()->meta().text_tokens;
  }
  std::string id() const override { return meta_.id; }
  Json tokenizer() const override {
    if (meta_.kind == DataKind::Images) return {};
    return {{"name", meta_.tokenizer.name}, {"sha256", meta_.tokenizer.sha256}};
  }
  void verify() const override { data_->verify(); }
  void verify_held_out() const override {
    if (data_->held_out() != nullptr) data_->held_out()->verify();
  }

 private:
  void check_text(const nn::ModelConfig& model) const {
    const bool decoder = task_ == nn::Task::causal_lm;
    const bool classes = task_ == nn::Task::sequence_classification;
    if (meta_.kind != (classes ? DataKind::Classification : DataKind::Text)) {
      fail(ErrorCode::InvalidValue, "the data is of kind '{}'; {} is trained on {}",
           data_kind_name(meta_.kind),
           classes ? "a model that classifies" : "model_type '" + model.model_type + "'",
           classes ? "texts with a class, which `subspace.prepare sst2` makes" : "text");
    }
    if ((meta_.style == TextStyle::Decoder) != decoder) {
      fail(ErrorCode::InvalidValue,
           "the data was prepared for a {}, model_type '{}' is {}; prepare it with --style {}",
           text_style_name(meta_.style), model.model_type, decoder ? "a decoder" : "an encoder",
           decoder ? "decoder" : "encoder");
    }
    if (meta_.tokenizer.vocab_size > model.vocab) {
      fail(ErrorCode::InvalidValue,
           "the data's tokenizer ({}) has {} tokens, the model's vocab_size is {}; set it to {}",
           meta_.tokenizer.name, meta_.tokenizer.vocab_size, model.vocab,
           meta_.tokenizer.vocab_size);
    }
    if (meta_.length > model.positions) {
      fail(
          ErrorCode::InvalidValue,
          "the data's rows have {} tokens, the model's max_position_embeddings is {}; prepare with "
          "--length {} or set it to {}",
          meta_.length, model.positions, model.positions, meta_.length);
    }
  }

  void check_images(const nn::ModelConfig& model) const {
    if (meta_.kind != DataKind::Images) {
      fail(ErrorCode::InvalidValue,
           "the data is of kind '{}'; model_type '{}' is trained on images",
           data_kind_name(meta_.kind), model.model_type);
    }
    const nn::ImageConfig& image = *model.image;
    const ImageMeta& found = *meta_.image;
    if (found.channels != image.channels || found.height != image.size ||
        found.width != image.size) {
      fail(ErrorCode::InvalidValue,
           "the data's images are {} x {} x {} (channels, height, width), the model's {} x {} x {} "
           "(num_channels, image_size)",
           found.channels, found.height, found.width, image.channels, image.size, image.size);
    }
  }

  void check_classes(std::int64_t labels) const {
    if (static_cast<std::int64_t>(meta_.classes.size()) != labels) {
      fail(ErrorCode::InvalidValue, "the data has {} classes, the model's num_labels is {}",
           meta_.classes.size(), labels);
    }
  }

  Batch make(const DataSplit& split, const std::vector<std::int64_t>& rows,
             const std::optional<Masking>& masking, std::uint64_t step, std::uint64_t first) const {
    if (task_ == nn::Task::image_classification) return images(split, rows);
    if (task_ == nn::Task::sequence_classification) return texts(split, rows);
    const auto count = static_cast<std::int64_t>(rows.size());
    const std::size_t size = rows.size() * static_cast<std::size_t>(meta_.length);
    std::vector<std::int32_t> tokens(size), targets(size);
    split.tokens(rows, tokens);
    if (masking) {
      masking->apply(step, tokens, tokens, targets, first);
    } else {
      split.next_tokens(rows, targets);
    }
    Batch batch;
    batch.input.tokens = ints(tokens, {count, meta_.length});
    add_segments(split, rows, batch);
    choose_targets(targets, batch);
    return batch;
  }

  /// Which tokens see each other: all of a row, but for padding and, if asked for, other documents.
  void add_segments(const DataSplit& split, const std::vector<std::int64_t>& rows,
                    Batch& batch) const {
    std::vector<std::int32_t> lengths(rows.size());
    split.lengths(rows, lengths);
    for (const std::int32_t length : lengths) batch.tokens += length;
    const auto row = static_cast<std::size_t>(meta_.length);
    const bool padded = batch.tokens < static_cast<std::int64_t>(rows.size() * row);
    if (!padded && !settings_.separate_documents) return;
    std::vector<std::int32_t> segments(rows.size() * row, 0);
    if (settings_.separate_documents) split.document_numbers(rows, segments);
    for (std::size_t i = 0; i < rows.size(); ++i) {
      std::fill(segments.begin() + static_cast<std::ptrdiff_t>(i * row) + lengths[i],
                segments.begin() + static_cast<std::ptrdiff_t>((i + 1) * row), -1);
    }
    batch.input.segments = ints(segments, batch.input.tokens.sizes());
  }

  static void choose_targets(const std::vector<std::int32_t>& targets, Batch& batch) {
    std::vector<std::int64_t> places, wanted;
    for (std::size_t i = 0; i < targets.size(); ++i) {
      if (targets[i] == kIgnoredTarget) continue;
      places.push_back(static_cast<std::int64_t>(i));
      wanted.push_back(targets[i]);
    }
    batch.count = static_cast<std::int64_t>(places.size());
    batch.targets = at::tensor(wanted, at::kLong);
    if (places.size() == targets.size()) return;  // every position: nothing to pick out
    while (places.size() % kTargetMultiple != 0 || places.empty()) {
      places.push_back(0);
      wanted.push_back(kIgnoredTarget);
    }
    batch.predicted = at::tensor(places, at::kLong);
    batch.targets = at::tensor(wanted, at::kLong);
  }

  /// Rows of texts as wide as the longest needs, each with its class. Padding is another segment
  /// than the text, always: one shape of tensors the fewer.
  Batch texts(const DataSplit& split, const std::vector<std::int64_t>& rows) const {
    const auto count = static_cast<std::int64_t>(rows.size());
    std::vector<std::int32_t> lengths(rows.size()), labels(rows.size());
    std::vector<std::int32_t> tokens(rows.size() * static_cast<std::size_t>(meta_.length));
    split.lengths(rows, lengths);
    split.labels(rows, labels);
    split.tokens(rows, tokens);
    const std::int64_t longest = *std::max_element(lengths.begin(), lengths.end());
    const std::int64_t width =
        std::min(meta_.length, (longest + kWidthMultiple - 1) / kWidthMultiple * kWidthMultiple);
    Batch batch;
    batch.input.tokens = ints(tokens, {count, meta_.length}).narrow(1, 0, width).contiguous();
    const at::Tensor ends = ints(lengths, {count, 1});
    batch.input.segments = -(at::arange(width, at::kInt) >= ends).to(at::kInt);
    batch.predicted = at::arange(count, at::kLong) * width;
    batch.targets = ints(labels, {count}).to(at::kLong);
    batch.count = count;
    batch.tokens = ends.sum().item<std::int64_t>();
    return batch;
  }

  Batch images(const DataSplit& split, const std::vector<std::int64_t>& rows) const {
    const ImageMeta& image = *meta_.image;
    const auto count = static_cast<std::int64_t>(rows.size());
    std::vector<std::uint8_t> pixels(
        static_cast<std::size_t>(count * image.channels * image.height * image.width));
    std::vector<std::int32_t> labels(rows.size());
    split.images(rows, pixels);
    split.labels(rows, labels);
    Batch batch;
    at::Tensor raw = at::empty({count, image.channels, image.height, image.width}, at::kByte);
    std::copy(pixels.begin(), pixels.end(), raw.data_ptr<std::uint8_t>());
    const at::Tensor mean = at::tensor(image.mean, at::kDouble).to(at::kFloat).view({-1, 1, 1});
    const at::Tensor deviation = at::tensor(image.std, at::kDouble).to(at::kFloat).view({-1, 1, 1});
    batch.input.pixels = (raw.to(at::kFloat) / 255 - mean) / deviation;
    batch.targets = ints(labels, {count}).to(at::kLong);
    batch.count = batch.tokens = count;
    return batch;
  }

  std::shared_ptr<const Dataset> data_;
  const DatasetMeta& meta_;
  Settings settings_;
  nn::Task task_;
  SampleOrder order_;
  std::optional<Masking> masking_, evaluation_masking_;
};

}  // namespace

std::vector<at::Tensor*> Batch::tensors() {
  return {&input.tokens, &input.segments, &input.positions, &input.token_types,
          &input.pixels, &predicted,      &targets};
}

std::vector<const at::Tensor*> Batch::tensors() const {
  const auto all = const_cast<Batch*>(this)->tensors();
  return {all.begin(), all.end()};
}

Batch Batch::pinned() const {
  Batch out = *this;
  for (at::Tensor* tensor : out.tensors()) {
    if (tensor->defined()) *tensor = tensor->pin_memory();
  }
  return out;
}

Batch Batch::to(c10::Device device, c10::ScalarType dtype) const {
  Batch out = *this;
  for (at::Tensor* tensor : out.tensors()) {
    if (tensor->defined()) *tensor = tensor->to(device, /*non_blocking=*/true);
  }
  if (out.input.pixels.defined()) out.input.pixels = out.input.pixels.to(dtype);
  return out;
}

void Batch::copy_into(Batch& out) const {
  const auto from = tensors();
  const auto to = out.tensors();
  for (std::size_t i = 0; i < from.size(); ++i) {
    if (from[i]->defined()) to[i]->copy_(*from[i], /*non_blocking=*/true);
  }
  out.count = count;
  out.tokens = tokens;
}

std::unique_ptr<Batches> open_batches(std::shared_ptr<const Dataset> data,
                                      const nn::ModelConfig& model, const Settings& settings) {
  return std::make_unique<Folder>(std::move(data), model, settings);
}

}  // namespace subspace::train
