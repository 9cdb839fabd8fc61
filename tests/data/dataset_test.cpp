#include "data/dataset.h"

#include <algorithm>
#include <fstream>
#include <functional>
#include <numeric>

#include "data/data_folder.h"

namespace subspace {
namespace {
using test::bytes_of, test::DataFolder, test::error_of, test::expect_says;
using Ints = std::vector<std::int32_t>;
constexpr std::int32_t X = kIgnoredTarget;

/// What one of DataSplit's readers gives for some rows.
Ints read(const DataSplit& split, const std::vector<std::int64_t>& rows, std::size_t row_size,
          void (DataSplit::*reader)(std::span<const std::int64_t>, std::span<std::int32_t>) const) {
  Ints out(rows.size() * row_size, -7);
  (split.*reader)(rows, out);
  return out;
}

TEST(DatasetTest, ReadsRowsInAnyOrder) {
  DataFolder folder;
  test::fill_packed(folder);
  const Dataset data(folder.path());
  const DataSplit& train = data.split("train");
  EXPECT_EQ(train.rows(), 3);
  EXPECT_EQ(read(train, {2, 0, 2}, 4, &DataSplit::tokens),
            (Ints{6, 9, 9, 9, 0, 1, 2, 9, 6, 9, 9, 9}));
  EXPECT_EQ(read(train, {2, 1}, 1, &DataSplit::lengths), (Ints{2, 4}));
  // 32-bit tokens.
  EXPECT_EQ(read(data.split("valid"), {0}, 4, &DataSplit::tokens), (Ints{7, 8, 9, 9}));
  EXPECT_EQ(data.held_out(), &data.split("valid"));
  EXPECT_NO_THROW(data.verify());
}

TEST(DatasetTest, PackedRowsAreOneStream) {
  DataFolder folder;
  test::fill_packed(folder);
  const Dataset data(folder.path());
  EXPECT_EQ(read(data.split("train"), {0, 1, 2}, 4, &DataSplit::next_tokens),
            (Ints{1, 2, 9, 3, 4, 9, 5, 6, 9, X, X, X}));
  EXPECT_EQ(read(data.split("valid"), {0}, 4, &DataSplit::next_tokens), (Ints{8, 9, X, X}));
}

TEST(DatasetTest, SplitRowsEndBeforeTheNext) {
  DataFolder folder;
  test::fill_packed(folder);
  folder.meta["packed"] = false;
  folder.write_meta();
  EXPECT_EQ(read(Dataset(folder.path()).split("train"), {0, 1, 2}, 4, &DataSplit::next_tokens),
            (Ints{1, 2, 9, X, 4, 9, 5, X, 9, X, X, X}));
}

TEST(DatasetTest, NumbersDocuments) {
  DataFolder decoder;
  test::fill_packed(decoder);
  EXPECT_EQ(
      read(Dataset(decoder.path()).split("train"), {0, 1, 2}, 4, &DataSplit::document_numbers),
      (Ints{0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0}));
}

TEST(DatasetTest, NumbersDocumentsBehindClassTokens) {
  DataFolder folder;
  test::fill_encoder(folder);
  const Dataset data(folder.path());
  EXPECT_EQ(read(data.split("train"), {0, 1, 2}, 5, &DataSplit::document_numbers),
            (Ints{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}));
  // A document that begins inside a row counts there.
  folder.array("train", "documents", "int64", {4}, bytes_of<std::int64_t>({1, 3, 7, 13}));
  folder.write_meta();
  EXPECT_EQ(read(Dataset(folder.path()).split("train"), {1, 0}, 5, &DataSplit::document_numbers),
            (Ints{0, 0, 1, 1, 1, 0, 0, 0, 1, 1}));
}

TEST(DatasetTest, ReadsImages) {
  DataFolder folder;
  test::fill_images(folder);
  const Dataset data(folder.path());
  std::vector<std::uint8_t> pixels(6);
  data.split("train").images(std::vector<std::int64_t>{1}, pixels);
  EXPECT_EQ(pixels, (std::vector<std::uint8_t>{250, 251, 252, 253, 254, 255}));
  EXPECT_EQ(read(data.split("train"), {0, 1}, 1, &DataSplit::labels), (Ints{1, 0}));
  EXPECT_EQ(data.held_out(), &data.split("test"));
  EXPECT_EQ(data.meta().image->channels, 1);
}

// Folders that subspace.prepare made; tests/python/test_prepare_format.py keeps them so.
TEST(DatasetTest, ReadsWhatPrepareMakes) {
  const std::filesystem::path made = SUBSPACE_TEST_DATA;
  for (const char* name :
       {"encoder", "packed_encoder", "packed_decoder", "classification", "images"}) {
    const Dataset data(made / name);
    EXPECT_NO_THROW(data.verify()) << name;
    ASSERT_NE(data.held_out(), nullptr) << name;
    for (const DataSplit* split : {&data.split("train"), data.held_out()}) {
      std::vector<std::int64_t> rows(static_cast<std::size_t>(split->rows()));
      std::iota(rows.begin(), rows.end(), 0);
      if (data.meta().kind == DataKind::Images) {
        std::vector<std::uint8_t> pixels(rows.size() * 6);
        EXPECT_NO_THROW(split->images(rows, pixels)) << name;
        read(*split, rows, 1, &DataSplit::labels);
        continue;
      }
      const Ints tokens = read(*split, rows, 8, &DataSplit::tokens);
      const Ints lengths = read(*split, rows, 1, &DataSplit::lengths);
      EXPECT_EQ(std::accumulate(lengths.begin(), lengths.end(), std::int64_t{0}),
                split->meta().tokens);
      const auto& special = data.meta().tokenizer.never_masked;
      std::int64_t text = 0;
      for (const std::int32_t token : tokens) {
        text += !std::binary_search(special.begin(), special.end(), token);
      }
      EXPECT_EQ(text, split->meta().text_tokens) << name;
    }
  }
}

TEST(DatasetTest, PreparedDocumentsBeginWhereTheMetaSays) {
  // "= First =\n\nR\u00f6ntgen rays." is 25 bytes and an EOS; "= Second =\n\nTwo." 16 and one.
  const Dataset data(std::filesystem::path(SUBSPACE_TEST_DATA) / "packed_decoder");
  const DataSplit& train = data.split("train");
  ASSERT_EQ(train.rows(), 6);
  const Ints numbers = read(train, {3}, 8, &DataSplit::document_numbers);
  EXPECT_EQ(numbers, (Ints{0, 0, 1, 1, 1, 1, 1, 1}));
  const Ints tokens = read(train, {3}, 8, &DataSplit::tokens);
  EXPECT_EQ(tokens[1], data.meta().tokenizer.special.at("eos"));
  const Ints next = read(train, {2, 3}, 8, &DataSplit::next_tokens);
  EXPECT_EQ(next[7], tokens[0]);
  EXPECT_EQ(next[8], tokens[1]);
}

TEST(DatasetTest, SaysHowToMakeData) {
  DataFolder folder;
  expect_says(error_of([&] { Dataset(folder.path()); }), ErrorCode::NotFound, "subspace.prepare");
  test::fill_packed(folder);
  const Dataset data(folder.path());
  expect_says(error_of([&] { data.split("test"); }), ErrorCode::NotFound, "train, valid");
  std::filesystem::remove(folder.path() / "train.tokens.npy");
  expect_says(error_of([&] { Dataset(folder.path()); }), ErrorCode::NotFound, "train.tokens.npy");
}

TEST(DatasetTest, ArraysMustBeThoseOfTheMeta) {
  DataFolder folder;
  test::fill_packed(folder);
  const Json before = folder.meta;
  folder.array("train", "lengths", "int64", {3}, bytes_of<std::int64_t>({4, 4, 2}));
  folder.meta = before;
  folder.write_meta();
  expect_says(error_of([&] { Dataset(folder.path()); }), ErrorCode::InvalidShape,
              "int64 [3], 152 bytes; meta.json says int32 [3], 140 bytes");
}

/// Replaces an array by one of the same shape and says what reading then says.
Error after(const char* name, const char* dtype, const std::vector<std::int64_t>& shape,
            const std::string& bytes, const std::function<void(const DataSplit&)>& use) {
  DataFolder folder;
  test::fill_packed(folder);
  folder.array("train", name, dtype, shape, bytes);
  folder.write_meta();
  return error_of([&] {
    const Dataset data(folder.path());
    use(data.split("train"));
  });
}

TEST(DatasetTest, ValuesOutOfRangeAreRefusedWhenRead) {
  const auto tokens = bytes_of<std::uint16_t>({0, 1, 2, 9, 3, 10, 9, 5, 6, 9, 9, 9});
  const Error token = after("tokens", "uint16", {3, 4}, tokens, [](const DataSplit& split) {
    read(split, {0}, 4, &DataSplit::tokens);
    read(split, {1}, 4, &DataSplit::tokens);
  });
  expect_says(token, ErrorCode::InvalidValue, "row 1, column 1: token 10; the vocabulary has 10");
  for (const std::int32_t length : {0, 5, -1}) {
    const Error error = after("lengths", "int32", {3}, bytes_of<std::int32_t>({4, length, 2}),
                              [](const DataSplit& s) { read(s, {1}, 1, &DataSplit::lengths); });
    expect_says(error, ErrorCode::InvalidValue, fmt::format("row 1 has {} tokens", length));
  }
}

TEST(DatasetTest, DocumentsMustRise) {
  for (const auto& starts : std::vector<std::vector<std::int64_t>>{
           {0, 4, 4, 10}, {0, 7, 4, 10}, {-1, 4, 7, 10}, {0, 4, 7, 13}}) {
    const Error error = after("documents", "int64", {4}, bytes_of(starts), [](const DataSplit&) {});
    expect_says(error, ErrorCode::InvalidValue, "rising positions up to 12");
  }
}

TEST(DatasetTest, LabelsMustBeClasses) {
  for (const std::int32_t label : {2, -1}) {
    DataFolder folder;
    test::fill_images(folder);
    folder.array("train", "labels", "int32", {2}, bytes_of<std::int32_t>({0, label}));
    folder.write_meta();
    const Dataset data(folder.path());
    expect_says(error_of([&] { read(data.split("train"), {1}, 1, &DataSplit::labels); }),
                ErrorCode::InvalidValue, fmt::format("row 1 has the label {}", label));
  }
}

TEST(DatasetTest, WrongRequestsAreRefused) {
  DataFolder folder;
  test::fill_packed(folder);
  const Dataset data(folder.path());
  const DataSplit& train = data.split("train");
  expect_says(error_of([&] { read(train, {3}, 4, &DataSplit::tokens); }), ErrorCode::Internal,
              "row 3");
  expect_says(error_of([&] { read(train, {-1}, 4, &DataSplit::tokens); }), ErrorCode::Internal,
              "row -1");
  expect_says(error_of([&] { read(train, {0}, 5, &DataSplit::tokens); }), ErrorCode::Internal,
              "5 values");
  expect_says(error_of([&] { read(train, {0}, 1, &DataSplit::labels); }), ErrorCode::Internal,
              "'labels'");
}

TEST(DatasetTest, VerifyFindsOneChangedByte) {
  DataFolder folder;
  test::fill_packed(folder);
  const Dataset data(folder.path());
  std::fstream file(folder.path() / "valid.lengths.npy",
                    std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(128) << '\4';
  file.close();
  expect_says(error_of([&] { data.verify(); }), ErrorCode::InvalidValue, "valid.lengths.npy");
}

TEST(DatasetTest, AFileThatShrinksIsNoticed) {
  DataFolder folder;
  test::fill_packed(folder);
  const Dataset data(folder.path());
  std::filesystem::resize_file(folder.path() / "train.tokens.npy", 128);
  expect_says(error_of([&] { read(data.split("train"), {0}, 4, &DataSplit::tokens); }),
              ErrorCode::Io, "train.tokens.npy");
}

}  // namespace
}  // namespace subspace
