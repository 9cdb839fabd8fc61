#include "checkpoint/checkpoint.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
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

TEST_F(Model, ScalesBesideOtherTypesAreIgnored) {
  SafetensorsWriter writer(path_ / "model.safetensors",
                           {{"w.weight", DType::F32, {1}}, {"w.scale", DType::F32, {7}}});
  const float values[8] = {3, 9, 9, 9, 9, 9, 9, 9};
  writer.append("w.weight", values, 4);
  writer.append("w.scale", values + 1, 28);
  writer.finish();
  double out = 0;
  Checkpoint(path_).decode("w.weight", &out, 1);
  EXPECT_EQ(out, 3);
}

/// Writes an e4m3 matrix of ones with one scale tensor, and decodes it.
class Fp8 : public Model {
 protected:
  std::vector<double> decoded(std::int64_t rows, std::int64_t cols, const char* scale_name,
                              DType scale_type, std::vector<std::int64_t> scale_shape,
                              const std::string& scale_bytes, bool allow_nonfinite = false) {
    const std::vector<unsigned char> weight(static_cast<std::size_t>(rows * cols), 0x38);
    SafetensorsWriter writer(path_ / "model.safetensors",
                             {{"w.weight", DType::F8_E4M3, {rows, cols}},
                              {scale_name, scale_type, std::move(scale_shape)}});
    writer.append("w.weight", weight.data(), weight.size());
    writer.append(scale_name, scale_bytes.data(), scale_bytes.size());
    writer.finish();
    std::vector<double> out(weight.size());
    Checkpoint(path_).decode("w.weight", out.data(), 2, allow_nonfinite);
    return out;
  }
  template <typename T>
  static std::string bytes(std::vector<T> values) {
    return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
  }
};

TEST_F(Fp8, OneScaleForTheTensor) {
  for (const char* name : {"w.weight_scale_inv", "w.weight_scale", "w.scale"}) {
    EXPECT_EQ(decoded(130, 200, name, DType::F32, {}, bytes<float>({2.5})),
              std::vector<double>(130 * 200, 2.5));
    EXPECT_EQ(decoded(130, 200, name, DType::F32, {1}, bytes<float>({2.5})),
              std::vector<double>(130 * 200, 2.5));
  }
}

TEST_F(Fp8, Bf16AndF16Scales) {
  const auto bf16 = decoded(1, 129, "w.weight_scale_inv", DType::BF16, {1, 2},
                            bytes<std::uint16_t>({0x3f80, 0x4000}));
  EXPECT_EQ(bf16[127], 1);
  EXPECT_EQ(bf16[128], 2);
  EXPECT_EQ(decoded(1, 1, "w.weight_scale_inv", DType::F16, {1, 1}, bytes<std::uint16_t>({0x3800})),
            std::vector<double>{0.5});
}

TEST_F(Fp8, BlockSizeOfTheConfiguration) {
  for (const char* config :
       {R"({"quantization_config":{"weight_block_size":[2,3]}})",
        R"({"text_config":{"quantization_config":{"weight_block_size":[2,3]}}})"}) {
    write("config.json", config);
    const auto out =
        decoded(3, 4, "w.weight_scale_inv", DType::F32, {2, 2}, bytes<float>({1, 2, 3, 4}));
    EXPECT_EQ(out, (std::vector<double>{1, 1, 1, 2, 1, 1, 1, 2, 3, 3, 3, 4}));
  }
  for (const char* size : {"128", "[128]", "[0,128]", "[-1,128]", "[1.5,2]", "[65537,1]", "\"x\"",
                           "[18446744073709551615,1]"}) {
    write("config.json",
          fmt::format(R"({{"quantization_config":{{"weight_block_size":{}}}}})", size));
    expect_says(expect_error(ErrorCode::InvalidValue, [&] { Checkpoint c(path_); }),
                {"config.json", "weight_block_size", "[128, 128]"});
  }
}

TEST_F(Fp8, BadScalesAreNamed) {
  expect_says(
      expect_error(
          ErrorCode::InvalidValue,
          [&] {
            decoded(130, 1, "w.weight_scale_inv", DType::F32, {2, 1}, bytes<float>({1, -2}));
          }),
      {"w.weight_scale_inv", "-2", "[1, 0]"});
  expect_says(expect_error(ErrorCode::NotFinite,
                           [&] {
                             decoded(130, 1, "w.scale", DType::F8_E8M0, {2, 1}, "\x7f\xff");
                           }),
              {"w.scale", "nan", "[1, 0]"});
  const auto out = decoded(130, 1, "w.scale", DType::F8_E8M0, {2, 1}, "\x7f\xff", true);
  EXPECT_EQ(out[127], 1);
  EXPECT_TRUE(std::isnan(out[128]));
  expect_says(
      expect_error(ErrorCode::Unsupported,
                   [&] {
                     decoded(1, 1, "w.weight_scale_inv", DType::I32, {1, 1}, bytes<int>({1}));
                   }),
      {"w.weight_scale_inv", "I32"});
}

