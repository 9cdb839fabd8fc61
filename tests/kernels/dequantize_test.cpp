#include "kernels/dequantize.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <tuple>
#include <vector>

#include "base/random.h"
#ifdef SUBSPACE_CUDA
#include <cuda_runtime.h>
#endif

namespace subspace::kernels {
namespace {

struct Case {
  const char* name;
  Format format;
  std::int64_t bytes;
};
constexpr Case kCases[] = {{"f64", Format::f64, 8},         {"f32", Format::f32, 4},
                           {"f16", Format::f16, 2},         {"bf16", Format::bf16, 2},
                           {"f8_e4m3", Format::f8_e4m3, 1}, {"f8_e8m0", Format::f8_e8m0, 1}};

/// A matrix of random finite codes at a deliberately unaligned address, with optional scales.
struct Input {
  std::vector<unsigned char> storage;
  std::vector<float> scales;
  std::vector<double> out;
  Dequantize p;

  Input(const Case& c, std::int64_t rows, std::int64_t cols, bool scaled, std::uint64_t seed,
        std::size_t shift = 1)
      : storage(static_cast<std::size_t>(rows * cols * c.bytes) + shift),
        out(static_cast<std::size_t>(rows * cols), -7.0) {
    Random random(seed);
    for (auto& byte : storage) byte = static_cast<unsigned char>(random.word());
    p = {.in = storage.data() + shift,
         .format = c.format,
         .out = out.data(),
         .rows = rows,
         .cols = cols};
    for (std::int64_t i = 0; i < rows * cols; ++i) make_finite(c, i);
    if (scaled) {
      p.row0 = 100;  // so that the first rows share a block with rows not given
      p.scale_stride = (cols + 127) / 128 + 1;
      scales.resize(static_cast<std::size_t>(((rows + p.row0 + 127) / 128) * p.scale_stride));
      for (auto& scale : scales) scale = std::exp(static_cast<float>(random.normal()));
      p.scale = scales.data();
    }
  }
  Input(const Input&) = delete;

