#include "checkpoint/safetensors.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <fstream>

#include "base/error.h"
#include "checkpoint/shard_index.h"

namespace subspace {
namespace {
namespace fs = std::filesystem;

std::string with_length(const std::string& header, const std::string& data = "") {
  const std::uint64_t length = header.size();
  std::string file(8, '\0');
  std::memcpy(file.data(), &length, 8);
  return file + header + data;
}

std::string entry(const char* dtype, const char* shape, const char* offsets) {
  return fmt::format(R"({{"dtype":"{}","shape":{},"data_offsets":{}}})", dtype, shape, offsets);
}

std::string one(const char* dtype, const char* shape, const char* offsets, std::size_t data) {
  return with_length(R"({"a":)" + entry(dtype, shape, offsets) + "}", std::string(data, 'x'));
}

std::string two(const char* first, const char* second, std::size_t data) {
  return with_length(
      R"({"a":)" + entry("U8", "[4]", first) + R"(,"b":)" + entry("U8", "[4]", second) + "}",
      std::string(data, 'x'));
}

SafetensorsHeader parse(const std::string& file) {
  return parse_safetensors_header(std::as_bytes(std::span(file.data(), file.size())), file.size(),
                                  "file");
}

struct BadHeader {
  const char* name;
  std::string file;
  const char* says;  // so that no rule is tested by another one's error
};

class Header : public testing::TestWithParam<BadHeader> {};

TEST_P(Header, IsRefused) {
  try {
    parse(GetParam().file);
    FAIL() << "accepted";
  } catch (const Error& error) {
    const std::string what = error.what();
    EXPECT_EQ(error.code(), ErrorCode::InvalidFormat) << what;
    EXPECT_EQ(what.rfind("file", 0), 0u) << what;
    EXPECT_NE(what.find(GetParam().says), std::string::npos) << what;
  }
}

const std::string kEmpty = entry("U8", "[0]", "[0,0]");

INSTANTIATE_TEST_SUITE_P(
    Rules, Header,
    testing::Values(
        BadHeader{"empty_file", "", "0 bytes"}, BadHeader{"seven_bytes", "1234567", "7 bytes"},
        BadHeader{"length_2_60", std::string("\0\0\0\0\0\0\0\x10", 8) + "{}",
                  "claims 1152921504606846976 bytes, more than"},
        BadHeader{"length_2_64", std::string(8, '\xff') + "{}", "claims 18446744073709551615"},
        BadHeader{"length_beyond_file", std::string("\x40\0\0\0\0\0\0\0", 8) + "{}",
                  "claims 64 bytes, but only 2 follow"},
        BadHeader{"length_zero", std::string(8, '\0'), "does not begin with '{'"},
        BadHeader{"no_object", with_length("[]"), "does not begin with '{'"},
        BadHeader{"leading_space", with_length(" {}"), "does not begin with '{'"},
        BadHeader{"no_json", with_length("{\"a\""), "not valid JSON at byte"},
        BadHeader{"bytes_after_json", with_length("{}x"), "not valid JSON at byte"},
        BadHeader{"no_utf8", with_length("{\"\xff\":1}"), "not valid JSON at byte"},
        BadHeader{"too_deep",
                  with_length("{\"a\":" + std::string(500, '[') + std::string(500, ']') + "}"),
                  "deeper than 8"},
        BadHeader{"duplicate", with_length("{\"a\":" + kEmpty + ",\"a\":" + kEmpty + "}"),
                  "'a' stands twice"},
        BadHeader{"duplicate_field",
                  with_length(R"({"a":{"dtype":"U8","dtype":"U8","shape":[0],)"
                              R"("data_offsets":[0,0]}})"),
                  "'dtype' stands twice"},
        BadHeader{"entry_no_object", with_length("{\"a\":3}"), "expected an object"},
        BadHeader{"unknown_field",
                  with_length(R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0],"x":1}})"),
                  "unknown field 'x'"},
        BadHeader{"no_dtype", with_length(R"({"a":{"shape":[0],"data_offsets":[0,0]}})"),
                  "'dtype' is missing"},
        BadHeader{"dtype_no_string",
                  with_length(R"({"a":{"dtype":3,"shape":[0],"data_offsets":[0,0]}})"),
                  "'dtype' is 3"},
        BadHeader{"unknown_dtype", one("F7", "[1]", "[0,4]", 4), "unknown dtype 'F7'"},
        BadHeader{"no_shape", with_length(R"({"a":{"dtype":"U8","data_offsets":[0,0]}})"),
                  "'shape' is missing"},
        BadHeader{"shape_no_list", one("U8", "7", "[0,1]", 1), "'shape' is 7"},
        BadHeader{"negative_dimension", one("U8", "[-1]", "[0,1]", 1), "the shape holds -1"},
        BadHeader{"dimension_no_integer", one("U8", "[1.5]", "[0,1]", 1), "the shape holds 1.5"},
        BadHeader{"dimension_2_64", one("U8", "[18446744073709551616]", "[0,1]", 1),
                  "the shape holds 1.8446744073709552e+19"},
        BadHeader{"dimension_2_63", one("U8", "[9223372036854775808]", "[0,1]", 1),
                  "the shape holds 9223372036854775808"},
        BadHeader{"product_overflow", one("U8", "[4294967296,4294967296]", "[0,1]", 1),
                  "exceeds 2^63 bits"},
        BadHeader{"part_of_a_byte", one("F4", "[3]", "[0,1]", 1), "no whole number of bytes"},
        BadHeader{"no_offsets", with_length(R"({"a":{"dtype":"U8","shape":[0]}})"),
                  "'data_offsets' is missing"},
        BadHeader{"three_offsets", one("U8", "[1]", "[0,1,1]", 1), "'data_offsets' is [0,1,1]"},
        BadHeader{"negative_offset", one("U8", "[1]", "[-1,0]", 1), "'data_offsets' is [-1,0]"},
        BadHeader{"offsets_backwards", one("U8", "[1]", "[1,0]", 1), "run backwards"},
        BadHeader{"offsets_beyond_file", one("U8", "[8]", "[0,8]", 4), "truncated"},
        BadHeader{"offset_2_64_minus_1", one("U8", "[1]", "[0,18446744073709551615]", 1),
                  "truncated"},
        BadHeader{"size_is_not_shape", one("F32", "[2]", "[0,4]", 4),
                  "takes 8 bytes, but data_offsets [0, 4] hold 4"},
        BadHeader{"overlap", two("[0,4]", "[2,6]", 6), "'a' and 'b' overlap"},
        BadHeader{"the_same_bytes_twice", two("[0,4]", "[0,4]", 4), "overlap"},
        BadHeader{"hole", two("[0,4]", "[6,10]", 10), "belong to no tensor"},
        BadHeader{"hole_at_the_beginning", one("U8", "[4]", "[1,5]", 5), "belong to no tensor"},
        BadHeader{"trailing_bytes", one("U8", "[4]", "[0,4]", 9), "5 bytes behind the last tensor"},
        BadHeader{"bytes_without_tensors", with_length("{}", "x"), "1 bytes behind"},
        BadHeader{"truncated_data", two("[0,4]", "[4,8]", 7), "truncated"},
        BadHeader{"metadata_no_object", with_length(R"({"__metadata__":[]})"),
                  "'__metadata__' is []"},
        BadHeader{"metadata_no_strings", with_length(R"({"__metadata__":{"a":1}})"),
                  "'__metadata__' field 'a' is 1"}),
    [](const auto& info) { return info.param.name; });

