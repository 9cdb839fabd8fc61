#include "spectrum/result.h"

#include <cmath>

#include "base/error.h"
#include "spectrum/metrics.h"
#include "spectrum/random_matrix.h"

namespace subspace {
namespace fs = std::filesystem;
namespace {

std::string rank_name(double tau) { return fmt::format("rank_{}", tau); }

Json finite_or_null(double value) { return std::isfinite(value) ? Json(value) : Json(nullptr); }

/// Calls set(name, value) for every metric, in the order of the files.
template <typename Set>
void for_each_metric(std::span<const double> values, Set set) {
  const auto ranks = stated_ranks(values.size());
  // A marked head: no metric has a value.
  const bool marked = !values.empty() && std::isnan(values[0]);
  const Metrics m = spectrum_metrics(marked ? values.first(0) : values, kTaus, ranks);
  auto set_or_null = [&](const std::string& name, Json value) {
    set(name, marked ? Json(nullptr) : std::move(value));
  };
  set_or_null("largest", Json(m.largest));
  for (std::size_t t = 0; t < kTaus.size(); ++t) {
    set_or_null(rank_name(kTaus[t]), Json(m.effective_rank[t]));
  }
  set_or_null("stable_rank", Json(m.stable_rank));
  set_or_null("entropy_rank", Json(m.entropy_rank));
  set_or_null("participation_ratio", Json(m.participation_ratio));
  set_or_null("condition_number", finite_or_null(m.condition_number));
  for (std::size_t i = 0; i < ranks.size(); ++i) {
    set_or_null("energy_lost/" + std::to_string(ranks[i]), Json(m.energy_lost[i]));
  }
}

/// The place of a metric in an object: "energy_lost/16" is object["energy_lost"]["16"].
Json& place(Json& object, const std::string& name) {
  const auto slash = name.find('/');
  if (slash == std::string::npos) return object[name];
  return object[name.substr(0, slash)][name.substr(slash + 1)];
}

Json scalars(std::span<const double> values) {
  Json object = Json::object();
  for_each_metric(
      values, [&](const std::string& name, Json value) { place(object, name) = std::move(value); });
  return object;
}

std::span<const double> row(const at::Tensor& values, std::int64_t index) {
  const std::int64_t n = values.size(-1);
  return {values.data_ptr<double>() + index * n, static_cast<std::size_t>(n)};
}

std::string tensor_name(std::int64_t layer, const MapSpectra& s, const char* kind) {
  return fmt::format("layers.{}.{}.{}", layer, s.map, kind);
}

}  // namespace

std::vector<std::int64_t> stated_ranks(std::size_t n) {
  const auto below = static_cast<std::int64_t>(n);
  std::vector<std::int64_t> ranks;
  for (std::int64_t r = 1; r < below; r *= 2) {
    ranks.push_back(r);
    if (r >= 64 && r / 2 * 3 < below) ranks.push_back(r / 2 * 3);
  }
  return ranks;
}

const std::vector<double>& RandomSpectra::of(const std::vector<std::int64_t>& chain) {
  auto found = known_.find(chain);
  if (found == known_.end()) found = known_.emplace(chain, random_spectrum(chain)).first;
  return found->second;
}

Json layer_json(std::int64_t layer, const std::vector<MapSpectra>& spectra, RandomSpectra& random) {
  Json maps = Json::object();
  // A product's spectrum holds only the values that can differ from zero; so does chance's.
  auto chance = [&](const std::vector<std::int64_t>& chain, std::int64_t n,
                    std::int64_t blocks = 1) {
    std::vector<double> values;
    for (const double value : random.of(chain)) {
      values.insert(values.end(), static_cast<std::size_t>(blocks), value);
    }
    return scalars(std::span(values).first(std::min(values.size(), static_cast<std::size_t>(n))));
  };
  for (const MapSpectra& s : spectra) {
    Json map = Json::object();
    if (s.heads.defined()) {
      map["shape"] = s.shape;
      Json columns = Json::object();
      for (std::int64_t head = 0; head < s.heads.size(0); ++head) {
        for_each_metric(row(s.heads, head), [&](const std::string& name, Json value) {
          place(columns, name).push_back(std::move(value));
        });
      }
      map["heads"] = std::move(columns);
      map["random"] = chance(s.chain, s.heads.size(1));
    }
    if (s.stack.defined()) {
      Json stack = Json::object();
      stack["shape"] = s.stack_shape;
      stack.update(scalars(row(s.stack, 0)));
      if (s.stack_blocks > 1) stack["blocks"] = s.stack_blocks;
      stack["random"] = chance(s.stack_chain, s.stack.size(0), s.stack_blocks);
      map["stack"] = std::move(stack);
    }
    maps[s.map] = std::move(map);
  }
  Json entry = Json::object();
  entry["layer"] = layer;
  entry["notes"] = Json::array();
  entry["maps"] = std::move(maps);
  return entry;
}

void write_layer_values(const fs::path& path, std::int64_t layer,
                        const std::vector<MapSpectra>& spectra) {
  std::vector<SafetensorsWriter::Entry> entries;
  std::vector<at::Tensor> values;
  for (const MapSpectra& s : spectra) {
    if (s.heads.defined()) {
      entries.push_back({tensor_name(layer, s, "heads"), DType::F64, s.heads.sizes().vec()});
      values.push_back(s.heads);
    }
    if (s.stack.defined()) {
      entries.push_back({tensor_name(layer, s, "stack"), DType::F64, s.stack.sizes().vec()});
      values.push_back(s.stack);
    }
  }
  SafetensorsWriter writer(path, entries);
  for (std::size_t i = 0; i < entries.size(); ++i) {
    writer.append(entries[i].name, values[i].data_ptr<double>(),
                  static_cast<std::size_t>(values[i].numel()) * sizeof(double));
  }
  writer.finish();
}

void join_values(const std::vector<fs::path>& parts, const fs::path& out) {
  std::vector<SafetensorsWriter::Entry> entries;
  std::vector<std::unique_ptr<SafetensorsFile>> files;
  std::vector<std::size_t> from;
  for (const fs::path& part : parts) {
    files.push_back(std::make_unique<SafetensorsFile>(part));
    for (const auto& [name, info] : files.back()->header().tensors) {
      entries.push_back({name, info.dtype, info.shape});
      from.push_back(files.size() - 1);
    }
  }
  SafetensorsWriter writer(out, entries);
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const auto bytes = files[from[i]]->bytes(entries[i].name);
    writer.append(entries[i].name, bytes.data(), bytes.size());
  }
  writer.finish();
}

