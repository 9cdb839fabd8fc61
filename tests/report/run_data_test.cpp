#include "report/run_data.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <functional>
#include <limits>

#include "base/error.h"
#include "report/tiny_run.h"

namespace subspace {
namespace {

using testing::TempFolder;
using testing::TinyRun;

TEST(RunData, ReadsWhatIsThere) {
  TempFolder folder;
  TinyRun(2).write(folder.path());
  const subspace::Run run = read_run(folder.path());
  ASSERT_EQ(run.layers.size(), 2u);
  const auto& maps = run.layers[1].maps;
  ASSERT_EQ(maps.size(), 4u);
  EXPECT_EQ(maps[0].name, "Q");
  EXPECT_EQ(maps[0].heads->heads, 3);
  EXPECT_EQ(maps[0].heads->values, 4);
  EXPECT_EQ(maps[0].heads->columns.back().first, "energy_lost@2");
  EXPECT_EQ(maps[0].heads->random.at("rank_0.99"), 4);
  EXPECT_FALSE(maps[0].stack);
  EXPECT_EQ(maps[1].stack->metrics.at("energy_lost@2"), 0.25);
  EXPECT_TRUE(maps[1].stack->metrics.at("condition_number").is_null());
  EXPECT_EQ(read_spectra(run, "layers.1.O.stack", 6, false)[2], 0.5);
}

TEST(RunData, NullStandsForAMarkedHead) {
  TempFolder folder;
  TinyRun tiny;
  tiny.map(0, "Q")["heads"]["rank_0.99"][1] = nullptr;
  auto& values = tiny.tensor("layers.0.Q.heads").values;
  std::fill(values.begin() + 4, values.begin() + 8, std::nan(""));
  tiny.write(folder.path());
  const subspace::Run run = read_run(folder.path());
  EXPECT_TRUE(std::isnan(run.layers[0].maps[0].heads->columns[1].second[1]));
  EXPECT_NO_THROW(read_spectra(run, "layers.0.Q.heads", 4, true));
  EXPECT_THROW(read_spectra(run, "layers.0.Q.heads", 4, false), Error);
}

struct BadCase {
  const char* name;
  std::function<void(TinyRun&)> spoil;
  ErrorCode code;
  std::vector<const char*> mentions;
};

class BadRun : public ::testing::TestWithParam<BadCase> {};

TEST_P(BadRun, IsRefusedWithFileAndField) {
  TempFolder folder;
  TinyRun tiny;
  GetParam().spoil(tiny);
  tiny.write(folder.path());
  try {
    const subspace::Run run = read_run(folder.path());
    for (const LayerResult& layer : run.layers) {
      for (const MapResult& map : layer.maps) {
        if (map.heads) read_spectra(run, map.heads->tensor, map.heads->values, true);
        if (map.stack) read_spectra(run, map.stack->tensor, map.stack->values, false);
      }
    }
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), GetParam().code) << error.what();
    for (const char* word : GetParam().mentions) {
      EXPECT_NE(std::string(error.what()).find(word), std::string::npos) << error.what();
    }
  }
}