TEST(HeaderTest, WhatIsRightIsAccepted) {
  // Out of order, a scalar, an empty tensor, four-bit values, padding behind the JSON.
  const auto header = parse(with_length(
      R"({"__metadata__":{"format":"pt"},"c":)" + entry("U8", "[3]", "[4,7]") + R"(,"b":)" +
          entry("F32", "[]", "[0,4]") + R"(,"a":)" + entry("BF16", "[2,0]", "[4,4]") + R"(,"d":)" +
          entry("F4", "[2,3]", "[7,10]") + "}   ",
      "1234567890"));
  EXPECT_EQ(header.tensors.size(), 4u);
  EXPECT_EQ(header.tensors.at("b").elements(), 1);
  EXPECT_EQ(header.tensors.at("a").elements(), 0);
  EXPECT_EQ(header.tensors.at("c").begin, header.data_begin + 4);
  EXPECT_EQ(header.tensors.at("d").bytes(), 3u);
  EXPECT_EQ(header.metadata.at("format"), "pt");
  EXPECT_TRUE(parse(with_length("{}")).tensors.empty());
}

TEST(HeaderTest, TooManyDimensions) {
  std::string shape = "[1";
  for (int i = 0; i < 64; ++i) shape += ",1";
  try {
    parse(one("U8", (shape + "]").c_str(), "[0,1]", 1));
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("65 dimensions"), std::string::npos) << error.what();
  }
}

