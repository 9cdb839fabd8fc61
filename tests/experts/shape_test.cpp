// Spectra, groups, neighbours and what lies between, each against the plain way to compute it.

#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "experts/clusters.h"
#include "experts/expert_spectra.h"
#include "experts/interpolation.h"
#include "experts/neighbours.h"
#include "experts/random_experts.h"

namespace subspace::experts {
namespace {

using testing::generated;
using testing::normal;
using testing::stored;

void expect_close(const at::Tensor& got, const at::Tensor& want, double bound,
                  const std::string& what) {
  ASSERT_EQ(got.sizes().vec(), want.sizes().vec()) << what;
  const double error = (got - want).abs().max().item<double>();
  EXPECT_FALSE(!(error <= bound * want.abs().max().item<double>())) << what << ": " << error;
}

TEST(ExpertSpectra, AreTheSingularValuesOfEveryMatrix) {
  // More experts than a piece of the table has rows.
  const ExpertTensors tensors = generated(133 * 133, 5, 3);
  std::map<std::string, at::Tensor> found;
  for (const MapSpectra& map : expert_spectra(tensors)) found[map.map] = map.stack;
  EXPECT_EQ(found.size(), 8U);
  const at::Tensor table = at::gelu(at::matmul(tensors.z, tensors.w1));
  // The Gram route resolves 1e-8 of the largest.
  const std::pair<const char*, at::Tensor> wanted[] = {
      {"Z", tensors.z},        {"TABLE", table},       {"TABLE-MEAN", table - table.mean(0, true)},
      {"W1", tensors.w1},      {"WU", tensors.w_u},    {"WV", tensors.w_v},
      {"K1", tensors.keys[0]}, {"K2", tensors.keys[1]}};
  for (const auto& [map, matrix] : wanted) {
    ASSERT_TRUE(found.contains(map)) << map;
    expect_close(found[map], at::linalg_svdvals(matrix), 1e-7, map);
  }
}

TEST(ExpertSpectra, StoredExpertsHaveTheirOwn) {
  std::vector<std::string> maps;
  for (const MapSpectra& map : expert_spectra(stored(normal({49, 12}, 5)))) {
    maps.push_back(map.map);
  }
  EXPECT_EQ(maps, (std::vector<std::string>{"DOWN", "UP"}));
}

TEST(Clusters, FindPlantedGroups) {
  const at::Tensor centres = 20 * normal({4, 6}, 1);
  const at::Tensor rows = normal({400, 6}, 2) + centres.repeat({100, 1});
  const Clustering found = cluster(rows, 4, 1);
  for (std::int64_t g = 0; g < 4; ++g) {
    const at::Tensor of_group = found.of_row.view({100, 4}).select(1, g);
    EXPECT_TRUE((of_group == of_group[0]).all().item<bool>()) << g;
  }
  // 400 rows in 6 directions of variance one, less the four means.
  EXPECT_NEAR(found.within, 396 * 6, 5 * std::sqrt(2.0 * 396 * 6));
  const at::Tensor own = found.centres.index_select(0, found.of_row);
  EXPECT_NEAR(found.within, (rows - own).square().sum().item<double>(), 1e-8 * found.within);
}

TEST(Clusters, OneCloudIsNoMoreThanItsTwin) {
  const at::Tensor stretched = normal({2500, 8}, 3) * at::arange(1, 9, at::kDouble) + 5;
  const Json cloud = clusters_of_experts(stored(stretched), {});
  const at::Tensor counts = at::ones({2500}, at::kLong);
  const Json groups =
      clusters_of_experts(stored(stretched + 40 * normal({5, 8}, 4).repeat({500, 1})), counts);
  ASSERT_EQ(cloud.at("clusters"), Json({2, 4, 8, 16, 32, 64}));
  for (std::size_t i = 0; i < 6; ++i) {
    EXPECT_NEAR(cloud.at("explained")[i].get<double>(), cloud.at("chance")[i].get<double>(), 0.02);
  }
  EXPECT_GT(groups.at("explained")[2].get<double>(), groups.at("chance")[2].get<double>() + 0.1);
  EXPECT_FALSE(cloud.at("map").contains("choices")) << "nothing was counted";
  double experts = 0, choices = 0;
  for (const Json& group : groups.at("groups")) {
    experts += group.at("experts").get<double>();
    choices += group.at("choices").get<double>();
  }
  EXPECT_NEAR(experts, 1, 1e-12);
  EXPECT_NEAR(choices, 1, 1e-12);
  EXPECT_EQ(groups.at("map").at("x").size(), 1500U);
  EXPECT_GT(cloud.at("axes")[0].get<double>(), cloud.at("axes")[1].get<double>());
}

/// Cosines of what rows differ from their mean by, by the definition.
at::Tensor cosines(const at::Tensor& vectors) {
  const at::Tensor away = vectors - vectors.mean(0, true);
  const at::Tensor unit = away / away.norm(2, 1, true);
  return at::matmul(unit, unit.t());
}

TEST(Neighbours, AreThoseOfAllPairs) {
  const ExpertTensors tensors = generated(400, 7, 9);
  const Neighbourhood neighbourhood(tensors);
  const at::Tensor all = at::arange(400, at::kLong);
  const Nearest found = neighbourhood.nearest(tensors.read(tensors.z), all, 5);
  const at::Tensor wanted = cosines(tensors.read(tensors.z)).fill_diagonal_(-2);
  const auto best = std::get<0>(wanted.topk(5, 1));
  expect_close(found.cosines.to(at::kDouble), best, 1e-5, "cosines");
  expect_close(wanted.gather(1, found.experts), best, 1e-5, "experts");
}

TEST(Neighbours, CopiesAreFoundAndKeysInCommonAreCounted) {
  // Expert e and its copy in the next row of keys: one key in common.
  at::Tensor down = normal({100, 20}, 6);
  down.view({5, 2, 10, 20}).select(1, 1).copy_(down.view({5, 2, 10, 20}).select(1, 0));
  const ExpertTensors tensors = stored(down);
  const at::Tensor counts = at::arange(100, at::kLong);
  const Json found = neighbours_of_experts(tensors, Neighbourhood(tensors), counts);
  EXPECT_NEAR(found.at("cosines")[0].get<double>(), 1, 1e-5);
  EXPECT_LT(found.at("chance")[4].get<double>(), 0.95);
  EXPECT_NEAR(found.at("shared_key_by_chance").get<double>(), 2.0 / 11, 1e-12);
  EXPECT_GT(found.at("shared_key").get<double>(), 2.0 / 11);
  const Json& first = found.at("examples")[0];
  EXPECT_EQ(first.at("expert"), 99) << "the most used";
  EXPECT_EQ(first.at("nearest")[0].at("expert"), 89);
  EXPECT_EQ(first.at("nearest")[0].at("choices"), 89);
}

TEST(Interpolation, BeginsAndEndsAtTheExperts) {
  const ExpertTensors tensors = generated(100, 6, 21);
  const Neighbourhood neighbourhood(tensors);
  const at::Tensor x = normal({40, 10}, 5);
  const Json found = interpolation_of_experts(tensors, neighbourhood, x);
  ASSERT_EQ(found.at("t").size(), 11U);
  ASSERT_EQ(found.at("pairs").size(), 48U);
  for (const Json& pair : found.at("pairs")) {
    for (const auto& [name, first, last] :
         {std::tuple("to_a", 1.0, pair.at("cosine").get<double>()),
          std::tuple("to_b", pair.at("cosine").get<double>(), 1.0), std::tuple("length", 1.0, 1.0),
          std::tuple("departure", 0.0, 0.0), std::tuple("response", 0.0, 0.0)}) {
      EXPECT_NEAR(pair.at(name)[0].get<double>(), first, 1e-9) << name;
      EXPECT_NEAR(pair.at(name)[10].get<double>(), last, 1e-9) << name;
    }
  }
  // The middle of one pair by the equations.
  const Json& pair = found.at("pairs")[30];
  const at::Tensor a = tensors.z[pair.at("a").get<std::int64_t>()];
  const at::Tensor b = tensors.z[pair.at("b").get<std::int64_t>()];
  const at::Tensor h_a = at::gelu(at::matmul(a, tensors.w1));
  const at::Tensor h_b = at::gelu(at::matmul(b, tensors.w1));
  const at::Tensor h = at::gelu(at::matmul(0.5 * (a + b), tensors.w1));
  EXPECT_NEAR(pair.at("departure")[5].get<double>(),
              ((h - (h_a + h_b) / 2).norm() / (h_a - h_b).norm()).item<double>(), 1e-9);
  const at::Tensor xp = at::matmul(x, tensors.w_u);
  auto answer = [&](const at::Tensor& vector) { return at::gelu(at::matmul(xp, vector)); };
  const at::Tensor off = answer(h) - (answer(h_a) + answer(h_b)) / 2;
  EXPECT_NEAR(pair.at("response")[5].get<double>(),
              (off.norm() / (answer(h_a) - answer(h_b)).norm()).item<double>(), 1e-9);
}

TEST(Interpolation, WithoutTokensThereIsNoResponse) {
  const ExpertTensors tensors = generated(25, 6, 21);
  const Json found = interpolation_of_experts(tensors, Neighbourhood(tensors), {});
  ASSERT_EQ(found.at("pairs").size(), 24U);
  EXPECT_FALSE(found.at("pairs")[0].contains("response"));
}

TEST(Gaussian, TwinHasTheMeanAndTheCovariance) {
  const at::Tensor rows = normal({500, 3}, 1) * at::tensor({1.0, 2.0, 4.0}) + 7;
  const at::Tensor twin = Gaussian(rows).draw(100000, 2);
  expect_close(twin.mean(0), rows.mean(0), 0.01, "mean");
  const at::Tensor away = twin - twin.mean(0), own = rows - rows.mean(0);
  expect_close(at::matmul(away.t(), away) / 100000, at::matmul(own.t(), own) / 500, 0.02,
               "covariance");
}

TEST(Sampled, IsEveryExpertOrDifferentOnes) {
  EXPECT_TRUE(at::equal(sampled(9, 9, at::empty({1})), at::arange(9, at::kLong)));
  const at::Tensor some = sampled(1000, 50, at::empty({1}));
  EXPECT_EQ(some.numel(), 50);
  EXPECT_TRUE((some.diff() > 0).all().item<bool>());
  EXPECT_LT(some.max().item<std::int64_t>(), 1000);
  EXPECT_GT(some.max().item<std::int64_t>(), 500);
}

}  // namespace
}  // namespace subspace::experts
