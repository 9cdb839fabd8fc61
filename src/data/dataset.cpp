#include "data/dataset.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "base/json.h"
#include "base/sha256.h"

namespace subspace {
namespace fs = std::filesystem;
namespace {

std::size_t to_size(std::int64_t value) { return static_cast<std::size_t>(value); }

NpyFile open_array(const fs::path& path, const ArrayMeta& expected) {
  NpyFile file(path);
  const NpyHeader& found = file.header();
  if (found.type != expected.type || found.shape != expected.shape ||
      file.bytes().size() != expected.bytes) {
    fail(ErrorCode::InvalidShape,
         "{}: {} [{}], {} bytes; meta.json says {} [{}], {} bytes. The folder holds parts of two "
         "data sets; make it anew",
         path.string(), npy_type_name(found.type), fmt::join(found.shape, ", "),
         file.bytes().size(), npy_type_name(expected.type), fmt::join(expected.shape, ", "),
         expected.bytes);
  }
  return file;
}

}  // namespace

DataSplit::DataSplit(const DatasetMeta& meta, std::string name, const fs::path& folder)
    : name_(std::move(name)),
      meta_(meta.splits.at(name_)),
      kind_(meta.kind),
      length_(meta.length),
      lead_(meta.style == TextStyle::Encoder ? 1 : 0),
      unbroken_(meta.packed && meta.style == TextStyle::Decoder),
      vocab_size_(meta.tokenizer.vocab_size),
      classes_(static_cast<std::int64_t>(meta.classes.size())),
      pixels_(meta.image ? meta.image->channels * meta.image->height * meta.image->width : 0) {
  for (const auto& [array, expected] : meta_.arrays) {
    arrays_.emplace(array, open_array(folder / expected.file, expected));
  }
  if (kind_ == DataKind::Text) check_documents();
}

const NpyFile& DataSplit::array(const std::string& name) const {
  const auto found = arrays_.find(name);
  if (found == arrays_.end()) {
    fail(ErrorCode::Internal, "data of kind '{}' has no '{}'", data_kind_name(kind_), name);
  }
  return found->second;
}

void DataSplit::check_request(std::span<const std::int64_t> rows, std::size_t out,
                              std::int64_t row_size) const {
  if (out != rows.size() * to_size(row_size)) {
    fail(ErrorCode::Internal, "{} values for {} rows of {}", out, rows.size(), row_size);
  }
  for (const std::int64_t row : rows) {
    if (row < 0 || row >= meta_.rows) {
      fail(ErrorCode::Internal, "row {} of split '{}', which has {}", row, name_, meta_.rows);
    }
  }
}

std::int32_t DataSplit::checked_token(std::uint64_t token, std::uint64_t position) const {
  if (token >= static_cast<std::uint64_t>(vocab_size_)) {
    const auto length = static_cast<std::uint64_t>(length_);
    fail(ErrorCode::InvalidValue,
         "{}: row {}, column {}: token {}; the vocabulary has {}. The file was changed; make the "
         "data anew",
         array("tokens").path().string(), position / length, position % length, token, vocab_size_);
  }
  return static_cast<std::int32_t>(token);
}

std::int32_t DataSplit::token_at(std::uint64_t position) const {
  const NpyFile& file = array("tokens");
  const std::uint64_t token = file.header().type == NpyType::U16
                                  ? file.values<std::uint16_t>()[position]
                                  : file.values<std::uint32_t>()[position];
  return checked_token(token, position);
}

template <typename T>
void DataSplit::copy_tokens(std::span<const std::int64_t> rows, std::span<std::int32_t> out) const {
  const std::span<const T> all = array("tokens").values<T>();
  std::int32_t* next = out.data();
  for (const std::int64_t row : rows) {
    const std::size_t begin = to_size(row * length_);
    for (std::size_t at = begin; at < begin + to_size(length_); ++at) {
      *next++ = checked_token(all[at], at);
    }
  }
}

void DataSplit::tokens(std::span<const std::int64_t> rows, std::span<std::int32_t> out) const {
  const NpyFile& file = array("tokens");
  check_request(rows, out.size(), length_);
  file.check_size();
  if (file.header().type == NpyType::U16) {
    copy_tokens<std::uint16_t>(rows, out);
  } else {
    copy_tokens<std::uint32_t>(rows, out);
  }
}

void DataSplit::lengths(std::span<const std::int64_t> rows, std::span<std::int32_t> out) const {
  const NpyFile& file = array("lengths");
  check_request(rows, out.size(), 1);
  file.check_size();
  const auto all = file.values<std::int32_t>();
  for (std::size_t i = 0; i < rows.size(); ++i) {
    out[i] = all[to_size(rows[i])];
    if (out[i] < 1 || out[i] > length_) {
      fail(ErrorCode::InvalidValue,
           "{}: row {} has {} tokens; expected 1 to {}. The file was changed; make the data anew",
           file.path().string(), rows[i], out[i], length_);
    }
  }
}

void DataSplit::next_tokens(std::span<const std::int64_t> rows, std::span<std::int32_t> out) const {
  tokens(rows, out);
  std::vector<std::int32_t> length(rows.size());
  lengths(rows, length);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    std::int32_t* row = out.data() + i * to_size(length_);
    const std::size_t last = to_size(length[i]) - 1;
    std::copy(row + 1, row + last + 1, row);
    const bool follows = unbroken_ && length[i] == length_ && rows[i] + 1 < meta_.rows;
    row[last] =
        follows ? token_at(static_cast<std::uint64_t>((rows[i] + 1) * length_)) : kIgnoredTarget;
    std::fill(row + last + 1, row + length_, kIgnoredTarget);
  }
}