  unsigned char* code(const Case& c, std::int64_t i) {
    return storage.data() + (static_cast<const unsigned char*>(p.in) - storage.data()) +
           i * c.bytes;
  }
  void set(const Case& c, std::int64_t i, std::uint64_t bits) {
    std::memcpy(code(c, i), &bits, static_cast<std::size_t>(c.bytes));
  }
  void make_finite(const Case& c, std::int64_t i) {
    unsigned char* last = code(c, i) + c.bytes - 1;
    if (c.format == Format::f8_e4m3) {
      if ((*last & 0x7f) == 0x7f) *last = 0x40;
    } else if (c.format == Format::f8_e8m0) {
      if (*last == 0xff) *last = 0x80;
    } else if ((*last & 0x7c) == 0x7c) {
      *last = static_cast<unsigned char>(*last & ~0x04);  // no exponent of all ones
    }
  }
};

bool same_bits(double a, double b) {
  if (std::isnan(a) || std::isnan(b)) return std::isnan(a) && std::isnan(b);
  return std::bit_cast<std::uint64_t>(a) == std::bit_cast<std::uint64_t>(b);
}

void expect_same(const std::vector<double>& got, const std::vector<double>& want) {
  ASSERT_EQ(got.size(), want.size());
  for (std::size_t i = 0; i < got.size(); ++i) {
    ASSERT_TRUE(same_bits(got[i], want[i])) << "at " << i << ": " << got[i] << " and " << want[i];
  }
}

std::uint64_t not_a_number(Format format) {
  switch (format) {
    case Format::f64:
      return 0x7ff8000000000001;
    case Format::f32:
      return 0x7fc00001;
    case Format::f16:
      return 0x7e01;
    case Format::bf16:
      return 0x7fc1;
    case Format::f8_e4m3:
    case Format::f8_e8m0:
      return 0xff;
  }
  return 0;
}

TEST(DequantizeReference, E4m3CodesFollowTheFormatsDefinition) {
  // sign (-1)^s; exponent 0: 2^-6 m/8; else 2^(e-7) (1 + m/8); 0x7f and 0xff are NaN.
  for (int code = 0; code < 256; ++code) {
    const auto byte = static_cast<unsigned char>(code);
    double out = 0;
    const Dequantize p{.in = &byte, .format = Format::f8_e4m3, .out = &out, .rows = 1, .cols = 1};
    const auto bad = dequantize_reference(p);
    const int exponent = code / 8 % 16;
    const double mantissa = code % 8 / 8.0;
    const double sign = code >= 128 ? -1 : 1;
    if (code % 128 == 127) {
      EXPECT_TRUE(std::isnan(out));
      EXPECT_EQ(bad, 0);
    } else {
      const double want = exponent == 0 ? std::pow(2.0, -6) * mantissa
                                        : std::pow(2.0, exponent - 7) * (1 + mantissa);
      EXPECT_EQ(out, sign * want) << code;
      EXPECT_EQ(std::signbit(out), code >= 128) << code;
      EXPECT_EQ(bad, -1);
    }
  }
}

TEST(DequantizeReference, KnownValues) {
  const auto one = [](Format format, std::uint64_t bits) {
    double out = 0;
    dequantize_reference({.in = &bits, .format = format, .out = &out, .rows = 1, .cols = 1});
    return out;
  };
  EXPECT_EQ(one(Format::f8_e4m3, 0x7e), 448);
  EXPECT_EQ(one(Format::f8_e4m3, 0x01), 0x1p-9);
  EXPECT_EQ(one(Format::f16, 0x3c00), 1);
  EXPECT_EQ(one(Format::f16, 0x7bff), 65504);
  EXPECT_EQ(one(Format::f16, 0x8001), -0x1p-24);
  EXPECT_EQ(one(Format::f16, 0xfc00), -HUGE_VAL);
  EXPECT_EQ(one(Format::bf16, 0x3f80), 1);
  EXPECT_EQ(one(Format::bf16, 0x0001), 0x1p-133);
  EXPECT_EQ(one(Format::f8_e8m0, 127), 1);
  EXPECT_EQ(one(Format::f8_e8m0, 0), 0x1p-127);
  EXPECT_EQ(one(Format::f8_e8m0, 254), 0x1p127);
  EXPECT_EQ(one(Format::f32, 1), 0x1p-149);
}

class DequantizeCpu : public ::testing::TestWithParam<std::tuple<Case, Isa>> {
 protected:
  void SetUp() override {
    if (!isa_available(isa())) GTEST_SKIP() << "this processor lacks the instruction set";
  }
  Case format() const { return std::get<0>(GetParam()); }
  Isa isa() const { return std::get<1>(GetParam()); }
};

TEST_P(DequantizeCpu, GivesTheReferencesBits) {
  for (const bool scaled : {false, true}) {
    for (const bool streaming : {false, true}) {
      std::uint64_t seed = 1;
      for (const auto& [rows, cols] : std::vector<std::pair<int, int>>{{1, 1},
                                                                       {1, 15},
                                                                       {3, 16},
                                                                       {7, 127},
                                                                       {130, 128},
                                                                       {300, 321},
                                                                       {257, 1000},
                                                                       {1, 99991}}) {
        ++seed;
        Input input(format(), rows, cols, scaled, seed, seed % 3);
        EXPECT_EQ(dequantize_reference(input.p), -1);
        const auto want = input.out;
        input.p.streaming = streaming;
        for (const int threads : {1, 3}) {
          std::fill(input.out.begin(), input.out.end(), -7.0);
          EXPECT_EQ(dequantize_cpu(input.p, threads, isa()), -1);
          expect_same(input.out, want);
        }
      }
    }
  }
}

/// Every code of a format of one or two bytes; of the longer ones random codes, a NaN among them.
void set_codes(Input& input, const Case& c) {
  if (c.bytes > 2) {
    input.set(c, 4711, not_a_number(c.format));
    return;
  }
  for (std::int64_t i = 0; i < input.p.cols; ++i) input.set(c, i, static_cast<std::uint64_t>(i));
}

TEST_P(DequantizeCpu, EveryCodeOfShortFormatsAndManyOfLongOnes) {
  Input input(format(), 1, format().bytes == 1 ? 256 : 65536, false, 1);
  set_codes(input, format());
  const auto bad = dequantize_reference(input.p);
  const auto want = input.out;
  EXPECT_GE(bad, 0);
  EXPECT_EQ(dequantize_cpu(input.p, 1, isa()), bad);
  expect_same(input.out, want);
}

TEST_P(DequantizeCpu, FindsTheFirstBadValueAndWritesTheRest) {
  for (const bool scaled : {false, true}) {
    for (const std::int64_t at : {0, 1, 333, 12345, 300 * 400 - 1}) {
      Input input(format(), 300, 400, scaled, 5);
      input.set(format(), at, not_a_number(format().format));
      input.set(format(), 300 * 400 - 1, not_a_number(format().format));
      EXPECT_EQ(dequantize_reference(input.p), at);
      const auto want = input.out;
      for (const int threads : {1, 2}) {
        EXPECT_EQ(dequantize_cpu(input.p, threads, isa()), at);
        expect_same(input.out, want);
      }
    }
  }
}

TEST_P(DequantizeCpu, ScaleThatIsNotFiniteIsFound) {
  Input input(format(), 300, 400, true, 6);
  const auto block = static_cast<std::size_t>(input.p.scale_stride + 1);  // rows 28..155, 128..255
  input.scales[block] = INFINITY;
  EXPECT_EQ(dequantize_reference(input.p), 28 * 400 + 128);
  EXPECT_EQ(dequantize_cpu(input.p, 2, isa()), 28 * 400 + 128);
}

TEST_P(DequantizeCpu, EmptyMatrix) {
  Input input(format(), 0, 5, false, 1);
  EXPECT_EQ(dequantize_cpu(input.p, 4, isa()), -1);
}

INSTANTIATE_TEST_SUITE_P(All, DequantizeCpu,
                         ::testing::Combine(::testing::ValuesIn(kCases),
                                            ::testing::Values(Isa::portable, Isa::avx2)),
                         [](const auto& info) {
                           return std::string(std::get<0>(info.param).name) +
                                  (std::get<1>(info.param) == Isa::avx2 ? "_avx2" : "_portable");
                         });

#ifdef SUBSPACE_CUDA
/// Device memory for the length of a test.
template <typename T>
struct OnDevice {
  explicit OnDevice(std::size_t count) {
    EXPECT_EQ(cudaMalloc(&data, std::max<std::size_t>(count, 1) * sizeof(T)), cudaSuccess);
  }
  ~OnDevice() { cudaFree(data); }
  OnDevice(const OnDevice&) = delete;
  T* data = nullptr;
};

std::int64_t run_on_device(Input& input) {
  OnDevice<unsigned char> in(input.storage.size());
  OnDevice<float> scales(input.scales.size());
  OnDevice<double> out(input.out.size());
  OnDevice<std::int64_t> bad(1);
  EXPECT_EQ(cudaMemcpy(in.data, input.storage.data(), input.storage.size(), cudaMemcpyHostToDevice),
            cudaSuccess);
  EXPECT_EQ(cudaMemcpy(scales.data, input.scales.data(), input.scales.size() * sizeof(float),
                       cudaMemcpyHostToDevice),
            cudaSuccess);
  Dequantize p = input.p;
  p.in = in.data + (static_cast<const unsigned char*>(input.p.in) - input.storage.data());
  p.scale = input.p.scale ? scales.data : nullptr;
  p.out = out.data;
  dequantize_cuda(p, bad.data, nullptr);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  std::int64_t first = 0;
  cudaMemcpy(&first, bad.data, sizeof first, cudaMemcpyDeviceToHost);
  cudaMemcpy(input.out.data(), out.data, input.out.size() * sizeof(double), cudaMemcpyDeviceToHost);
  return first;
}

class DequantizeCuda : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
      GTEST_SKIP() << "needs a GPU";
    }
  }
};

