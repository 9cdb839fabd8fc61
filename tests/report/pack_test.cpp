#include "report/pack.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/random.h"
#include "report/tiny_run.h"

namespace subspace {
namespace {

std::vector<std::uint32_t> join_planes(const Bytes& bytes) {
  std::vector<std::uint32_t> words(bytes.size() / 4, 0);
  for (std::size_t plane = 0; plane < 4; ++plane) {
    for (std::size_t i = 0; i < words.size(); ++i) {
      words[i] |= static_cast<std::uint32_t>(bytes[plane * words.size() + i]) << (8 * plane);
    }
  }
  return words;
}

std::vector<double> undraw(const Bytes& bytes, std::size_t points) {
  std::vector<double> out{1.0};
  std::size_t at = 0;
  double level = 0;
  while (out.size() < points) {
    double place = 1;
    std::uint8_t byte = 0x80;
    for (; byte & 0x80; place *= 128) {
      byte = bytes.at(at++);
      level += place * (byte & 0x7f);
    }
    out.push_back(std::exp2(-level / kStepsPerOctave));
  }
  EXPECT_EQ(at, bytes.size());
  return out;
}

TEST(Pack, FloatPlanesHoldEveryBit) {
  Random random(3);
  std::vector<float> values{0.0f, -0.0f, std::numeric_limits<float>::quiet_NaN(),
                            std::numeric_limits<float>::infinity()};
  for (int i = 0; i < 1000; ++i) values.push_back(static_cast<float>(random.normal()));
  Bytes bytes;
  append_float_planes(bytes, values);
  const auto words = join_planes(bytes);
  ASSERT_EQ(words.size(), values.size());
  for (std::size_t i = 0; i < values.size(); ++i) {
    EXPECT_EQ(words[i], std::bit_cast<std::uint32_t>(values[i])) << i;
  }
}

TEST(Pack, SpectrumPlanesHoldEveryBitAcrossLayers) {
  // Two spectra one after another: the second starts above the end of the first.
  const std::vector<float> values{3.5f, 2.25f, 2.25f, 1e-30f, 0.0f, 7.0f, 6.5f};
  Bytes bytes;
  append_spectrum_planes(bytes, values);
  const auto words = join_planes(bytes);
  std::uint32_t bits = words[0];
  EXPECT_EQ(std::bit_cast<float>(bits), values[0]);
  for (std::size_t i = 1; i < values.size(); ++i) {
    bits -= words[i];
    EXPECT_EQ(std::bit_cast<float>(bits), values[i]) << i;
  }
}

TEST(Pack, PositionsKeepBothEndsAndNeverRepeat) {
  for (const std::int64_t n : {1, 2, 63, 64, 65, 128, 512, 7168}) {
    const auto positions = sample_positions(n);
    ASSERT_EQ(positions.size(), static_cast<std::size_t>(std::min<std::int64_t>(n, 64)));
    EXPECT_EQ(positions.front(), 0);
    EXPECT_EQ(positions.back(), n - 1);
    for (std::size_t i = 1; i < positions.size(); ++i) EXPECT_LT(positions[i - 1], positions[i]);
  }
}

TEST(Pack, DrawnSpectrumIsWithinHalfAStep) {
  Random random(4);
  std::vector<double> spectrum;
  double value = 3;
  for (int i = 0; i < 100; ++i) spectrum.push_back(value *= 0.5 + 0.5 * random.uniform());
  const auto positions = sample_positions(100);
  Bytes bytes;
  append_drawn_spectrum(bytes, spectrum, positions);
  const auto drawn = undraw(bytes, positions.size());
  const double half_step = std::exp2(0.5 / kStepsPerOctave) * (1 + 1e-12);
  for (std::size_t p = 0; p < positions.size(); ++p) {
    const double truth =
        std::max(spectrum[static_cast<std::size_t>(positions[p])] / spectrum[0], std::exp2(-60));
    EXPECT_LE(std::max(drawn[p] / truth, truth / drawn[p]), half_step) << p;
  }
}

TEST(Pack, ZerosAreDrawnAtTheFloor) {
  const auto positions = sample_positions(3);
  for (const std::vector<double>& spectrum :
       {std::vector<double>{1, 0, 0}, std::vector<double>{0, 0, 0}}) {
    Bytes bytes;
    append_drawn_spectrum(bytes, spectrum, positions);
    EXPECT_EQ(undraw(bytes, 3)[2], std::exp2(-60));
  }
}

TEST(Pack, Base64AsInRfc4648) {
  const auto encode = [](std::string_view text) { return base64(Bytes(text.begin(), text.end())); };
  EXPECT_EQ(encode(""), "");
  EXPECT_EQ(encode("f"), "Zg==");
  EXPECT_EQ(encode("fo"), "Zm8=");
  EXPECT_EQ(encode("foo"), "Zm9v");
  EXPECT_EQ(encode("foobar"), "Zm9vYmFy");
  EXPECT_EQ(base64(Bytes{0xfb, 0xff, 0xfe}), "+//+");
}

TEST(Pack, GzipComesBackAndDependsOnTheBytesAlone) {
  Random random(5);
  Bytes bytes;
  for (int i = 0; i < 10000; ++i) bytes.push_back(static_cast<std::uint8_t>(random.word() & 15));
  EXPECT_EQ(testing::unpack_chunk(base64(gzip(bytes))), bytes);
  EXPECT_EQ(gzip(bytes), gzip(bytes));
  EXPECT_EQ(testing::unpack_chunk(base64(gzip({}))), Bytes{});
}

TEST(Pack, EscapesWhatCouldEndAnElement) {
  EXPECT_EQ(escape_html("<a href='x'>\"&"), "&lt;a href=&#39;x&#39;&gt;&quot;&amp;");
  EXPECT_EQ(escape_script_json("{\"a\":\"</script><!--&\"}"),
            "{\"a\":\"\\u003c/script\\u003e\\u003c!--\\u0026\"}");
}

}  // namespace
}  // namespace subspace
