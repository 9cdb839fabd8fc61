#include "train/layer_time.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "nn/fused.h"

namespace subspace::train {
namespace {

class LayerTime : public ::testing::TestWithParam<const char*> {
 protected:
  void TearDown() override { nn::fuse(nn::Fuse::on_gpu); }
};

Experiment experiment(const std::string& name, const std::string& precision) {
  Experiment found =
      read_experiment(std::filesystem::path(SUBSPACE_CONFIGS) / (name + ".json"),
                      {"precision=" + precision, "batch_size=2", "max_position_embeddings=16"});
  return found;
}

// The kernels' ways stand for those of a GPU: nothing of them may need what only a trainer sets up.
TEST_P(LayerTime, IsMeasuredWithAndWithoutKernels) {
  for (const char* precision : {"float32", "bfloat16"}) {
    for (const nn::Fuse fuse : {nn::Fuse::never, nn::Fuse::always}) {
      SCOPED_TRACE(std::string(precision) + (fuse == nn::Fuse::always ? ", fused" : ""));
      nn::fuse(fuse);
      const Json found = layer_time(experiment(GetParam(), precision), c10::kCPU, 0);
      EXPECT_GE(found.at("passes").get<int>(), 5);
      const double median = found.at("milliseconds").get<double>();
      EXPECT_GT(median, 0);
      EXPECT_LE(found.at("milliseconds_low").get<double>(), median);
      EXPECT_GE(found.at("milliseconds_high").get<double>(), median);
      EXPECT_NEAR(found.at("microseconds_per_token").get<double>(), 1000 * median / 32,
                  1e-9 * median);
    }
  }
}

TEST_P(LayerTime, IsMeasuredOnTheGpu) {
  if (!at::hasCUDA() || at::detail::getCUDAHooks().deviceCount() == 0) {
    GTEST_SKIP() << "needs a GPU";
  }
  for (const char* precision : {"float32", "bfloat16"}) {
    SCOPED_TRACE(precision);
    const Json found = layer_time(experiment(GetParam(), precision), at::Device(at::kCUDA, 0), 0);
    EXPECT_GE(found.at("passes").get<int>(), 5);
    EXPECT_GT(found.at("milliseconds").get<double>(), 0);
  }
}

INSTANTIATE_TEST_SUITE_P(Each, LayerTime,
                         ::testing::Values("tiny-decoder-mha", "tiny-decoder-mla",
                                           "tiny-decoder-mla-o", "tiny-encoder-mla-o"));

}  // namespace
}  // namespace subspace::train