TEST_P(DequantizeCuda, GivesTheReferencesBits) {
  std::uint64_t seed = 50;
  for (const bool scaled : {false, true}) {
    for (const auto& [rows, cols] : std::vector<std::pair<int, int>>{
             {1, 1}, {5, 1}, {4099, 3}, {1, 15}, {7, 127}, {300, 321}, {576, 7168}, {3, 99991}}) {
      // A multiple of the element keeps device loads legal; 0 also takes the 16-byte route.
      for (const std::int64_t shift : {std::int64_t{0}, GetParam().bytes}) {
        Input input(GetParam(), rows, cols, scaled, ++seed, static_cast<std::size_t>(shift));
        EXPECT_EQ(dequantize_reference(input.p), -1);
        const auto want = input.out;
        EXPECT_EQ(run_on_device(input), INT64_MAX);
        expect_same(input.out, want);
      }
    }
  }
}

TEST_P(DequantizeCuda, EveryCodeOfShortFormatsAndManyOfLongOnes) {
  Input input(GetParam(), 1, GetParam().bytes == 1 ? 256 : 65536, false, 1, 0);
  set_codes(input, GetParam());
  const auto bad = dequantize_reference(input.p);
  const auto want = input.out;
  EXPECT_EQ(run_on_device(input), bad);
  expect_same(input.out, want);
}

INSTANTIATE_TEST_SUITE_P(All, DequantizeCuda, ::testing::ValuesIn(kCases),
                         [](const auto& info) { return std::string(info.param.name); });
#endif

}  // namespace
}  // namespace subspace::kernels
