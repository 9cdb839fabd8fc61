#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
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

TEST_F(Folder, AKilledHolderLetsGo) {
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    const FolderLock lock(path_);
    (void)!::write(ready[1], "x", 1);
    for (;;) ::pause();
  }
  char byte = 0;
  ASSERT_EQ(::read(ready[0], &byte, 1), 1);
  const Error error = error_of([&] { FolderLock second(path_); });
  EXPECT_EQ(error.code(), ErrorCode::Busy);
  EXPECT_NE(std::string(error.what()).find(std::to_string(child)), std::string::npos);
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  EXPECT_NO_THROW(FolderLock{path_});
  ::close(ready[0]);
  ::close(ready[1]);
}

TEST_F(Folder, AnUnwritableFolderIsNamed) {
  for (const fs::path& folder : {path_ / "none", fs::path("/proc")}) {
    const Error file = error_of([&] { AtomicFile made(folder / "x"); });
    EXPECT_EQ(file.code(), ErrorCode::Io);
    EXPECT_NE(std::string(file.what()).find(folder.string()), std::string::npos) << file.what();
    EXPECT_EQ(error_of([&] { FolderLock made(folder); }).code(), ErrorCode::Io);
  }
  EXPECT_EQ(error_of([&] { create_folder("/proc/none"); }).code(), ErrorCode::Io);
}

TEST_F(Folder, AnObjectOfVeryManyKeysParsesInLinearTime) {
  std::string text = "{";
  for (int i = 0; i < 200000; ++i) text += fmt::format("{}\"model.layers.{}\":1", i ? "," : "", i);
  text += "}";
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(parse_sorted_json(text, "index").size(), 200000u);
  // Looking every key up among all others would take minutes.
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
}

TEST_F(Folder, FilesThatAreNoJsonAreNamed) {
  EXPECT_EQ(error_of([&] { read_json_file(path_ / "none"); }).code(), ErrorCode::NotFound);
  write_file_atomically(path_ / "bad", "{");
  EXPECT_EQ(error_of([&] { read_json_file(path_ / "bad"); }).code(), ErrorCode::InvalidFormat);
  write_file_atomically(path_ / "large", std::string(101, ' '));
  EXPECT_EQ(error_of([&] {
              read_json_file(path_ / "large", {100, 8});
            }).code(),
            ErrorCode::InvalidFormat);
  fs::create_directory(path_ / "folder");
  EXPECT_EQ(error_of([&] { read_json_file(path_ / "folder"); }).code(), ErrorCode::Io);
}

TEST_F(Folder, AFileInTheWayOfAFolderIsNamed) {
  write_file_atomically(path_ / "taken", "");
  EXPECT_EQ(error_of([&] { create_folder(path_ / "taken"); }).code(), ErrorCode::Io);
}

// Known answers of Random123's distribution (philox4x32, 10 rounds).
TEST_F(Folder, ATreeIsRemovedAndWhatItsLinksPointToStays) {
  fs::create_directories(path_ / "tree" / "inner");
  fs::create_directories(path_ / "outside");
  write_file_atomically(path_ / "outside" / "kept", "x");
  write_file_atomically(path_ / "tree" / "inner" / "file", "x");
  fs::create_directory_symlink(path_ / "outside", path_ / "tree" / "link");
  remove_tree(path_ / "tree");
  EXPECT_FALSE(fs::exists(path_ / "tree"));
  EXPECT_TRUE(fs::exists(path_ / "outside" / "kept"));
  remove_tree(path_ / "tree");
  EXPECT_THROW(remove_tree("/proc/self/fd"), Error);
}

TEST(Random, PhiloxKnownAnswers) {
  EXPECT_EQ(philox(0, 0, 0),
            (std::array<std::uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  const std::uint64_t ones = ~std::uint64_t{0};
  EXPECT_EQ(philox(ones, ones, ones),
            (std::array<std::uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
}

TEST(Random, PhiloxKnownAnswerOfPi) {
  EXPECT_EQ(philox(0x299f31d0a4093822, 0x85a308d3243f6a88, 0x0370734413198a2e),
            (std::array<std::uint32_t, 4>{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Random, MomentsOfTheUniform) {
  Random random(3);
  double sum = 0, square = 0;
  constexpr int kCount = 200000;
  for (int i = 0; i < kCount; ++i) {
    const double x = random.uniform();
    ASSERT_TRUE(x > 0 && x < 1);
    sum += x - 0.5;
    square += (x - 0.5) * (x - 0.5);
  }
  // Five standard errors: sqrt(1/12/n) and sqrt(1/180/n).
  EXPECT_NEAR(sum / kCount, 0, 5 * std::sqrt(1.0 / 12 / kCount));
  EXPECT_NEAR(square / kCount, 1.0 / 12, 5 * std::sqrt(1.0 / 180 / kCount));
}

TEST(Random, StreamsAndSeedsDiffer) {
  EXPECT_NE(Random(1, 0).word(), Random(1, 1).word());
  EXPECT_NE(Random(1, 0).word(), Random(2, 0).word());
  EXPECT_EQ(Random(1, 7).word(), Random(1, 7).word());
}

TEST(Random, FromAnyBlockOnIsTheSameSequence) {
  Random whole(5, 9), normals(5, 9, 3), uniforms(5, 9, 4);
  for (int i = 0; i < 6; ++i) whole.normal();
  EXPECT_EQ(normals.normal(), whole.normal());
  EXPECT_EQ(normals.normal(), whole.normal());
  EXPECT_EQ(uniforms.uniform(), whole.uniform());
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
  EXPECT_EQ(format_seconds(0.9996), "1.0 s");
  EXPECT_EQ(format_seconds(12.34), "12.3 s");
  EXPECT_EQ(format_seconds(99.96), "1 min 40 s");
  EXPECT_EQ(format_seconds(200), "3 min 20 s");
  EXPECT_EQ(format_seconds(3720), "1 h 02 min");
  EXPECT_EQ(format_bytes(11'400'000'000), "11 GB");
  EXPECT_EQ(format_bytes(1'400'000'000), "1.4 GB");
  EXPECT_EQ(format_bytes(12), "12 B");
  EXPECT_EQ(format_bytes(999'600), "1.0 MB");
}

TEST(ProgressTest, LinesSayWhatIsDoneAndLeft) {
  testing::internal::CaptureStderr();
  {
    Progress progress("layer", 3, 1);
    progress.step("twelve heads");
    progress.step("");
  }
  const std::string text = testing::internal::GetCapturedStderr();
  EXPECT_NE(text.find("layer 2/3  twelve heads"), std::string::npos) << text;
  EXPECT_NE(text.find("left"), std::string::npos) << text;
  EXPECT_NE(text.find("layer 3/3"), std::string::npos) << text;
  EXPECT_NE(text.find("in all"), std::string::npos) << text;
  set_quiet(true);
  testing::internal::CaptureStderr();
  message("hello");
  Progress("layer", 1).step("");
  set_quiet(false);
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
}

}  // namespace
}  // namespace subspace
