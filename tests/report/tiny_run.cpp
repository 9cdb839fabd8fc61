#include "report/tiny_run.h"

#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <fstream>
#include <functional>
#include <stdexcept>

#include "base/atomic_file.h"
#include "checkpoint/safetensors.h"

namespace subspace::testing {
namespace fs = std::filesystem;

TempFolder::TempFolder() {
  std::string name = (fs::temp_directory_path() / "subspace_report_XXXXXX").string();
  if (!::mkdtemp(name.data())) throw std::runtime_error("no temporary folder: " + name);
  path_ = name;
}

TempFolder::~TempFolder() { remove_tree(path_); }

TinyRun::TinyRun(int offsets, std::uint64_t seed) : random_(seed) {
  summary = {{"format", "subspace-spectra"},
             {"version", 1},
             {"program", {{"version", "0.1.0"}, {"commit", "0123abc"}, {"torch", "2.13.0"}}},
             {"model",
              {{"name", "tiny"},
               {"family", "bert"},
               {"attention", "MHA"},
               {"layers", 2},
               {"hidden_size", 8},
               {"heads", 3},
               {"kv_groups", 3}}},
             {"conventions", {{"name", "default"}, {"normalize", "none"}}},
             {"taus", {0.99}},
             {"layers", Json::array()}};
  for (int layer = 0; layer < 2; ++layer) add_layer(layer, offsets);
}

Json TinyRun::add_heads(const std::string& tensor, std::int64_t heads, std::int64_t n) {
  std::vector<double> values;
  Json largest = Json::array();
  Json numbers = Json::array();
  for (std::int64_t h = 0; h < heads; ++h) {
    std::vector<double> row;
    for (std::int64_t j = 0; j < n; ++j) row.push_back(random_.uniform());
    std::sort(row.begin(), row.end(), std::greater<>());
    largest.push_back(row[0]);
    numbers.push_back(1.0 + static_cast<double>(h));
    values.insert(values.end(), row.begin(), row.end());
  }
  tensors.push_back({tensor, {heads, n}, values});
  return {{"largest", largest},
          {"rank_0.99", numbers},
          {"stable_rank", numbers},
          {"entropy_rank", numbers},
          {"participation_ratio", numbers},
          {"condition_number", numbers},
          {"energy_lost", {{"2", numbers}}}};
}

void TinyRun::add_layer(int layer, int offsets) {
  const std::string prefix = "layers." + std::to_string(layer) + ".";
  Json maps = Json::object();
  maps["Q"] = {{"shape", {8, 4}},
               {"heads", add_heads(prefix + "Q.heads", 3, 4)},
               {"random", {{"rank_0.99", 4}}}};
  Json stack = {{"shape", {12, 8}},
                {"largest", 1.0},
                {"rank_0.99", 5},
                {"stable_rank", 2.0},
                {"entropy_rank", 3.0},
                {"participation_ratio", 3.0},
                {"condition_number", nullptr},
                {"energy_lost", {{"2", 0.25}}},
                {"random", {{"rank_0.99", 6}}}};
  maps["O"] = {{"stack", stack}};
  tensors.push_back({prefix + "O.stack", {6}, {1.0, 0.9, 0.5, 0.25, 0.125, 0.0}});
  for (int offset = 0; offset < offsets; ++offset) {
    const std::string name = "QK@" + std::to_string(offset);
    maps[name] = {{"shape", {8, 8}}, {"heads", add_heads(prefix + name + ".heads", 3, 2)}};
  }
  summary["layers"].push_back({{"layer", layer}, {"notes", Json::array()}, {"maps", maps}});
}

TinyRun::Tensor& TinyRun::tensor(const std::string& name) {
  const auto found = std::find_if(tensors.begin(), tensors.end(),
                                  [&](const Tensor& one) { return one.name == name; });
  if (found == tensors.end()) throw std::runtime_error("no tensor " + name);
  return *found;
}

void TinyRun::write(const fs::path& folder) const {
  fs::create_directories(folder);
  std::ofstream(folder / "summary.json") << summary.dump();
  std::vector<SafetensorsWriter::Entry> entries;
  for (const Tensor& one : tensors) entries.push_back({one.name, DType::F64, one.shape});
  SafetensorsWriter writer(folder / "spectra.safetensors", entries);
  for (const Tensor& one : tensors) {
    writer.append(one.name, one.values.data(), one.values.size() * sizeof(double));
  }
  writer.finish();
}

std::vector<std::uint8_t> unpack_chunk(const std::string& text) {
  std::vector<std::uint8_t> packed;
  std::uint32_t bits = 0;
  int have = 0;
  for (const char c : text) {
    const std::string digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const auto digit = digits.find(c);
    if (digit == std::string::npos) break;
    bits = bits << 6 | static_cast<std::uint32_t>(digit);
    have += 6;
    if (have >= 8) {
      have -= 8;
      packed.push_back(static_cast<std::uint8_t>(bits >> have));
    }
  }
  z_stream stream = {};
  if (inflateInit2(&stream, 15 + 16) != Z_OK) throw std::runtime_error("zlib");
  std::vector<std::uint8_t> out(1 << 20);
  stream.next_in = packed.data();
  stream.avail_in = static_cast<uInt>(packed.size());
  stream.next_out = out.data();
  stream.avail_out = static_cast<uInt>(out.size());
  const int status = inflate(&stream, Z_FINISH);
  out.resize(stream.total_out);
  inflateEnd(&stream);
  if (status != Z_STREAM_END) throw std::runtime_error("not one whole gzip member");
  return out;
}

}  // namespace subspace::testing