TEST(DTypeTest, NamesAndSizesAgree) {
  EXPECT_EQ(dtype_size(DType::F64), 8);
  EXPECT_EQ(dtype_size(DType::BF16), 2);
  EXPECT_EQ(dtype_size(DType::F8_E4M3), 1);
  EXPECT_EQ(dtype_bits(DType::F6_E2M3), 6);
  EXPECT_THROW(dtype_size(DType::F4), Error);
  EXPECT_EQ(dtype_from_name("F8_E4M3"), DType::F8_E4M3);
  EXPECT_EQ(dtype_from_name("f32"), std::nullopt);
  for (int i = 0; i <= static_cast<int>(DType::C64); ++i) {
    const auto dtype = static_cast<DType>(i);
    EXPECT_EQ(dtype_from_name(dtype_name(dtype)), dtype);
  }
}

class File : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() /
              fmt::format("subspace-file-{}-{}", ::getpid(),
                          testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::remove_all(folder_);
    fs::create_directories(folder_);
    path_ = folder_ / "x.safetensors";
  }
  void TearDown() override { fs::remove_all(folder_); }
  template <typename Action>
  ErrorCode code_of(Action action) {
    try {
      action();
    } catch (const Error& error) {
      return error.code();
    }
    return ErrorCode::Usage;
  }
  fs::path folder_, path_;
};

TEST_F(File, WhatIsWrittenIsRead) {
  SafetensorsWriter writer(path_,
                           {{"a", DType::F64, {2, 3}},
                            {"none", DType::F32, {0, 4}},
                            {"scalar", DType::I32, {}},
                            {"b", DType::U8, {5}}},
                           {{"format", "pt"}, {"quote", "\"\n"}});
  const double values[6] = {1, 2, 3, 4, 5, 6};
  writer.append("a", values, 24);  // in two parts
  writer.append("a", values + 3, 24);
  const std::int32_t seven = 7;
  writer.append("scalar", &seven, 4);
  writer.append("b", "hello", 5);
  EXPECT_FALSE(fs::exists(path_));
  writer.finish();

  const SafetensorsFile file(path_);
  EXPECT_EQ(file.header().data_begin % 8, 0u);
  EXPECT_EQ(file.header().metadata.at("quote"), "\"\n");
  EXPECT_EQ(file.header().tensors.size(), 4u);
  EXPECT_EQ(file.info("a").shape, (std::vector<std::int64_t>{2, 3}));
  ASSERT_EQ(file.bytes("a").size(), sizeof values);
  EXPECT_EQ(std::memcmp(file.bytes("a").data(), values, sizeof values), 0);
  EXPECT_EQ(file.bytes("none").size(), 0u);
  char part[3] = {};
  file.read(file.info("b"), 1, part, 3);
  EXPECT_EQ(std::string(part, 3), "ell");
  EXPECT_EQ(code_of([&] { file.read(file.info("b"), 3, part, 3); }), ErrorCode::Internal);
  EXPECT_EQ(code_of([&] { file.bytes("c"); }), ErrorCode::NotFound);
  file.drop("a");
  EXPECT_EQ(std::memcmp(file.bytes("a").data(), values, sizeof values), 0);
}

TEST_F(File, AWriterOutOfStepIsAnErrorAndLeavesNothing) {
  using Entries = std::vector<SafetensorsWriter::Entry>;
  const Entries entries = {{"a", DType::U8, {2}}, {"b", DType::U8, {2}}};
  EXPECT_EQ(code_of([&] { SafetensorsWriter(path_, entries).append("b", "xy", 2); }),
            ErrorCode::Internal);
  EXPECT_EQ(code_of([&] { SafetensorsWriter(path_, entries).append("a", "xyz", 3); }),
            ErrorCode::Internal);
  EXPECT_EQ(code_of([&] {
              SafetensorsWriter writer(path_, entries);
              writer.append("a", "xy", 2);
              writer.finish();
            }),
            ErrorCode::Internal);
  for (const Entries& bad :
       {Entries{{"a", DType::U8, {1}}, {"a", DType::U8, {1}}}, Entries{{"a", DType::U8, {-1}}},
        Entries{{"a", DType::F4, {1}}}, Entries{{"__metadata__", DType::U8, {1}}},
        Entries{{"a", DType::U8, {1LL << 40, 1LL << 40}}}}) {
    EXPECT_EQ(code_of([&] { SafetensorsWriter writer(path_, bad); }), ErrorCode::Internal);
  }
  EXPECT_TRUE(fs::is_empty(folder_));
}

