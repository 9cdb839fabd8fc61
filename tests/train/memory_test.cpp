#include "train/memory.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <stdexcept>

namespace subspace::train {
namespace {

TEST(Memory, RowsThatAreAdvisedMakeStepsOfAsMany) {
  for (std::int64_t rows = 1; rows <= 60; ++rows) {
    for (std::int64_t fit = 1; fit <= 70; ++fit) {
      const std::int64_t taken = largest_divisor(rows, fit);
      EXPECT_EQ(rows % taken, 0);
      EXPECT_LE(taken, fit);
      for (std::int64_t more = taken + 1; more <= std::min(rows, fit); ++more) {
        EXPECT_NE(rows % more, 0) << rows << " " << fit;
      }
    }
  }
  Settings settings;
  settings.batch_size = 48;
  settings.accumulate = 3;
  const std::string text = no_memory_for_rows(settings, at::kCPU, 20);
  EXPECT_NE(text.find("48 rows a pass; 20 fit"), std::string::npos) << text;
  EXPECT_NE(text.find("batch_size=16 --set accumulate=9"), std::string::npos) << text;
  EXPECT_NE(no_memory_for_rows(settings, at::kCPU, 0).find("not even one"), std::string::npos);
  EXPECT_NE(no_memory_for_rows(settings, at::kCPU, -1).find("48 rows"), std::string::npos);
}

TEST(Memory, TheProcessorsAllocatorIsKnownByItsWords) {
  try {
    const at::Tensor huge = at::empty({std::int64_t{1} << 55}, at::kFloat);
    FAIL() << "allocated";
  } catch (const std::exception& error) {
    EXPECT_TRUE(is_out_of_memory(error)) << error.what();
  }
  EXPECT_TRUE(is_out_of_memory(std::bad_alloc()));
  EXPECT_FALSE(is_out_of_memory(std::runtime_error("can't allocate memory")));
  try {
    at::mm(at::zeros({2, 3}), at::zeros({2, 3}));
    FAIL() << "multiplied";
  } catch (const std::exception& error) {
    EXPECT_FALSE(is_out_of_memory(error));
  }
}

}  // namespace
}  // namespace subspace::train
