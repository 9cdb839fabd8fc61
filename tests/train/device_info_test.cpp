#include "train/device_info.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

namespace subspace::train {
namespace {

TEST(DeviceInfo, PrecisionIsThatOfTheDeviceUnlessItIsSaid) {
  Settings settings;
  const c10::Device gpu(at::kCUDA, 0);
  EXPECT_STREQ(dtype_name(chosen_dtype(settings, at::kCPU)), "float32");
  EXPECT_STREQ(dtype_name(chosen_dtype(settings, gpu)), "bfloat16");
  settings.precision = "float32";
  EXPECT_STREQ(dtype_name(chosen_dtype(settings, gpu)), "float32");
  settings.precision = "bfloat16";
  EXPECT_STREQ(dtype_name(chosen_dtype(settings, at::kCPU)), "bfloat16");
  EXPECT_EQ(device_name(at::kCPU), "cpu");
}

TEST(DeviceInfo, PeaksAreKnownOfWholeCardsAlone) {
  EXPECT_EQ(peak_flops("NVIDIA H200", at::kBFloat16), 989e12);
  EXPECT_EQ(peak_flops("NVIDIA H100 80GB HBM3", at::kBFloat16), 989e12);
  EXPECT_EQ(peak_flops("NVIDIA H200", at::kFloat), 0);
  EXPECT_EQ(peak_flops("NVIDIA H100 80GB HBM3 MIG 1g.10gb", at::kBFloat16), 0);
  EXPECT_EQ(peak_flops("NVIDIA H100 PCIe", at::kBFloat16), 0);
  EXPECT_EQ(peak_flops("cpu", at::kBFloat16), 0);
  EXPECT_EQ(flops_text(218e12, 989e12), "218.0 TFLOP/s (22.0 % of 989)");
  EXPECT_EQ(flops_text(31.24e9, 0), "31.2 GFLOP/s");
}

}  // namespace
}  // namespace subspace::train
