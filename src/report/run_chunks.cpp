#include "report/run_chunks.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <set>
#include <span>
#include <utility>

#include "report/pack.h"

namespace subspace {
namespace {

constexpr std::size_t kFullOffsets = 17;

std::int64_t add_chunk(Chunks& chunks, const Bytes& bytes) {
  chunks.texts.push_back(base64(gzip(bytes)));
  return static_cast<std::int64_t>(chunks.texts.size()) - 1;
}

bool is_offset(const std::string& map) { return map.find('@') != std::string::npos; }

const MapResult* find_map(const LayerResult& layer, const std::string& name) {
  for (const MapResult& map : layer.maps) {
    if (map.name == name) return &map;
  }
  return nullptr;
}

/// Every map of the run in the order in which layers first name them.
std::vector<std::string> map_names(const Run& run) {
  std::vector<std::string> names;
  std::set<std::string> seen;
  for (const LayerResult& layer : run.layers) {
    for (const MapResult& map : layer.maps) {
      if (seen.insert(map.name).second) names.push_back(map.name);
    }
  }
  return names;
}

/// The offset maps that keep all their metrics.
std::set<std::string> full_offsets(const std::vector<std::string>& names) {
  std::vector<std::string> offsets;
  std::copy_if(names.begin(), names.end(), std::back_inserter(offsets), is_offset);
  if (offsets.size() <= kFullOffsets) return {offsets.begin(), offsets.end()};
  std::set<std::string> kept;
  for (std::size_t i = 0; i < kFullOffsets; ++i) {
    kept.insert(offsets[i * (offsets.size() - 1) / (kFullOffsets - 1)]);
  }
  return kept;
}

Json pack_head_metrics(const Run& run, const std::string& name, bool ranks_only, Chunks& chunks) {
  std::int64_t most_heads = 0;
  std::vector<std::string> columns;
  for (const LayerResult& layer : run.layers) {
    const MapResult* map = find_map(layer, name);
    if (!map || !map->heads) continue;
    most_heads = std::max(most_heads, map->heads->heads);
    for (const auto& [column, values] : map->heads->columns) {
      const bool keep = !ranks_only || column.starts_with("rank_");
      if (keep && std::find(columns.begin(), columns.end(), column) == columns.end()) {
        columns.push_back(column);
      }
    }
  }
  if (most_heads == 0) return nullptr;
  std::vector<float> planes;
  for (const std::string& wanted : columns) {
    for (const LayerResult& layer : run.layers) {
      const auto row = planes.size();
      planes.resize(row + static_cast<std::size_t>(most_heads),
                    std::numeric_limits<float>::quiet_NaN());
      const MapResult* map = find_map(layer, name);
      if (!map || !map->heads) continue;
      for (const auto& [column, values] : map->heads->columns) {
        if (column == wanted) {
          std::copy(values.begin(), values.end(),
                    planes.begin() + static_cast<std::ptrdiff_t>(row));
        }
      }
    }
  }
  Bytes bytes;
  append_float_planes(bytes, planes);
  return Json{{"chunk", add_chunk(chunks, bytes)}, {"heads", most_heads}, {"columns", columns}};
}

Json pack_stacks(const Run& run, const std::string& name, Chunks& chunks) {
  std::vector<float> values;
  for (const LayerResult& layer : run.layers) {
    const MapResult* map = find_map(layer, name);
    if (!map || !map->stack) continue;
    const auto spectrum = read_spectra(run, map->stack->tensor, map->stack->values, false);
    for (const double value : spectrum) values.push_back(static_cast<float>(value));
  }
  if (values.empty()) return nullptr;
  Bytes bytes;
  append_spectrum_planes(bytes, values);
  return Json{{"chunk", add_chunk(chunks, bytes)}};
}

/// The drawn spectra of every map of the layer but the later offsets.
Json pack_layer(const Run& run, const LayerResult& layer, Chunks& chunks) {
  Bytes bytes;
  Json maps = Json::array();
  bool offset_drawn = false;
  for (const MapResult& map : layer.maps) {
    if (!map.heads) continue;
    if (is_offset(map.name)) {
      if (offset_drawn) continue;
      offset_drawn = true;
    }
    const std::int64_t n = map.heads->values;
    const auto values = read_spectra(run, map.heads->tensor, n, true);
    const auto positions = sample_positions(n);
    std::vector<float> largest;
    for (std::size_t h = 0; h < values.size(); h += static_cast<std::size_t>(n)) {
      largest.push_back(static_cast<float>(values[h]));
    }
    append_float_planes(bytes, largest);
    for (std::size_t h = 0; h < values.size(); h += static_cast<std::size_t>(n)) {
      if (std::isnan(values[h])) continue;
      append_drawn_spectrum(bytes, std::span(values).subspan(h, static_cast<std::size_t>(n)),
                            positions);
    }
    maps.push_back(map.name);
  }
  if (maps.empty()) return nullptr;
  return Json{{"chunk", add_chunk(chunks, bytes)}, {"maps", maps}};
}

/// Offsets differ in their values only, so the first stands for the others' shape and random value.
Json describe_layer(const LayerResult& layer) {
  Json maps = Json::object();
  bool offset_described = false;
  for (const MapResult& map : layer.maps) {
    if (is_offset(map.name) && std::exchange(offset_described, true)) continue;
    Json entry = Json::object();
    if (map.heads) {
      entry["heads"] = {{"shape", {map.rows, map.columns}},
                        {"count", map.heads->heads},
                        {"values", map.heads->values},
                        {"random", map.heads->random}};
    }
    if (map.stack) {
      entry["stack"] = {{"shape", {map.stack->rows, map.stack->columns}},
                        {"values", map.stack->values},
                        {"metrics", map.stack->metrics},
                        {"random", map.stack->random}};
      if (map.stack->blocks > 1) entry["stack"]["blocks"] = map.stack->blocks;
    }
    maps[map.name] = entry;
  }
  return Json{{"layer", layer.layer}, {"notes", layer.notes}, {"maps", maps}};
}

}  // namespace

Json pack_run(const Run& run, Chunks& chunks) {
  Json out = {{"facts", run.facts}, {"taus", run.taus}};
  Json samples = Json::object();
  Json layers = Json::array();
  for (const LayerResult& layer : run.layers) {
    Json entry = describe_layer(layer);
    entry["drawn"] = pack_layer(run, layer, chunks);
    for (const MapResult& map : layer.maps) {
      if (!map.heads) continue;
      samples[std::to_string(map.heads->values)] = sample_positions(map.heads->values);
    }
    layers.push_back(std::move(entry));
  }
  const auto names = map_names(run);
  const auto full = full_offsets(names);
  Json maps = Json::object();
  for (const std::string& name : names) {
    maps[name] = {
        {"heads", pack_head_metrics(run, name, is_offset(name) && !full.contains(name), chunks)},
        {"stack", pack_stacks(run, name, chunks)}};
  }
  out["samples"] = samples;
  out["maps"] = maps;
  out["layers"] = layers;
  return out;
}

}  // namespace subspace
