#include "report/run_data.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <set>

#include "base/error.h"

namespace subspace {
namespace {

constexpr std::int64_t kMaxLayers = 100'000;
constexpr std::int64_t kMaxSide = std::int64_t{1} << 40;
// A large model with hundreds of offsets states millions of numbers.
constexpr JsonLimits kSummaryLimits = {.max_bytes = std::size_t{4} << 30, .max_depth = 16};

/// The metrics every row states, apart from the ranks ("rank_<tau>") and energy_lost.
constexpr const char* kPlainMetrics[] = {"largest", "stable_rank", "entropy_rank",
                                         "participation_ratio", "condition_number"};

std::string rank_name(double tau) { return fmt::format("rank_{}", tau); }

const Json& required(const Fields& fields, const std::string& name, const char* expected) {
  if (!fields.has(name)) {
    fail(ErrorCode::NotFound,
         "{}: no field '{}'; expected {}. Was it written by `subspace spectra`?", fields.where(),
         name, expected);
  }
  return fields.json().at(name);
}

float number_or_nan(const Json& value, const std::string& where) {
  if (value.is_null()) return std::numeric_limits<float>::quiet_NaN();
  if (!value.is_number()) {
    fail(ErrorCode::InvalidValue, "{}: found {}; expected a number or null", where,
         value.dump(-1, ' ', true, Json::error_handler_t::replace).substr(0, 80));
  }
  return static_cast<float>(value.get<double>());
}

std::vector<float> column(const Fields& fields, const std::string& name, std::int64_t heads) {
  const Json& list = required(fields, name, "one number or null a head");
  const std::string where = fields.where() + ": " + name;
  if (!list.is_array() || static_cast<std::int64_t>(list.size()) != heads) {
    fail(ErrorCode::InvalidValue, "{}: expected a list of {} values, one a head, found {}", where,
         heads, list.is_array() ? fmt::format("{} values", list.size()) : "no list");
  }
  std::vector<float> values;
  values.reserve(list.size());
  for (const Json& value : list) values.push_back(number_or_nan(value, where));
  return values;
}

/// Scalars under the names of the columns; "random" leaves out what it has no value for.
Json scalars(const Fields& fields, const std::vector<double>& taus, bool complete) {
  Json out = Json::object();
  const auto take = [&](const std::string& name) {
    if (!complete && !fields.has(name)) return;
    const auto found = fields.json().find(name);
    if (found == fields.json().end()) {
      fail(ErrorCode::NotFound, "{}: no field '{}'; expected a number or null", fields.where(),
           name);
    }
    number_or_nan(*found, fields.where() + ": " + name);
    out[name] = *found;
  };
  take(kPlainMetrics[0]);
  for (const double tau : taus) take(rank_name(tau));
  for (std::size_t i = 1; i < std::size(kPlainMetrics); ++i) take(kPlainMetrics[i]);
  if (const auto lost = fields.object_if("energy_lost")) {
    for (const auto& [rank, value] : lost->json().items()) {
      number_or_nan(value, lost->where() + ": " + rank);
      out["energy_lost@" + rank] = value;
    }
  }
  return out;
}

std::pair<std::int64_t, std::int64_t> shape_of(const Fields& fields) {
  const Json& shape = required(fields, "shape", "[rows, columns]");
  const bool right = shape.is_array() && shape.size() == 2 && shape[0].is_number_integer() &&
                     shape[1].is_number_integer();
  const std::int64_t rows = right ? shape[0].get<std::int64_t>() : 0;
  const std::int64_t columns = right ? shape[1].get<std::int64_t>() : 0;
  if (rows < 1 || columns < 1 || rows > kMaxSide || columns > kMaxSide) {
    fail(ErrorCode::InvalidValue, "{}: field 'shape' is {}; expected two positive whole numbers",
         fields.where(), shape.dump(-1, ' ', true, Json::error_handler_t::replace).substr(0, 80));
  }
  return {rows, columns};
}

/// The tensor's info after checking dtype, number of axes and a first axis of `heads`.
const TensorInfo& tensor_of(const SafetensorsFile& spectra, const std::string& name,
                            std::int64_t heads, std::int64_t longest) {
  const auto& tensors = spectra.header().tensors;
  const auto found = tensors.find(name);
  if (found == tensors.end()) {
    fail(ErrorCode::NotFound, "{}: no tensor '{}', which summary.json states",
         spectra.path().string(), name);
  }
  const TensorInfo& info = found->second;
  const bool is_heads = heads > 0;
  const bool shaped =
      is_heads ? info.shape.size() == 2 && info.shape[0] == heads : info.shape.size() == 1;
  if (info.dtype != DType::F64 || !shaped || info.shape.back() < 1 || info.shape.back() > longest) {
    fail(ErrorCode::InvalidShape,
         "{}: tensor '{}' is {} {}; summary.json implies F64 {} with n <= {}",
         spectra.path().string(), name, dtype_name(info.dtype), shape_text(info.shape),
         is_heads ? fmt::format("[{}, n]", heads) : "[n]", longest);
  }
  return info;
}

HeadTable read_heads(const Fields& fields, const std::vector<double>& taus) {
  HeadTable table;
  const Json& largest = required(fields, "largest", "one number or null a head");
  table.heads = largest.is_array() ? static_cast<std::int64_t>(largest.size()) : 0;
  if (table.heads < 1) {
    fail(ErrorCode::InvalidValue, "{}: field 'largest' is no list of one value a head",
         fields.where());
  }
  const auto take = [&](const std::string& name) {
    table.columns.emplace_back(name, column(fields, name, table.heads));
  };
  take(kPlainMetrics[0]);
  for (const double tau : taus) take(rank_name(tau));
  for (std::size_t i = 1; i < std::size(kPlainMetrics); ++i) take(kPlainMetrics[i]);
  if (const auto lost = fields.object_if("energy_lost")) {
    for (const auto& [rank, values] : lost->json().items()) {
      table.columns.emplace_back("energy_lost@" + rank, column(*lost, rank, table.heads));
    }
  }
  return table;
}

MapResult read_map(const std::string& name, const Fields& fields, std::int64_t layer,
                   const std::vector<double>& taus, const SafetensorsFile& spectra) {
  MapResult map;
  map.name = name;
  const std::string prefix = fmt::format("layers.{}.{}.", layer, name);
  if (const auto heads = fields.object_if("heads")) {
    std::tie(map.rows, map.columns) = shape_of(fields);
    map.heads = read_heads(*heads, taus);
    map.heads->tensor = prefix + "heads";
    map.heads->values =
        tensor_of(spectra, map.heads->tensor, map.heads->heads, std::min(map.rows, map.columns))
            .shape[1];
    const auto random = fields.object_if("random");
    map.heads->random = random ? scalars(*random, taus, false) : Json::object();
  }
  if (const auto stack = fields.object_if("stack")) {
    StackMetrics metrics;
    std::tie(metrics.rows, metrics.columns) = shape_of(*stack);
    metrics.blocks = stack->positive_int_or("blocks", 1);
    metrics.metrics = scalars(*stack, taus, true);
    const auto random = stack->object_if("random");
    metrics.random = random ? scalars(*random, taus, false) : Json::object();
    metrics.tensor = prefix + "stack";
    metrics.values =
        tensor_of(spectra, metrics.tensor, 0, std::min(metrics.rows, metrics.columns)).shape[0];
    map.stack = std::move(metrics);
  }
  if (!map.heads && !map.stack) {
    fail(ErrorCode::NotFound, "{}: neither 'heads' nor 'stack'; a map has at least one of them",
         fields.where());
  }
  return map;
}

std::vector<double> read_taus(const Fields& summary) {
  const Json& list = required(summary, "taus", "a list of retained energies");
  std::vector<double> taus;
  for (const Json& tau : list.is_array() ? list : Json::array()) {
    const double value = tau.is_number() ? tau.get<double>() : -1;
    if (!(value > 0 && value < 1)) {
      fail(ErrorCode::InvalidValue, "{}: field 'taus' holds {}; expected numbers between 0 and 1",
           summary.where(), tau.dump().substr(0, 80));
    }
    taus.push_back(value);
  }
  if (taus.empty()) {
    fail(ErrorCode::InvalidValue, "{}: field 'taus' names no retained energy", summary.where());
  }
  return taus;
}

/// What the page's header shows, with the fields it relies on checked.
Json read_facts(const Fields& summary) {
  const Fields model = summary.object("model");
  model.string("name");
  model.string("family");
  model.string("attention");
  model.positive_int("layers");
  model.positive_int("hidden_size");
  model.positive_int("heads");
  model.positive_int("kv_groups");
  summary.object("conventions");
  summary.object("program");
  Json facts = Json::object();
  for (const auto& [name, value] : summary.json().items()) {
    if (name != "layers") facts[name] = value;
  }
  return facts;
}

}  // namespace

Run read_run(const std::filesystem::path& folder) {
  std::error_code status;
  const auto path = folder / "summary.json";
  if (!std::filesystem::exists(path, status)) {
    fail(ErrorCode::NotFound,
         "{}: no summary.json; expected a folder that `subspace spectra MODEL --out {}` has "
         "finished (a run that was interrupted goes on with --resume)",
         folder.string(), folder.string());
  }
  const Json json = read_json_file(path, kSummaryLimits);
  const Fields summary(json, path.string());
  const std::string format = summary.string("format");
  if (format != "subspace-spectra" || summary.int_in("version", 0, INT32_MAX) != 1) {
    fail(ErrorCode::InvalidFormat,
         "{}: format '{}' version {}; this program reads 'subspace-spectra' version 1",
         path.string(), format.substr(0, 80), json.at("version").dump());
  }
  Run run{.folder = folder,
          .facts = read_facts(summary),
          .taus = read_taus(summary),
          .layers = {},
          .spectra = SafetensorsFile(folder / "spectra.safetensors")};

  const Json& layers = required(summary, "layers", "a list of layers");
  if (!layers.is_array() || layers.empty()) {
    fail(ErrorCode::InvalidValue, "{}: field 'layers' holds no layer", path.string());
  }
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const Fields fields(layers[i], fmt::format("{}: layers[{}]", path.string(), i));
    LayerResult layer;
    layer.layer = fields.int_in("layer", 0, kMaxLayers);
    if (!run.layers.empty() && layer.layer <= run.layers.back().layer) {
      fail(ErrorCode::InvalidValue, "{}: layer {} follows layer {}; expected ascending layers",
           fields.where(), layer.layer, run.layers.back().layer);
    }
    if (fields.has("notes")) layer.notes = fields.strings("notes");
    const Fields maps = fields.object("maps");
    for (const auto& [name, value] : maps.json().items()) {
      layer.maps.push_back(read_map(name, Fields(value, fmt::format("{}: {}", maps.where(), name)),
                                    layer.layer, run.taus, run.spectra));
    }
    run.layers.push_back(std::move(layer));
  }
  return run;
}

std::vector<double> read_spectra(const Run& run, const std::string& tensor, std::int64_t row,
                                 bool may_be_marked) {
  const auto bytes = run.spectra.bytes(tensor);
  std::vector<double> values(bytes.size() / sizeof(double));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(double));
  run.spectra.drop(tensor);
  const auto n = static_cast<std::size_t>(row);
  for (std::size_t begin = 0; begin + n <= values.size(); begin += n) {
    bool descending = true;
    bool marked = may_be_marked;
    double previous = std::numeric_limits<double>::max();
    for (std::size_t j = begin; j < begin + n; ++j) {
      descending = descending && values[j] >= 0 && values[j] <= previous;
      marked = marked && std::isnan(values[j]);
      previous = values[j];
    }
    if (!descending && !marked) {
      fail(ErrorCode::InvalidFormat,
           "{}: tensor '{}', row {}: the values are not finite, non-negative and descending; the "
           "file was damaged or not written by `subspace spectra`",
           run.spectra.path().string(), tensor, begin / n);
    }
  }
  return values;
}

}  // namespace subspace
