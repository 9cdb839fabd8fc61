#include "data/dataset_meta.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <set>

#include "base/error.h"
#include "base/json.h"

namespace subspace {
namespace {

constexpr std::int64_t kMaxCount = std::int64_t{1} << 60;
constexpr std::array kSpecial = {"pad", "unk", "cls", "sep", "mask", "bos", "eos"};

std::int64_t count(const Fields& fields, const char* name) {
  return fields.int_in(name, 0, kMaxCount);
}

std::string hash(const Fields& fields, const char* name) {
  const std::string text = fields.string(name);
  const bool hex = std::all_of(text.begin(), text.end(), [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
  });
  if (text.size() != 64 || !hex) {
    fail(ErrorCode::InvalidValue, "{}: '{}' is \"{}\"; expected 64 hexadecimal digits",
         fields.where(), name, text.substr(0, 70));
  }
  return text;
}

/// Whole numbers of a list, each between `low` and `high`.
std::vector<std::int64_t> integers(const Fields& fields, const std::string& name, std::int64_t low,
                                   std::int64_t high) {
  const Json& list = fields.has(name) ? fields.json().at(name) : Json();
  std::vector<std::int64_t> values;
  bool good = list.is_array();
  for (const Json& item : good ? list : Json::array()) {
    good = good && item.is_number_integer() &&
           !(item.is_number_unsigned() &&
             item.get<std::uint64_t>() > static_cast<std::uint64_t>(INT64_MAX)) &&
           item.get<std::int64_t>() >= low && item.get<std::int64_t>() <= high;
    if (good) values.push_back(item.get<std::int64_t>());
  }
  if (!good) {
    fail(ErrorCode::InvalidValue, "{}: '{}' is not a list of whole numbers from {} to {}",
         fields.where(), name, low, high);
  }
  return values;
}

std::vector<double> numbers(const Fields& fields, const std::string& name, std::int64_t expected) {
  const Json& list = fields.has(name) ? fields.json().at(name) : Json();
  std::vector<double> values;
  bool good = list.is_array() && static_cast<std::int64_t>(list.size()) == expected;
  for (const Json& item : good ? list : Json::array()) {
    good = good && item.is_number() && std::isfinite(item.get<double>());
    if (good) values.push_back(item.get<double>());
  }
  if (!good) {
    fail(ErrorCode::InvalidValue, "{}: '{}' is not a list of {} numbers, one a channel",
         fields.where(), name, expected);
  }
  return values;
}

template <typename T, std::size_t N>
T chosen(const Fields& fields, const char* name,
         const std::array<std::pair<const char*, T>, N>& values) {
  const std::string text = fields.string(name);
  std::string names;
  for (const auto& [word, value] : values) {
    if (text == word) return value;
    names += fmt::format("{}'{}'", names.empty() ? "" : ", ", word);
  }
  fail(ErrorCode::InvalidValue, "{}: '{}' is '{}'; expected one of {}", fields.where(), name,
       text.substr(0, 40), names);
}

constexpr std::array<std::pair<const char*, DataKind>, 3> kKinds = {
    {{"text", DataKind::Text},
     {"classification", DataKind::Classification},
     {"images", DataKind::Images}}};
constexpr std::array<std::pair<const char*, TextStyle>, 2> kStyles = {
    {{"encoder", TextStyle::Encoder}, {"decoder", TextStyle::Decoder}}};
constexpr std::array<std::pair<const char*, NpyType>, 5> kTypeNames = {{{"uint8", NpyType::U8},
                                                                        {"uint16", NpyType::U16},
                                                                        {"uint32", NpyType::U32},
                                                                        {"int32", NpyType::I32},
                                                                        {"int64", NpyType::I64}}};

TokenizerMeta parse_tokenizer(const Fields& fields) {
  TokenizerMeta tokenizer;
  tokenizer.name = fields.string("name");
  tokenizer.kind = fields.string("kind");
  tokenizer.sha256 = hash(fields, "sha256");
  tokenizer.vocab_size = fields.int_in("vocab_size", 1, kMaxVocabulary);
  const Fields special = fields.object("special");
  for (const auto& [name, id] : special.json().items()) {
    if (std::find(kSpecial.begin(), kSpecial.end(), name) == kSpecial.end()) {
      fail(ErrorCode::InvalidValue, "{}: '{}'; expected {}", special.where(), name.substr(0, 40),
           fmt::join(kSpecial, ", "));
    }
    tokenizer.special[name] =
        static_cast<std::int32_t>(special.int_in(name, 0, tokenizer.vocab_size - 1));
  }
  for (const std::int64_t id : integers(fields, "never_masked", 0, tokenizer.vocab_size - 1)) {
    if (!tokenizer.never_masked.empty() && id <= tokenizer.never_masked.back()) {
      fail(ErrorCode::InvalidValue, "{}: 'never_masked' does not rise at {}", fields.where(), id);
    }
    tokenizer.never_masked.push_back(static_cast<std::int32_t>(id));
  }
  for (const auto& [name, id] : tokenizer.special) {
    if (!std::binary_search(tokenizer.never_masked.begin(), tokenizer.never_masked.end(), id)) {
      fail(ErrorCode::InvalidValue, "{}: 'never_masked' lacks {}, the id of '{}'", fields.where(),
           id, name);
    }
  }
  return tokenizer;
}

ImageMeta parse_image(const Fields& fields) {
  ImageMeta image;
  image.channels = fields.int_in("channels", 1, 16);
  image.height = fields.int_in("height", 1, kMaxImageSide);
  image.width = fields.int_in("width", 1, kMaxImageSide);
  image.mean = numbers(fields, "mean", image.channels);
  image.std = numbers(fields, "std", image.channels);
  for (const double value : image.std) {
    if (!(value > 0)) {
      fail(ErrorCode::InvalidValue,
           "{}: 'std' has {}; expected numbers above 0. Images that are all alike teach nothing",
           fields.where(), value);
    }
  }
  return image;
}

ArrayMeta parse_array(const Fields& fields) {
  ArrayMeta array;
  array.file = fields.string("file");
  if (array.file.empty() || array.file[0] == '.' || array.file.find('/') != std::string::npos ||
      array.file.find('\0') != std::string::npos) {
    fail(ErrorCode::InvalidValue, "{}: 'file' is '{}'; expected the name of a file of the folder",
         fields.where(), array.file.substr(0, 80));
  }
  array.type = chosen(fields, "dtype", kTypeNames);
  array.shape = integers(fields, "shape", 0, kMaxCount);
  array.bytes = static_cast<std::uint64_t>(count(fields, "bytes"));
  array.sha256 = hash(fields, "sha256");
  return array;
}

struct Expected {
  std::vector<NpyType> types;
  std::vector<std::int64_t> shape;
};

/// The arrays that a split of this kind has.
std::map<std::string, Expected> expected_arrays(const DatasetMeta& meta, const SplitMeta& split) {
  const std::vector<std::int64_t> rows = {split.rows};
  if (meta.kind == DataKind::Images) {
    const ImageMeta& image = *meta.image;
    return {{"images", {{NpyType::U8}, {split.rows, image.channels, image.height, image.width}}},
            {"labels", {{NpyType::I32}, rows}}};
  }
  std::map<std::string, Expected> arrays = {
      {"tokens", {{NpyType::U16, NpyType::U32}, {split.rows, meta.length}}},
      {"lengths", {{NpyType::I32}, rows}}};
  if (meta.kind == DataKind::Text) {
    arrays["documents"] = {{NpyType::I64}, {split.documents + 1}};
  } else {
    arrays["labels"] = {{NpyType::I32}, rows};
  }
  return arrays;
}

void check_arrays(const DatasetMeta& meta, const SplitMeta& split, const std::string& where) {
  const auto expected = expected_arrays(meta, split);
  for (const auto& [name, array] : split.arrays) {
    if (!expected.contains(name)) {
      fail(ErrorCode::InvalidValue, "{}: an array '{}', which data of kind '{}' does not have",
           where, name.substr(0, 40), data_kind_name(meta.kind));
    }
  }
  std::set<std::string> files;
  for (const auto& [name, wanted] : expected) {
    const auto found = split.arrays.find(name);
    if (found == split.arrays.end()) {
      fail(ErrorCode::NotFound, "{}: no array '{}'; data of kind '{}' has one", where, name,
           data_kind_name(meta.kind));
    }
    const ArrayMeta& array = found->second;
    if (std::find(wanted.types.begin(), wanted.types.end(), array.type) == wanted.types.end()) {
      fail(ErrorCode::InvalidValue, "{}: array '{}' is {}; expected {}", where, name,
           npy_type_name(array.type), npy_type_name(wanted.types.front()));
    }
    if (array.shape != wanted.shape) {
      fail(ErrorCode::InvalidShape, "{}: array '{}' has shape [{}]; expected [{}]", where, name,
           fmt::join(array.shape, ", "), fmt::join(wanted.shape, ", "));
    }
    if (!files.insert(array.file).second) {
      fail(ErrorCode::InvalidValue, "{}: two arrays are the file '{}'", where, array.file);
    }
  }
}

void parse_counts(const Fields& fields, const DatasetMeta& meta, SplitMeta& split) {
  split.tokens = count(fields, "tokens");
  split.text_tokens = count(fields, "text_tokens");
  split.special_tokens = count(fields, "special_tokens");
  split.padding = count(fields, "padding");
  split.documents = fields.int_in("documents", 1, kMaxRows * kMaxRowLength - 1);
  split.words = count(fields, "words");
  split.bytes = count(fields, "bytes");
  split.truncated = fields.has("truncated") ? count(fields, "truncated") : 0;
  if (split.text_tokens + split.special_tokens != split.tokens) {
    fail(ErrorCode::InvalidValue, "{}: {} text tokens and {} special tokens do not make {} tokens",
         fields.where(), split.text_tokens, split.special_tokens, split.tokens);
  }
  if (split.tokens < split.rows || split.tokens + split.padding != split.rows * meta.length) {
    fail(ErrorCode::InvalidValue, "{}: {} tokens and {} of padding do not fill {} rows of {}",
         fields.where(), split.tokens, split.padding, split.rows, meta.length);
  }
}

SplitMeta parse_split(const Fields& fields, const DatasetMeta& meta) {
  SplitMeta split;
  split.rows = fields.int_in("rows", 1, kMaxRows);
  if (meta.kind != DataKind::Images) parse_counts(fields, meta, split);
  const Fields arrays = fields.object("arrays");
  for (const auto& item : arrays.json().items()) {
    split.arrays.emplace(item.key(), parse_array(arrays.object(item.key())));
  }
  check_arrays(meta, split, fields.where());
  return split;
}

std::vector<std::string> parse_classes(const Fields& fields) {
  std::vector<std::string> classes = fields.strings("classes");
  if (classes.size() < 2 || classes.size() > 1'000'000) {
    fail(ErrorCode::InvalidValue, "{}: 'classes' has {} names; expected 2 or more", fields.where(),
         classes.size());
  }
  return classes;
}

void parse_text(const Fields& fields, DatasetMeta& meta) {
  meta.style = chosen(fields, "style", kStyles);
  meta.length = fields.int_in("length", 1, kMaxRowLength);
  meta.packed = fields.boolean("packed");
  meta.tokenizer = parse_tokenizer(fields.object("tokenizer"));
  meta.pad_id =
      static_cast<std::int32_t>(fields.int_in("pad_id", 0, meta.tokenizer.vocab_size - 1));
  const bool encoder = meta.style == TextStyle::Encoder;
  const std::vector<const char*> needed =
      encoder ? std::vector<const char*>{"cls", "sep", "mask"} : std::vector<const char*>{"eos"};
  for (const char* name : needed) {
    if (!meta.tokenizer.special.contains(name)) {
      fail(ErrorCode::NotFound, "{}: the tokenizer has no '{}', which the style '{}' needs",
           fields.where(), name, text_style_name(meta.style));
    }
  }
}

}  // namespace

const char* data_kind_name(DataKind kind) { return kKinds[static_cast<std::size_t>(kind)].first; }
const char* text_style_name(TextStyle style) {
  return kStyles[static_cast<std::size_t>(style)].first;
}

DatasetMeta parse_dataset_meta(std::string_view text, const std::string& where) {
  const Json json = parse_json(text, where, {.max_bytes = std::size_t{16} << 20, .max_depth = 16});
  const Fields fields(json, where);
  if (fields.string_or("format", "") != "subspace-data") {
    fail(ErrorCode::InvalidFormat,
         "{}: no \"format\": \"subspace-data\"; expected the meta.json of a folder that "
         "subspace.prepare made",
         where);
  }
  if (fields.int_in("version", 0, INT32_MAX) != 1) {
    fail(ErrorCode::Unsupported, "{}: version {}; this program reads version 1. Make the data anew",
         where, fields.int_in("version", 0, INT32_MAX));
  }
  DatasetMeta meta;
  meta.kind = chosen(fields, "kind", kKinds);
  meta.id = hash(fields, "id");
  if (meta.kind == DataKind::Images) {
    meta.image = parse_image(fields.object("image"));
  } else {
    parse_text(fields, meta);
  }
  if (meta.kind != DataKind::Text) meta.classes = parse_classes(fields);
  const Fields splits = fields.object("splits");
  for (const auto& item : splits.json().items()) {
    if (item.key() != "train" && item.key() != "valid" && item.key() != "test") {
      fail(ErrorCode::InvalidValue, "{}: a split '{}'; expected train, valid or test",
           splits.where(), item.key().substr(0, 40));
    }
    meta.splits.emplace(item.key(), parse_split(splits.object(item.key()), meta));
  }
  if (!meta.splits.contains("train")) {
    fail(ErrorCode::NotFound, "{}: no 'train' among the splits", where);
  }
  return meta;
}

}  // namespace subspace