std::string ranks_csv(const Json& layers) {
  std::string csv =
      "layer,map,kind,index,rows,cols,largest,rank_0.99,rank_0.999,stable_rank,entropy_rank,"
      "participation_ratio,condition_number,random_rank_0.99,random_rank_0.999,"
      "random_stable_rank,random_entropy_rank,random_participation_ratio\n";
  const char* columns[] = {"largest",      "rank_0.99",           "rank_0.999",      "stable_rank",
                           "entropy_rank", "participation_ratio", "condition_number"};
  const char* chance[] = {"rank_0.99", "rank_0.999", "stable_rank", "entropy_rank",
                          "participation_ratio"};
  for (const Json& layer : layers) {
    for (const auto& [map, entry] : layer.at("maps").items()) {
      auto line = [&](const char* kind, std::int64_t index, const Json& shape, auto value,
                      const Json& random) {
        csv += fmt::format("{},{},{},{},{},{}", layer.at("layer").get<std::int64_t>(), map, kind,
                           index, shape[0].get<std::int64_t>(), shape[1].get<std::int64_t>());
        const bool marked = value("largest").is_null();
        for (const char* column : columns) {
          const Json cell = value(column);
          csv += fmt::format(",{}", cell.is_null() ? (marked ? "" : "inf") : cell.dump());
        }
        for (const char* column : chance) csv += fmt::format(",{}", random.at(column).dump());
        csv += "\n";
      };
      if (entry.contains("heads")) {
        const Json& heads = entry.at("heads");
        for (std::size_t i = 0; i < heads.at("largest").size(); ++i) {
          line(
              "head", static_cast<std::int64_t>(i), entry.at("shape"),
              [&](const char* column) { return heads.at(column).at(i); }, entry.at("random"));
        }
      }
      if (entry.contains("stack")) {
        const Json& stack = entry.at("stack");
        line(
            "stack", 0, stack.at("shape"), [&](const char* column) { return stack.at(column); },
            stack.at("random"));
      }
    }
  }
  return csv;
}

}  // namespace subspace