const BadCase kBadCases[] = {
    {"format",
     [](TinyRun& t) { t.summary["format"] = "other"; },
     ErrorCode::InvalidFormat,
     {"summary.json", "other", "subspace-spectra"}},
    {"version",
     [](TinyRun& t) { t.summary["version"] = 2; },
     ErrorCode::InvalidFormat,
     {"summary.json", "version 2"}},
    {"model",
     [](TinyRun& t) { t.summary["model"].erase("heads"); },
     ErrorCode::NotFound,
     {"summary.json", "model", "heads"}},
    {"layers",
     [](TinyRun& t) { t.summary["layers"] = Json::array(); },
     ErrorCode::InvalidValue,
     {"summary.json", "layers"}},
    {"order",
     [](TinyRun& t) { t.summary["layers"][1]["layer"] = 0; },
     ErrorCode::InvalidValue,
     {"layers[1]", "ascending"}},
    {"tau",
     [](TinyRun& t) { t.summary["taus"] = {1.5}; },
     ErrorCode::InvalidValue,
     {"taus", "1.5"}},
    {"taus",
     [](TinyRun& t) { t.summary["taus"] = Json::array(); },
     ErrorCode::InvalidValue,
     {"taus"}},
    {"shape",
     [](TinyRun& t) {
       t.map(0, "Q")["shape"] = {8, -4};
     },
     ErrorCode::InvalidValue,
     {"layers[0]", "Q", "shape", "-4"}},
    {"column",
     [](TinyRun& t) { t.map(1, "Q")["heads"].erase("stable_rank"); },
     ErrorCode::NotFound,
     {"layers[1]", "Q", "stable_rank"}},
    {"column_length",
     [](TinyRun& t) {
       t.map(1, "Q")["heads"]["rank_0.99"] = {1, 2};
     },
     ErrorCode::InvalidValue,
     {"layers[1]", "rank_0.99", "3", "2 values"}},
    {"column_type",
     [](TinyRun& t) { t.map(1, "Q")["heads"]["largest"][0] = "x"; },
     ErrorCode::InvalidValue,
     {"layers[1]", "largest", "x"}},
    {"scalar",
     [](TinyRun& t) { t.map(0, "O")["stack"].erase("rank_0.99"); },
     ErrorCode::NotFound,
     {"O", "stack", "rank_0.99"}},
    {"empty_map",
     [](TinyRun& t) { t.map(0, "O").erase("stack"); },
     ErrorCode::NotFound,
     {"layers[0]", "O"}},
    {"tensor_missing",
     [](TinyRun& t) { t.tensors.pop_back(); },
     ErrorCode::NotFound,
     {"spectra.safetensors", "layers.1.O.stack"}},
    {"tensor_shape",
     [](TinyRun& t) {
       t.tensor("layers.0.Q.heads").shape = {4, 3};
     },
     ErrorCode::InvalidShape,
     {"spectra.safetensors", "layers.0.Q.heads", "[4, 3]"}},
    {"tensor_too_long",
     [](TinyRun& t) {
       t.map(0, "O")["stack"]["shape"] = {5, 8};
     },
     ErrorCode::InvalidShape,
     {"layers.0.O.stack", "[6]", "n <= 5"}},
    {"ascending",
     [](TinyRun& t) {
       std::swap(t.tensor("layers.0.O.stack").values[0], t.tensor("layers.0.O.stack").values[2]);
     },
     ErrorCode::InvalidFormat,
     {"layers.0.O.stack", "descending"}},
    {"negative",
     [](TinyRun& t) { t.tensor("layers.0.O.stack").values[5] = -1e-9; },
     ErrorCode::InvalidFormat,
     {"layers.0.O.stack", "row 0"}},
    {"nan_in_row",
     [](TinyRun& t) { t.tensor("layers.0.Q.heads").values[6] = std::nan(""); },
     ErrorCode::InvalidFormat,
     {"layers.0.Q.heads", "row 1"}},
    {"infinite",
     [](TinyRun& t) {
       t.tensor("layers.0.Q.heads").values[0] = std::numeric_limits<double>::infinity();
     },
     ErrorCode::InvalidFormat,
     {"layers.0.Q.heads", "row 0"}},
};

INSTANTIATE_TEST_SUITE_P(RunData, BadRun, ::testing::ValuesIn(kBadCases),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(RunData, AnUnfinishedRunIsNamed) {
  TempFolder folder;
  try {
    read_run(folder.path());
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::NotFound);
    EXPECT_NE(std::string(error.what()).find("--resume"), std::string::npos) << error.what();
  }
}

TEST(RunData, ADamagedSpectraFileIsRefused) {
  TempFolder folder;
  TinyRun().write(folder.path());
  std::filesystem::resize_file(folder.path() / "spectra.safetensors", 100);
  EXPECT_THROW(read_run(folder.path()), Error);
}

}  // namespace
}  // namespace subspace