TEST_F(File, WhatIsNoFileIsNamed) {
  EXPECT_EQ(code_of([&] { SafetensorsFile file(path_); }), ErrorCode::NotFound);
  EXPECT_EQ(code_of([&] { SafetensorsFile file(folder_); }), ErrorCode::InvalidFormat);
  std::ofstream(path_) << "short";
  EXPECT_EQ(code_of([&] { SafetensorsFile file(path_); }), ErrorCode::InvalidFormat);
  std::ofstream(path_) << std::string("\0\0\0\0\0\0\0\x10", 8) << "{}";
  EXPECT_EQ(code_of([&] { SafetensorsFile file(path_); }), ErrorCode::InvalidFormat);
}

TEST_F(File, ADeletedFileStaysReadable) {
  SafetensorsWriter writer(path_, {{"a", DType::U8, {2}}});
  writer.append("a", "xy", 2);
  writer.finish();
  const SafetensorsFile file(path_);
  fs::remove(path_);
  char part[2] = {};
  file.read(file.info("a"), 0, part, 2);
  EXPECT_EQ(std::string(part, 2), "xy");
}

struct BadIndex {
  const char* name;
  const char* text;
  const char* says;
};

class Index : public testing::TestWithParam<BadIndex> {};

TEST_P(Index, IsRefused) {
  try {
    parse_shard_index(GetParam().text, "index");
    FAIL() << "accepted";
  } catch (const Error& error) {
    const std::string what = error.what();
    EXPECT_EQ(error.code(), ErrorCode::InvalidFormat) << what;
    EXPECT_EQ(what.rfind("index", 0), 0u) << what;
    EXPECT_NE(what.find(GetParam().says), std::string::npos) << what;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Rules, Index,
    testing::Values(
        BadIndex{"no_json", "{", "not valid JSON"}, BadIndex{"no_object", "[]", "a JSON object"},
        BadIndex{"no_map", "{}", "'weight_map' is missing"},
        BadIndex{"map_no_object", R"({"weight_map":[]})", "'weight_map' is []"},
        BadIndex{"empty_map", R"({"weight_map":{}})", "names no tensor"},
        BadIndex{"no_string", R"({"weight_map":{"w":3}})", "mapped to 3"},
        BadIndex{"duplicate", R"({"weight_map":{"w":"a","w":"b"}})", "'w' stands twice"},
        BadIndex{"parent", R"({"weight_map":{"w":".."}})", "plain name"},
        BadIndex{"path", R"({"weight_map":{"w":"../a.safetensors"}})", "plain name"},
        BadIndex{"absolute", R"({"weight_map":{"w":"/etc/passwd"}})", "plain name"},
        BadIndex{"backslash", R"({"weight_map":{"w":"a\\b"}})", "plain name"},
        BadIndex{"nul", R"({"weight_map":{"w":"a\u0000b"}})", "plain name"},
        BadIndex{"no_name", R"({"weight_map":{"w":""}})", "plain name"},
        BadIndex{"metadata_no_object", R"({"weight_map":{"w":"a"},"metadata":3})",
                 "'metadata' is 3"},
        BadIndex{"negative_total", R"({"weight_map":{"w":"a"},"metadata":{"total_size":-1}})",
                 "total_size is -1"},
        BadIndex{"total_no_number", R"({"weight_map":{"w":"a"},"metadata":{"total_size":"x"}})",
                 "total_size is \"x\""}),
    [](const auto& info) { return info.param.name; });

TEST(IndexTest, WhatIsRightIsAccepted) {
  EXPECT_EQ(parse_shard_index(R"({"weight_map":{"w":"a"}})", "i").total_size, 0u);
  EXPECT_EQ(parse_shard_index(R"({"metadata":{"total_size":8.0},"weight_map":{"w":"a"}})", "i")
                .total_size,
            8u);
  const auto index =
      parse_shard_index(R"({"metadata":{"total_size":7},"weight_map":{"v":"b","w":"a"}})", "i");
  EXPECT_EQ(index.total_size, 7u);
  EXPECT_EQ(index.weight_map.at("v"), "b");
}

}  // namespace
}  // namespace subspace
