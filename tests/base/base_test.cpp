#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <csignal>
#include <filesystem>
#include <fstream>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/json.h"
#include "base/progress.h"
#include "base/random.h"

namespace subspace {
namespace {
namespace fs = std::filesystem;

class Folder : public testing::Test {
 protected:
  void SetUp() override {
    path_ = fs::temp_directory_path() /
            fmt::format("subspace-{}-{}", ::getpid(),
                        testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::remove_all(path_);
    fs::create_directories(path_);
  }
  void TearDown() override { fs::remove_all(path_); }
  fs::path path_;
};

template <typename Action>
Error error_of(Action action) {
  try {
    action();
  } catch (const Error& error) {
    return error;
  }
  return Error(ErrorCode::Internal, "nothing was thrown");
}

TEST(ErrorTest, ExitStatus) {
  EXPECT_EQ(exit_status(ErrorCode::Usage), 2);
  EXPECT_EQ(exit_status(ErrorCode::Interrupted), 130);
  EXPECT_EQ(exit_status(ErrorCode::NotFinite), 1);
  EXPECT_STREQ(error_code_name(ErrorCode::InvalidShape), "invalid_shape");
}

struct BadJson {
  const char* name;
  std::string text;
  const char* complaint;
};

class Json_ : public testing::TestWithParam<BadJson> {};

TEST_P(Json_, IsRefused) {
  const Error error = error_of([&] { parse_json(GetParam().text, "here", {1000, 8}); });
  EXPECT_EQ(error.code(), ErrorCode::InvalidFormat);
  EXPECT_NE(std::string(error.what()).find(GetParam().complaint), std::string::npos)
      << error.what();
  EXPECT_EQ(std::string(error.what()).rfind("here", 0), 0u) << error.what();
}

INSTANTIATE_TEST_SUITE_P(
    Rules, Json_,
    testing::Values(BadJson{"syntax", "{\"a\":}", "byte"}, BadJson{"trailing", "{} x", "byte"},
                    BadJson{"empty", "", "not valid JSON"},
                    BadJson{"depth", "[[[[[[[[[]]]]]]]]]", "deeper than 8"},
                    BadJson{"duplicate", R"({"a":1,"a":2})", "'a' stands twice"},
                    BadJson{"size", std::string(1001, ' '), "more than the 1000"}),
    [](const auto& info) { return info.param.name; });

TEST(FieldsTest, SaysFileFieldFoundAndExpected) {
  const Json json =
      parse_json(R"({"heads": -3, "name": 5, "inner": {"x": 1.5}, "none": null})", "c");
  const Fields fields(json, "config.json");
  EXPECT_EQ(fields.object("inner").number("x"), 1.5);
  EXPECT_FALSE(fields.has("none"));
  EXPECT_EQ(fields.positive_int_or("none", 7), 7);
  const Error range = error_of([&] { fields.positive_int("heads"); });
  EXPECT_EQ(range.code(), ErrorCode::InvalidValue);
  for (const char* part : {"config.json", "heads", "-3"}) {
    EXPECT_NE(std::string(range.what()).find(part), std::string::npos) << range.what();
  }
  EXPECT_EQ(error_of([&] { fields.string("name"); }).code(), ErrorCode::InvalidValue);
  EXPECT_EQ(error_of([&] { fields.number("gone"); }).code(), ErrorCode::NotFound);
}

TEST_F(Folder, AtomicFileAppearsWholeOrNotAtAll) {
  const fs::path path = path_ / "file";
  {
    AtomicFile file(path);
    file.write("half");
    EXPECT_FALSE(fs::exists(path));
  }
  EXPECT_TRUE(fs::is_empty(path_));
  write_file_atomically(path, "whole");
  std::ifstream stream(path);
  std::string text;
  stream >> text;
  EXPECT_EQ(text, "whole");
}

TEST_F(Folder, AFullDiskLeavesNothingBehind) {
  // In a child, because the limit on file sizes cannot be taken back.
  const pid_t child = ::fork();
  if (child == 0) {
    std::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit = {4096, 4096};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    const Error error =
        error_of([&] { write_file_atomically(path_ / "big", std::string(100000, 'x')); });
    ::_exit(error.code() == ErrorCode::Io ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  EXPECT_TRUE(fs::is_empty(path_));
}

TEST_F(Folder, OneProcessHoldsAFolder) {
  const FolderLock lock(path_);
  const Error error = error_of([&] { FolderLock second(path_); });
  EXPECT_EQ(error.code(), ErrorCode::Busy);
  EXPECT_NE(std::string(error.what()).find(std::to_string(::getpid())), std::string::npos);
}

TEST_F(Folder, AFileInTheWayOfAFolderIsNamed) {
  write_file_atomically(path_ / "taken", "");
  EXPECT_EQ(error_of([&] { create_folder(path_ / "taken"); }).code(), ErrorCode::Io);
}

// Known answers of Random123's distribution (philox4x32, 10 rounds).
TEST(Random, PhiloxKnownAnswers) {
  EXPECT_EQ(philox(0, 0, 0),
            (std::array<std::uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  const std::uint64_t ones = ~std::uint64_t{0};
  EXPECT_EQ(philox(ones, ones, ones),
            (std::array<std::uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
}

TEST(Random, MomentsOfTheNormal) {
  Random random(1, 2);
  double sum = 0, square = 0, fourth = 0;
  constexpr int kCount = 200000;
  for (int i = 0; i < kCount; ++i) {
    const double x = random.normal();
    sum += x;
    square += x * x;
    fourth += x * x * x * x;
  }
  EXPECT_NEAR(sum / kCount, 0, 0.01);
  EXPECT_NEAR(square / kCount, 1, 0.015);
  EXPECT_NEAR(fourth / kCount, 3, 0.1);
}

TEST(ProgressTest, Units) {
  EXPECT_EQ(format_seconds(0.0123), "12 ms");
  EXPECT_EQ(format_seconds(200), "3 min 20 s");
  EXPECT_EQ(format_seconds(3720), "1 h 02 min");
  EXPECT_EQ(format_bytes(11'400'000'000), "11 GB");
  EXPECT_EQ(format_bytes(1'400'000'000), "1.4 GB");
  EXPECT_EQ(format_bytes(12), "12 B");
}

}  // namespace
}  // namespace subspace