TEST_F(Fp8, TheFirstBadValueIsNamedWhateverTheThreads) {
  std::vector<unsigned char> weight(3000 * 1000, 0x38);
  weight[2'345'678] = 0x7f;
  weight[2'999'999] = 0xff;
  SafetensorsWriter writer(path_ / "model.safetensors", {{"w", DType::F8_E4M3, {3000, 1000}},
                                                         {"w_scale_inv", DType::F32, {24, 8}}});
  writer.append("w", weight.data(), weight.size());
  const std::vector<float> scales(24 * 8, 1);
  writer.append("w_scale_inv", scales.data(), scales.size() * 4);
  writer.finish();
  std::vector<double> out(weight.size());
  for (const int threads : {1, 2, 7}) {
    expect_says(expect_error(ErrorCode::NotFinite,
                             [&] { Checkpoint(path_).decode("w", out.data(), threads); }),
                {"'w'", "nan", "[2345, 678]"});
  }
}

TEST_F(Model, EveryThreadCountGivesTheSameValues) {
  std::vector<float> values(777 * 1001);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i) * 0.25f - 1000;
  tensor<float>("model.safetensors", "w", DType::F32, {777, 1001}, values);
  for (const int threads : {1, 2, 5}) {
    std::vector<double> out(values.size());
    Checkpoint(path_).decode("w", out.data(), threads);
    EXPECT_TRUE(std::equal(out.begin(), out.end(), values.begin())) << threads;
  }
}

TEST_F(Model, TheSingleFileComesFirstAndMayHaveAnotherName) {
  tensor<float>("odd.safetensors", "w", DType::F32, {1}, {1});
  tensor<float>("adapter_model.safetensors", "lora", DType::F32, {1}, {1});
  EXPECT_TRUE(Checkpoint(path_).has("w"));
  write("model.safetensors.index.json", R"({"weight_map":{"indexed":"gone.safetensors"}})");
  EXPECT_TRUE(Checkpoint(path_).has("indexed"));
  tensor<float>("model.safetensors", "single", DType::F32, {1}, {1});
  EXPECT_EQ(Checkpoint(path_).names(), std::vector<std::string>{"single"});
}

TEST_F(Model, AnAbsentShardCountsByTheIndexsTotal) {
  write("model.safetensors.index.json",
        R"({"metadata":{"total_size":12345},"weight_map":{"w":"gone.safetensors"}})");
  EXPECT_EQ(Checkpoint(path_).total_bytes(), 12345u);
  EXPECT_EQ(Checkpoint(path_).shards(), std::vector<std::string>{"gone.safetensors"});
}

std::int64_t resident_bytes() {
  std::ifstream statm("/proc/self/statm");
  std::int64_t size = 0;
  std::int64_t resident = 0;
  statm >> size >> resident;
  return resident * ::sysconf(_SC_PAGESIZE);
}

/// 24 tensors of 8 MiB stream through a process that may grow by two of them.
TEST_F(Model, MemoryStaysBoundedWhileAFileStreamsThrough) {
  constexpr std::int64_t kValues = 1 << 20;
  constexpr int kTensors = 24;
  std::vector<SafetensorsWriter::Entry> entries;
  for (int i = 0; i < kTensors; ++i) {
    entries.push_back({fmt::format("t{}", i), DType::F64, {kValues}});
  }
  std::vector<double> buffer(kValues, 1.5);
  SafetensorsWriter writer(path_ / "model.safetensors", entries);
  for (const auto& entry : entries) writer.append(entry.name, buffer.data(), kValues * 8);
  writer.finish();

  const Checkpoint checkpoint(path_);
  const std::int64_t before = resident_bytes();
  for (const auto& entry : entries) {
    checkpoint.decode(entry.name, buffer.data(), 2);
    EXPECT_LT(resident_bytes() - before, 16 << 20) << "decode of " << entry.name;
  }
  std::int64_t peak = 0;
  unsigned sum = 0;
  for (const auto& entry : entries) {
    for (const std::byte value : checkpoint.bytes(entry.name)) sum += static_cast<unsigned>(value);
    peak = std::max(peak, resident_bytes() - before);
    checkpoint.drop(entry.name);
    EXPECT_LT(resident_bytes() - before, 16 << 20) << "drop of " << entry.name;
  }
  EXPECT_NE(sum, 0u);
  EXPECT_GT(peak, 7 << 20);  // the mapping was indeed resident before it was dropped
  EXPECT_EQ(checkpoint.bytes_read(), std::uint64_t{kValues} * 8 * kTensors);
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
