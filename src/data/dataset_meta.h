#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "data/npy.h"

namespace subspace {

enum class DataKind { Text, Classification, Images };
enum class TextStyle { Encoder, Decoder };

/// "text", "classification", "images"; "encoder", "decoder".
const char* data_kind_name(DataKind kind);
const char* text_style_name(TextStyle style);

/// What meta.json says of one array; the file's own header must say the same.
struct ArrayMeta {
  std::string file;
  NpyType type = NpyType::U8;
  std::vector<std::int64_t> shape;
  std::uint64_t bytes = 0;
  std::string sha256;
};

/// One split. Counts that a kind lacks are 0.
struct SplitMeta {
  std::int64_t rows = 0;
  std::int64_t tokens = 0;
  std::int64_t text_tokens = 0;
  std::int64_t special_tokens = 0;
  std::int64_t padding = 0;
  std::int64_t documents = 0;
  std::int64_t words = 0;
  std::int64_t bytes = 0;
  std::int64_t truncated = 0;
  std::map<std::string, ArrayMeta> arrays;
};

struct TokenizerMeta {
  std::string name;
  std::string kind;
  std::string sha256;
  std::int64_t vocab_size = 0;
  /// "pad", "unk", "cls", "sep", "mask", "bos", "eos" -> id, those that it has.
  std::map<std::string, std::int32_t> special;
  /// Ids of all special tokens, rising.
  std::vector<std::int32_t> never_masked;
};

struct ImageMeta {
  std::int64_t channels = 0;
  std::int64_t height = 0;
  std::int64_t width = 0;
  /// Of pixels / 255, over the training split, one a channel; every std is above 0.
  std::vector<double> mean;
  std::vector<double> std;
};

/// A validated meta.json; docs/data.md says what each field means.
struct DatasetMeta {
  DataKind kind = DataKind::Text;
  /// SHA-256 of what the data is: a run that is resumed compares it.
  std::string id;
  TextStyle style = TextStyle::Encoder;  ///< not for images
  std::int64_t length = 0;               ///< tokens a row; 0 for images
  bool packed = false;
  std::int32_t pad_id = 0;
  TokenizerMeta tokenizer;           ///< not for images
  std::vector<std::string> classes;  ///< empty for text
  std::optional<ImageMeta> image;
  std::map<std::string, SplitMeta> splits;
};

/// Limits that keep every product of sizes far from overflow.
inline constexpr std::int64_t kMaxRows = std::int64_t{1} << 40;
inline constexpr std::int64_t kMaxRowLength = 1 << 20;
inline constexpr std::int64_t kMaxVocabulary = 1 << 30;
inline constexpr std::int64_t kMaxImageSide = 1 << 16;

/// Parses and validates a whole meta.json: format and version, every field's type and range, hashes
/// of 64 hex digits, file names without a folder, array names, types and shapes that belong to the
/// kind and agree with `rows`, `length`, `documents` and `image`, counts that add up, special ids
/// below the vocabulary's size, a `train` split. `where` names the file in messages.
/// Throws NotFound (a field), InvalidFormat, InvalidValue, InvalidShape, Unsupported (version).
DatasetMeta parse_dataset_meta(std::string_view text, const std::string& where);

}  // namespace subspace
