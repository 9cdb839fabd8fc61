#include "lora/selftest.h"

#include <gtest/gtest.h>

#include <limits>

namespace subspace {
namespace {

class Properties : public ::testing::TestWithParam<Property> {};

TEST_P(Properties, HoldOnRandomShapes) {
  const PropertyResult result = check(GetParam(), GetParam().id == "P17" ? 1 : 3, 100);
  EXPECT_TRUE(result.passed) << GetParam().title << ": " << result.error << " > "
                             << GetParam().tolerance;
}

INSTANTIATE_TEST_SUITE_P(Selftest, Properties, ::testing::ValuesIn(properties()),
                         [](const auto& info) { return info.param.id; });

TEST(Selftest, ANumberThatIsNoneFails) {
  Property property = {"P0", "fails", 1, [](std::uint64_t seed) {
                         return seed == 2 ? std::numeric_limits<double>::quiet_NaN() : 0.5;
                       }};
  EXPECT_TRUE(check(property, 1).passed);
  EXPECT_FALSE(check(property, 2).passed);
  EXPECT_FALSE(check(property, 3).passed);
}

}  // namespace
}  // namespace subspace
