#include "report/report.h"

#include <gtest/gtest.h>

#include <bit>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <sstream>

#include "base/error.h"
#include "base/json.h"
#include "report/page_writer.h"
#include "report/run_chunks.h"
#include "report/tiny_run.h"

namespace subspace {
namespace {

namespace fs = std::filesystem;
using testing::TempFolder;
using testing::TinyRun;

constexpr const char* kPlotly = "/**\n* plotly.js v9.8.7\n*/\nvar Plotly = {};\n";

std::string read_file(const fs::path& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

class Report : public ::testing::Test {
 protected:
  void SetUp() override {
    plotly_ = folder_.path() / "plotly.min.js";
    std::ofstream(plotly_) << kPlotly;
  }
  std::string page(const TinyRun& run, const std::string& plotlyjs = {}) {
    run.write(folder_.path() / "run");
    const fs::path out = folder_.path() / "page.html";
    write_report({folder_.path() / "run"}, out,
                 {.plotlyjs = plotlyjs.empty() ? plotly_.string() : plotlyjs});
    return read_file(out);
  }
  std::string message(const std::function<void()>& act, ErrorCode code) {
    try {
      act();
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), code) << error.what();
      return error.what();
    }
    ADD_FAILURE() << "accepted";
    return {};
  }

  TempFolder folder_;
  fs::path plotly_;
};

std::size_t count(const std::string& text, const std::string& part) {
  std::size_t found = 0;
  for (auto at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++found;
  return found;
}

TEST_F(Report, HoldsItsDataAndNothingFromElsewhere) {
  const std::string html = page(TinyRun());
  EXPECT_EQ(html.find("{{"), std::string::npos);
  EXPECT_EQ(count(html, "<script src"), 0u);
  EXPECT_EQ(count(html, "<link"), 0u);
  EXPECT_NE(html.find("var Plotly = {};"), std::string::npos);
  const auto begin = html.find("id=\"data\">") + 10;
  const Json data = Json::parse(html.substr(begin, html.find("</script>", begin) - begin));
  const Json& run = data.at("runs").at(0);
  EXPECT_EQ(run.at("layers").size(), 2u);
  EXPECT_EQ(run.at("layers").at(1).at("maps").at("O").at("stack").at("metrics").at("rank_0.99"), 5);
  const auto chunks = count(html, "<script type=\"text/plain\"");
  EXPECT_EQ(chunks, 4u);  // the drawn spectra of two layers, Q's metrics, O's stacks
}

TEST_F(Report, TextFromFilesStaysText) {
  TinyRun run;
  const std::string evil = "</script><script>alert(1)</script><!--\"'&\xe2\x80\xa8";
  run.summary["model"]["name"] = evil;
  run.summary["layers"][0]["notes"] = {evil};
  run.summary["device"] = evil;
  const std::string html = page(run);
  EXPECT_EQ(html.find("alert(1)</script>"), std::string::npos);
  EXPECT_EQ(html.find("<script>alert"), std::string::npos);
  EXPECT_NE(html.find("&lt;/script&gt;&lt;script&gt;alert(1)"), std::string::npos);
  const auto begin = html.find("id=\"data\">") + 10;
  const Json data = Json::parse(html.substr(begin, html.find("</script>", begin) - begin));
  EXPECT_EQ(data.at("runs").at(0).at("facts").at("model").at("name"), evil);
}

TEST_F(Report, EqualInputGivesEqualBytes) { EXPECT_EQ(page(TinyRun(3)), page(TinyRun(3))); }

TEST_F(Report, FromTheNetworkOnlyWhenAsked) {
  ::setenv("SUBSPACE_PLOTLYJS", plotly_.c_str(), 1);
  const std::string html = page(TinyRun(), "cdn");
  ::unsetenv("SUBSPACE_PLOTLYJS");
  EXPECT_NE(html.find("src=\"https://cdn.plot.ly/plotly-9.8.7.min.js\""), std::string::npos);
  EXPECT_EQ(html.find("var Plotly = {};"), std::string::npos);
  EXPECT_NE(html.find("script-src 'unsafe-inline' https://cdn.plot.ly"), std::string::npos);
}

TEST_F(Report, SaysWhereToGetTheDrawingLibrary) {
  const std::string text =
      message([&] { page(TinyRun(), "/nowhere/plotly.min.js"); }, ErrorCode::NotFound);
  EXPECT_NE(text.find("/nowhere/plotly.min.js"), std::string::npos) << text;
  EXPECT_NE(text.find("--plotlyjs"), std::string::npos) << text;
  EXPECT_FALSE(fs::exists(folder_.path() / "page.html"));
}

TEST_F(Report, RefusesALibraryThatIsNotOne) {
  std::ofstream(plotly_) << "alert(1)";
  message([&] { page(TinyRun()); }, ErrorCode::InvalidFormat);
  std::ofstream(plotly_) << kPlotly << "'</script>'";
  message([&] { page(TinyRun()); }, ErrorCode::InvalidFormat);
}

TEST_F(Report, NoRunIsAWrongCall) {
  message([&] { write_report({}, folder_.path() / "page.html", {}); }, ErrorCode::Usage);
}

TEST_F(Report, LeavesNothingBehindWhenARunIsDamaged) {
  TinyRun run;
  run.tensor("layers.1.O.stack").values[0] = -1;
  message([&] { page(run); }, ErrorCode::InvalidFormat);
  for (const auto& entry : fs::directory_iterator(folder_.path())) {
    EXPECT_EQ(entry.path().string().find("page.html"), std::string::npos) << entry.path();
  }
}

TEST_F(Report, ManyOffsetsKeepTheirRanksAndSomeOfTheRest) {
  TinyRun(40).write(folder_.path() / "run");
  Chunks chunks;
  const Json run = pack_run(read_run(folder_.path() / "run"), chunks);
  int full = 0;
  for (int offset = 0; offset < 40; ++offset) {
    const Json& columns =
        run.at("maps").at("QK@" + std::to_string(offset)).at("heads").at("columns");
    EXPECT_EQ(columns.dump().find("rank_0.99") != std::string::npos, true) << offset;
    full += columns.size() > 1;
  }
  EXPECT_EQ(full, 17);
  EXPECT_GT(run.at("maps").at("QK@0").at("heads").at("columns").size(), 1u);
  EXPECT_GT(run.at("maps").at("QK@39").at("heads").at("columns").size(), 1u);
  // One offset is drawn and described for all.
  EXPECT_EQ(run.at("layers").at(0).at("drawn").at("maps").dump(), R"(["Q","QK@0"])");
  EXPECT_FALSE(run.at("layers").at(0).at("maps").contains("QK@1"));
}

TEST_F(Report, BlocksOfAStackReachThePage) {
  TinyRun tiny;
  tiny.map(0, "O")["stack"]["blocks"] = 2;
  tiny.write(folder_.path() / "run");
  Chunks chunks;
  const Json run = pack_run(read_run(folder_.path() / "run"), chunks);
  EXPECT_EQ(run.at("layers").at(0).at("maps").at("O").at("stack").at("blocks"), 2);
  EXPECT_FALSE(run.at("layers").at(1).at("maps").at("O").at("stack").contains("blocks"));
}

TEST_F(Report, HeadMetricsComeBackInPlanes) {
  TinyRun tiny;
  tiny.write(folder_.path() / "run");
  Chunks chunks;
  const Json run = pack_run(read_run(folder_.path() / "run"), chunks);
  const Json& heads = run.at("maps").at("Q").at("heads");
  const auto bytes = testing::unpack_chunk(chunks.texts.at(heads.at("chunk")));
  const std::size_t values = heads.at("columns").size() * 2 * 3;
  ASSERT_EQ(bytes.size(), 4 * values);
  const auto value = [&](std::size_t i) {
    std::uint32_t word = 0;
    for (std::size_t plane = 0; plane < 4; ++plane) {
      word |= static_cast<std::uint32_t>(bytes[plane * values + i]) << (8 * plane);
    }
    return std::bit_cast<float>(word);
  };
  for (std::size_t layer = 0; layer < 2; ++layer) {
    for (std::size_t head = 0; head < 3; ++head) {
      const Json& largest = tiny.map(static_cast<int>(layer), "Q")["heads"]["largest"][head];
      EXPECT_EQ(value(layer * 3 + head), static_cast<float>(largest.get<double>()));
      EXPECT_EQ(value(6 + layer * 3 + head), static_cast<float>(head + 1));  // rank_0.99
    }
  }
}

TEST(PageWriter, AnUnknownPartIsABrokenPromise) {
  TempFolder folder;
  AtomicFile file(folder.path() / "x");
  EXPECT_THROW(write_template(file, "a {{b}} c", {}), Error);
  EXPECT_THROW(write_template(file, "a {{b", {}), Error);
}

}  // namespace
}  // namespace subspace