void DataSplit::check_documents() const {
  const NpyFile& file = array("documents");
  const auto starts = file.values<std::int64_t>();
  std::int64_t before = -1;
  for (std::size_t i = 0; i < starts.size(); ++i) {
    if (starts[i] <= before || starts[i] > meta_.rows * length_) {
      fail(
          ErrorCode::InvalidValue,
          "{}: entry {} is {} behind {}; expected rising positions up to {}. The file was changed; "
          "make the data anew",
          file.path().string(), i, starts[i], before, meta_.rows * length_);
    }
    before = starts[i];
  }
}

void DataSplit::document_numbers(std::span<const std::int64_t> rows,
                                 std::span<std::int32_t> out) const {
  const NpyFile& file = array("documents");
  check_request(rows, out.size(), length_);
  file.check_size();
  // The last entry is where the last document ends.
  const auto starts = file.values<std::int64_t>().first(to_size(meta_.documents));
  std::int32_t* value = out.data();
  for (const std::int64_t row : rows) {
    const std::int64_t begin = row * length_;
    // The document that begins with the row, behind its CLS, is its document 0.
    auto next = std::upper_bound(starts.begin(), starts.end(), begin + lead_);
    std::int32_t number = 0;
    for (std::int64_t at = begin; at < begin + length_; ++at) {
      if (next != starts.end() && *next == at) {
        ++number;
        ++next;
      }
      *value++ = number;
    }
  }
}

void DataSplit::labels(std::span<const std::int64_t> rows, std::span<std::int32_t> out) const {
  const NpyFile& file = array("labels");
  check_request(rows, out.size(), 1);
  file.check_size();
  const auto all = file.values<std::int32_t>();
  for (std::size_t i = 0; i < rows.size(); ++i) {
    out[i] = all[to_size(rows[i])];
    if (out[i] < 0 || out[i] >= classes_) {
      fail(ErrorCode::InvalidValue,
           "{}: row {} has the label {}; expected 0 to {}. The file was changed; make the data "
           "anew",
           file.path().string(), rows[i], out[i], classes_ - 1);
    }
  }
}

void DataSplit::images(std::span<const std::int64_t> rows, std::span<std::uint8_t> out) const {
  const NpyFile& file = array("images");
  check_request(rows, out.size(), pixels_);
  file.check_size();
  const auto all = file.values<std::uint8_t>();
  for (std::size_t i = 0; i < rows.size(); ++i) {
    std::memcpy(out.data() + i * to_size(pixels_), all.data() + rows[i] * pixels_,
                to_size(pixels_));
  }
}

void DataSplit::verify() const {
  for (const auto& [name, file] : arrays_) {
    file.check_size();
    Sha256 hash;
    hash.update(file.bytes());
    const std::string found = hash.hex();
    const std::string& expected = meta_.arrays.at(name).sha256;
    if (found != expected) {
      fail(ErrorCode::InvalidValue,
           "{}: SHA-256 is {}, meta.json says {}; the file was changed or damaged. Make the data "
           "anew",
           file.path().string(), found, expected);
    }
  }
}

Dataset::Dataset(const fs::path& folder) : folder_(folder) {
  const fs::path path = folder / "meta.json";
  std::error_code status;
  if (!fs::exists(path, status)) {
    fail(ErrorCode::NotFound,
         "{}: no training data there (no meta.json); make some with `python -m subspace.prepare "
         "text --input FILES --tokenizer PATH --length 128 --out {}`",
         folder.string(), folder.string());
  }
  meta_ =
      parse_dataset_meta(read_text_file(path, {.max_bytes = std::size_t{16} << 20}), path.string());
  for (const auto& item : meta_.splits) {
    splits_.emplace(item.first, DataSplit(meta_, item.first, folder));
  }
}

const DataSplit& Dataset::split(const std::string& name) const {
  const auto found = splits_.find(name);
  if (found == splits_.end()) {
    std::string names;
    for (const auto& item : splits_) names += (names.empty() ? "" : ", ") + item.first;
    fail(ErrorCode::NotFound, "{}: no split '{}'; there are: {}", folder_.string(), name, names);
  }
  return found->second;
}

const DataSplit* Dataset::held_out() const {
  for (const char* name : {"valid", "test"}) {
    if (const auto found = splits_.find(name); found != splits_.end()) return &found->second;
  }
  return nullptr;
}

void Dataset::verify() const {
  for (const auto& item : splits_) item.second.verify();
}

}  // namespace subspace
