#include "checkpoint/checkpoint.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <fstream>

#include "base/error.h"

namespace subspace {
namespace {
namespace fs = std::filesystem;

class Model : public testing::Test {
 protected:
  void SetUp() override {
    path_ = fs::temp_directory_path() /
            fmt::format("subspace-{}-{}", ::getpid(),
                        testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::remove_all(path_);
    fs::create_directories(path_);
    write("config.json", "{}");
  }
  void TearDown() override { fs::remove_all(path_); }

  void write(const std::string& name, const std::string& text) {
    std::ofstream(path_ / name, std::ios::binary) << text;
  }
  template <typename T>
  void tensor(const std::string& file, const std::string& name, DType dtype,
              std::vector<std::int64_t> shape, const std::vector<T>& values) {
    SafetensorsWriter writer(path_ / file, {{name, dtype, shape}});
    writer.append(name, values.data(), values.size() * sizeof(T));
    writer.finish();
  }
  template <typename Action>
  std::string expect_error(ErrorCode code, Action action) {
    try {
      action();
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), code) << error.what();
      return error.what();
    }
    ADD_FAILURE() << "nothing was thrown";
    return {};
  }
  void expect_says(const std::string& text, std::initializer_list<const char*> parts) {
    for (const char* part : parts) EXPECT_NE(text.find(part), std::string::npos) << text;
  }
  fs::path path_;
};

TEST_F(Model, SingleFileIsDecodedAndCounted) {
  tensor<float>("model.safetensors", "w", DType::F32, {2, 3}, {1, 2, 3, 4, 5, 6});
  const Checkpoint checkpoint(path_);
  EXPECT_EQ(checkpoint.names(), std::vector<std::string>{"w"});
  EXPECT_EQ(checkpoint.bytes_read(), 0u);
  std::vector<double> out(6);
  checkpoint.decode("w", out.data(), 2);
  EXPECT_EQ(out, (std::vector<double>{1, 2, 3, 4, 5, 6}));
  checkpoint.decode("w", out.data(), 2);
  EXPECT_EQ(checkpoint.bytes_read(), 24u);
}

TEST_F(Model, FoldersThatAreNoModelsAreNamed) {
  expect_says(expect_error(ErrorCode::NotFound, [&] { Checkpoint(path_ / "none"); }), {"none"});
  expect_says(expect_error(ErrorCode::NotFound, [&] { Checkpoint c(path_); }),
              {"model.safetensors", "config.json"});
  fs::remove(path_ / "config.json");
  expect_says(expect_error(ErrorCode::NotFound, [&] { Checkpoint c(path_); }), {"no config.json"});
  write("file", "x");
  expect_error(ErrorCode::NotFound, [&] { Checkpoint c(path_ / "file"); });
}

TEST_F(Model, IndexAndShardsMustAgree) {
  tensor<float>("a.safetensors", "w", DType::F32, {1}, {1});
  write("model.safetensors.index.json",
        R"({"weight_map":{"w":"a.safetensors","x":"gone.safetensors","y":"a.safetensors"}})");
  const Checkpoint checkpoint(path_);
  EXPECT_EQ(checkpoint.info("w").elements(), 1);
  expect_says(expect_error(ErrorCode::NotFound, [&] { checkpoint.info("x"); }),
              {"gone.safetensors"});
  expect_says(expect_error(ErrorCode::InvalidFormat, [&] { checkpoint.info("y"); }),
              {"'y'", "a.safetensors"});
  expect_says(expect_error(ErrorCode::NotFound, [&] { checkpoint.info("z"); }), {"'z'"});
}

TEST_F(Model, AnIndexCannotLeaveItsFolder) {
  for (const char* shard : {"../a.safetensors", "/etc/passwd", "..", "sub/a.safetensors", ""}) {
    write("model.safetensors.index.json", fmt::format(R"({{"weight_map":{{"w":"{}"}}}})", shard));
    expect_error(ErrorCode::InvalidFormat, [&] { Checkpoint c(path_); });
  }
  for (const char* index : {"[]", "{}", R"({"weight_map":[]})", R"({"weight_map":{}})",
                            R"({"weight_map":{"w":3}})", "{"}) {
    write("model.safetensors.index.json", index);
    EXPECT_THROW(Checkpoint c(path_), Error) << index;
  }
}

/// 130 x 200 of e4m3 ones (0x38) with scales that differ in every block: partial blocks both ways.
TEST_F(Model, Fp8BlockScalesReachPartialBlocksAndOtherShards) {
  tensor<unsigned char>("a.safetensors", "w.weight", DType::F8_E4M3, {130, 200},
                        std::vector<unsigned char>(130 * 200, 0x38));
  tensor<float>("b.safetensors", "w.weight_scale_inv", DType::F32, {2, 2}, {1, 2, 3, 5});
  write("model.safetensors.index.json",
        R"({"weight_map":{"w.weight":"a.safetensors","w.weight_scale_inv":"b.safetensors"}})");
  const Checkpoint checkpoint(path_);
  std::vector<double> out(130 * 200);
  checkpoint.decode("w.weight", out.data(), 2);
  EXPECT_EQ(out[0], 1);
  EXPECT_EQ(out[127 * 200 + 128], 2);
  EXPECT_EQ(out[128 * 200], 3);
  EXPECT_EQ(out[129 * 200 + 199], 5);
  EXPECT_EQ(checkpoint.bytes_read(), 130u * 200 + 16);
}

TEST_F(Model, PowerOfTwoScalesAndTheMakersNames) {
  const std::vector<unsigned char> weight(2 * 129, 0x40);  // 2.0
  SafetensorsWriter writer(path_ / "model.safetensors", {{"w.weight", DType::F8_E4M3, {2, 129}},
                                                         {"w.scale", DType::F8_E8M0, {1, 2}}});
  writer.append("w.weight", weight.data(), weight.size());
  const unsigned char scales[] = {126, 129};  // 1/2, 4
  writer.append("w.scale", scales, 2);
  writer.finish();
  std::vector<double> out(2 * 129);
  Checkpoint(path_).decode("w.weight", out.data(), 1);
  EXPECT_EQ(out[0], 1);
  EXPECT_EQ(out[128], 8);
}

TEST_F(Model, Fp8FaultsAreNamed) {
  tensor<unsigned char>("model.safetensors", "w.weight", DType::F8_E4M3, {1, 1}, {0x38});
  double out = 0;
  expect_says(
      expect_error(ErrorCode::NotFound, [&] { Checkpoint(path_).decode("w.weight", &out, 1); }),
      {"w.weight_scale_inv"});
  const std::vector<unsigned char> weight(130, 0x38);
  SafetensorsWriter writer(
      path_ / "model.safetensors",
      {{"w.weight", DType::F8_E4M3, {130, 1}}, {"w.weight_scale_inv", DType::F32, {1, 1}}});
  writer.append("w.weight", weight.data(), weight.size());
  const float scale = 1;
  writer.append("w.weight_scale_inv", &scale, 4);
  writer.finish();
  std::vector<double> wide(130);
  expect_says(expect_error(ErrorCode::InvalidShape,
                           [&] { Checkpoint(path_).decode("w.weight", wide.data(), 1); }),
              {"[1, 1]", "[2, 1]", "128x128"});
}

TEST_F(Model, NotFiniteWeightsAreNamedWithTheirPlace) {
  tensor<float>("model.safetensors", "w", DType::F32, {2, 3}, {1, 2, 3, 4, NAN, 6});
  const Checkpoint checkpoint(path_);
  std::vector<double> out(6);
  expect_says(expect_error(ErrorCode::NotFinite, [&] { checkpoint.decode("w", out.data(), 1); }),
              {"'w'", "nan", "[1, 1]"});
  checkpoint.decode("w", out.data(), 1, /*allow_nonfinite=*/true);
  EXPECT_TRUE(std::isnan(out[4]));
}

TEST_F(Model, PackedInt4IsSaidToBeWhatItIs) {
  tensor<std::int32_t>("model.safetensors", "w.weight_packed", DType::I32, {1}, {1});
  double out = 0;
  expect_says(
      expect_error(ErrorCode::Unsupported, [&] { Checkpoint(path_).decode("w.weight", &out, 1); }),
      {"INT4", "w.weight_packed"});
  expect_error(ErrorCode::Unsupported,
               [&] { Checkpoint(path_).decode("w.weight_packed", &out, 1); });
}

TEST_F(Model, AFileThatShrinksIsAnErrorAndNoCrash) {
  tensor<double>("model.safetensors", "w", DType::F64, {1000, 1000},
                 std::vector<double>(1000000, 1.0));
  const Checkpoint checkpoint(path_);
  checkpoint.info("w");
  fs::resize_file(path_ / "model.safetensors", 4000);
  std::vector<double> out(1000000);
  expect_error(ErrorCode::Io, [&] { checkpoint.decode("w", out.data(), 2); });
}

std::string with_length(const std::string& header, const std::string& data = "") {
  const std::uint64_t length = header.size();
  std::string file(8, '\0');
  std::memcpy(file.data(), &length, 8);
  return file + header + data;
}

struct BadHeader {
  const char* name;
  std::string file;
};

class Header : public testing::TestWithParam<BadHeader> {};

TEST_P(Header, IsRefused) {
  const std::string& file = GetParam().file;
  const auto bytes = std::as_bytes(std::span(file.data(), file.size()));
  try {
    parse_safetensors_header(bytes, file.size(), "file");
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::InvalidFormat) << error.what();
    EXPECT_EQ(std::string(error.what()).rfind("file", 0), 0u) << error.what();
  }
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

INSTANTIATE_TEST_SUITE_P(
    Rules, Header,
    testing::Values(
        BadHeader{"empty_file", ""}, BadHeader{"seven_bytes", "1234567"},
        BadHeader{"length_2_60", std::string("\0\0\0\0\0\0\0\x10", 8) + "{}"},
        BadHeader{"length_beyond_file", std::string("\x40\0\0\0\0\0\0\0", 8) + "{}"},
        BadHeader{"length_zero", std::string(8, '\0')}, BadHeader{"no_object", with_length("[]")},
        BadHeader{"no_json", with_length("{\"a\"")},
        BadHeader{"too_deep",
                  with_length("{\"a\":" + std::string(500, '[') + std::string(500, ']') + "}")},
        BadHeader{"duplicate", with_length("{\"a\":" + entry("U8", "[0]", "[0,0]") +
                                           ",\"a\":" + entry("U8", "[0]", "[0,0]") + "}")},
        BadHeader{"unknown_dtype", one("F7", "[1]", "[0,4]", 4)},
        BadHeader{"entry_no_object", with_length("{\"a\":3}")},
        BadHeader{"no_shape", with_length(R"({"a":{"dtype":"U8","data_offsets":[0,0]}})")},
        BadHeader{"negative_dimension", one("U8", "[-1]", "[0,1]", 1)},
        BadHeader{"dimension_no_number", one("U8", "[1.5]", "[0,1]", 1)},
        BadHeader{"product_overflow", one("U8", "[4294967296,4294967296]", "[0,1]", 1)},
        BadHeader{"offsets_backwards", one("U8", "[1]", "[1,0]", 1)},
        BadHeader{"offsets_beyond_file", one("U8", "[8]", "[0,8]", 4)},
        BadHeader{"offsets_huge",
                  one("U8", "[1]", "[18446744073709551615,18446744073709551616]", 1)},
        BadHeader{"size_is_not_shape", one("F32", "[2]", "[0,4]", 4)},
        BadHeader{"overlap", two("[0,4]", "[2,6]", 6)},
        BadHeader{"hole", two("[0,4]", "[6,10]", 10)},
        BadHeader{"trailing_bytes", one("U8", "[4]", "[0,4]", 9)},
        BadHeader{"truncated_data", two("[0,4]", "[4,8]", 7)},
        BadHeader{"metadata_no_strings", with_length(R"({"__metadata__":{"a":1}})")}),
    [](const auto& info) { return info.param.name; });

TEST(HeaderTest, WhatIsRightIsAccepted) {
  const std::string file = with_length(
      R"({"__metadata__":{"format":"pt"},"b":)" + entry("F32", "[]", "[0,4]") + R"(,"a":)" +
          entry("BF16", "[2,0]", "[4,4]") + R"(,"c":)" + entry("U8", "[3]", "[4,7]") + "}   ",
      "1234567");
  const auto header = parse_safetensors_header(std::as_bytes(std::span(file.data(), file.size())),
                                               file.size(), "f");
  EXPECT_EQ(header.tensors.size(), 3u);
  EXPECT_EQ(header.tensors.at("b").elements(), 1);
  EXPECT_EQ(header.tensors.at("a").elements(), 0);
  EXPECT_EQ(header.metadata.at("format"), "pt");
}

class Cache : public Model {
 protected:
  void TearDown() override {
    ::unsetenv("HF_HUB_CACHE");
    ::unsetenv("HF_HOME");
    Model::TearDown();
  }
};

TEST_F(Cache, NamesAreLookedUpAsTheHubDoes) {
  const fs::path repository = path_ / "hub" / "models--org--name";
  fs::create_directories(repository / "snapshots" / "abcdef12");
  fs::create_directories(repository / "refs");
  std::ofstream(repository / "refs" / "main") << "abcdef12";
  std::ofstream(repository / "refs" / "v1") << "abcdef12";
  ::setenv("HF_HOME", path_.c_str(), 1);
  const fs::path expected = repository / "snapshots" / "abcdef12";
  EXPECT_EQ(resolve_model("org/name"), expected);
  EXPECT_EQ(resolve_model("org/name@v1"), expected);
  EXPECT_EQ(resolve_model("org/name@abcdef"), expected);
  EXPECT_EQ(resolve_model(path_.string()), path_);
  expect_says(expect_error(ErrorCode::NotFound, [&] { resolve_model("org/name@other"); }),
              {"other"});
  expect_says(expect_error(ErrorCode::NotFound, [&] { resolve_model("org/none"); }),
              {"models--org--none", "HF_HOME"});
  expect_error(ErrorCode::NotFound, [&] { resolve_model("../../etc/passwd"); });
  expect_error(ErrorCode::Unsupported, [&] { resolve_model("https://example.org/model"); });
  ::setenv("HF_HUB_CACHE", (path_ / "hub").c_str(), 1);
  ::unsetenv("HF_HOME");
  EXPECT_EQ(resolve_model("org/name"), expected);
}

}  // namespace
}  // namespace subspace
