#pragma once

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/json.h"

namespace subspace::test {

/// The Error that `action` throws; Internal "nothing was thrown" without one.
template <typename Action>
Error error_of(Action action) {
  try {
    action();
  } catch (const Error& error) {
    return error;
  }
  return Error(ErrorCode::Internal, "nothing was thrown");
}

inline void expect_says(const Error& error, ErrorCode code, std::string_view part) {
  EXPECT_STREQ(error_code_name(error.code()), error_code_name(code)) << error.what();
  EXPECT_NE(std::string_view(error.what()).find(part), std::string_view::npos) << error.what();
}

/// A .npy file (format 1.0, header of `header_bytes`) with this dictionary and these bytes.
std::string npy_file(const std::string& dictionary, const std::string& data,
                     std::size_t header_bytes = 128);

template <typename T>
std::string bytes_of(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

std::span<const std::byte> as_bytes(std::string_view text);
std::string sha256(std::string_view text);

/// A folder of training data under the temporary folder, made by hand: what the reader is given,
/// without subspace.prepare. Changing `meta` before write_meta() makes faults.
class DataFolder {
 public:
  DataFolder();
  ~DataFolder();

  const std::filesystem::path& path() const { return path_; }
  void write(const std::string& name, const std::string& bytes) const;
  /// Writes an array and its entry of meta.json.
  void array(const std::string& split, const std::string& name, const std::string& dtype,
             const std::vector<std::int64_t>& shape, const std::string& data);
  void write_meta() const;

  Json meta;

 private:
  std::filesystem::path path_;
};

/// meta.json of decoder data without splits: length 4, vocabulary 10, eos 9.
Json decoder_meta();
/// Packed decoder data: rows {0 1 2 9}, {3 4 9 5}, {6 9 9 9} (the last has 2 tokens), documents
/// {0 1 2}, {3 4}, {5 6}, and a "valid" split of the row {7 8 9 9} (3 tokens).
void fill_packed(DataFolder& folder);
/// Encoder data, split: length 5, vocabulary 12, cls 0, sep 1, mask 2, pad 3.
void fill_encoder(DataFolder& folder);
/// Two images of 1 x 2 x 3 for training, one for testing, of classes "a" and "b".
void fill_images(DataFolder& folder);

}  // namespace subspace::test
