#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "data/dataset_meta.h"
#include "data/masking.h"
#include "data/npy.h"
#include "data/permutation.h"

namespace subspace {

/// One split of a data set: its mapped arrays, read by rows. Row numbers are 0 .. rows()-1, in any
/// order and as often as wanted; outputs are row after row and must have exactly the size stated,
/// or Internal is thrown, as for an array that the kind of data does not have. Const members may be
/// called from any thread. Values are checked while they are read: one that its array may not hold
/// throws InvalidValue with file, row and column; a file that changes its size throws Io.
class DataSplit {
 public:
  DataSplit(const DatasetMeta& meta, std::string name, const std::filesystem::path& folder);

  const std::string& name() const { return name_; }
  const SplitMeta& meta() const { return meta_; }
  std::int64_t rows() const { return meta_.rows; }

  /// Token ids, [rows, length]; padding is `pad_id`. Ids below the tokenizer's vocabulary size.
  void tokens(std::span<const std::int64_t> rows, std::span<std::int32_t> out) const;
  /// Tokens of each row that are no padding, [rows], 1 .. length.
  void lengths(std::span<const std::int64_t> rows, std::span<std::int32_t> out) const;
  /// The token behind each token, [rows, length], kIgnoredTarget where there is none to predict:
  /// at padding and at a row's last token, unless rows are packed for a decoder, where the next
  /// row's first token follows.
  void next_tokens(std::span<const std::int64_t> rows, std::span<std::int32_t> out) const;
  /// Which document of its row a token belongs to, [rows, length]: 0 for the one the row begins
  /// in, then counting. A special token belongs to the document before it, padding to the last.
  /// Text only. O(log documents) a row besides.
  void document_numbers(std::span<const std::int64_t> rows, std::span<std::int32_t> out) const;
  /// Classes, [rows]. Classification and images.
  void labels(std::span<const std::int64_t> rows, std::span<std::int32_t> out) const;
  /// Pixels, [rows, channels, height, width], 0 .. 255. Images only.
  void images(std::span<const std::int64_t> rows, std::span<std::uint8_t> out) const;

  /// Reads every byte and compares SHA-256 with meta.json's. Throws InvalidValue (the data is not
  /// what was made). About 5 ns a byte.
  void verify() const;

 private:
  const NpyFile& array(const std::string& name) const;
  void check_request(std::span<const std::int64_t> rows, std::size_t out,
                     std::int64_t row_size) const;
  template <typename T>
  void copy_tokens(std::span<const std::int64_t> rows, std::span<std::int32_t> out) const;
  std::int32_t token_at(std::uint64_t position) const;
  std::int32_t checked_token(std::uint64_t token, std::uint64_t position) const;
  void check_documents() const;

  std::string name_;
  SplitMeta meta_;
  DataKind kind_;
  std::int64_t length_;
  std::int64_t lead_;  ///< column of a row's first token of text
  bool unbroken_;      ///< the next row's first token follows a row's last
  std::int64_t vocab_size_;
  std::int64_t classes_;
  std::int64_t pixels_;  ///< bytes of one image
  std::map<std::string, NpyFile> arrays_;
};

/// A folder that subspace.prepare made. Opening reads meta.json and the arrays' headers, and checks
/// that they agree; the arrays are mapped, so what is not used is not read.
class Dataset {
 public:
  /// Throws NotFound (no meta.json: says how to make one; an array's file), and as
  /// parse_dataset_meta, NpyFile, DataSplit.
  explicit Dataset(const std::filesystem::path& folder);

  const DatasetMeta& meta() const { return meta_; }
  /// Throws NotFound, naming the splits there are.
  const DataSplit& split(const std::string& name) const;
  /// The held-out split that evaluation during training uses: "valid", or else "test", or nothing.
  const DataSplit* held_out() const;
  /// DataSplit::verify of every split.
  void verify() const;

 private:
  std::filesystem::path folder_;
  DatasetMeta meta_;
  std::map<std::string, DataSplit> splits_;
};

}  // namespace subspace
