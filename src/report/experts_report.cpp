#include "report/experts_report.h"

#include <algorithm>
#include <optional>

#include "base/error.h"
#include "checkpoint/safetensors.h"
#include "report/pack.h"
#include "report/page.h"

namespace subspace {
namespace {

namespace fs = std::filesystem;

/// In the order in which they are joined to one script: each uses only what stands before it.
const std::vector<const char*> kExpertsScripts = {
    "chunks.js",         "selection.js",     "stats.js",           "experts_data.js",
    "theme.js",          "dom.js",           "figure.js",          "experts_use.js",
    "experts_tokens.js", "experts_shape.js", "experts_between.js", "experts_tables.js",
    "experts_main.js",
};

const Fields& format_of(const Fields& fields) {
  if (fields.string("format") != "subspace-experts" || fields.int_in("version", 1, 1) != 1) {
    fail(ErrorCode::InvalidFormat,
         "{}: no \"subspace-experts\" of version 1; was it written by `subspace ethos inspect`?",
         fields.where());
  }
  return fields;
}

/// Lists of numbers, all of one length, which the figures walk through together.
void check_columns(const Fields& fields, const std::vector<const char*>& names) {
  std::size_t length = 0;
  for (const char* name : names) {
    const auto found = fields.json().find(name);
    const bool list = found != fields.json().end() && found->is_array() &&
                      std::all_of(found->begin(), found->end(),
                                  [](const Json& value) { return value.is_number(); });
    if (!list) {
      fail(ErrorCode::InvalidFormat, "{}: '{}' is no list of numbers", fields.where(), name);
    }
    if (name == names.front()) length = found->size();
    if (found->size() != length) {
      fail(ErrorCode::InvalidFormat, "{}: '{}' has {} entries; expected {} as '{}' has",
           fields.where(), name, found->size(), length, names.front());
    }
  }
}

/// The entries of a list of objects.
std::vector<Fields> objects_of(const Fields& fields, const char* name) {
  const auto found = fields.json().find(name);
  if (found == fields.json().end() || !found->is_array()) {
    fail(ErrorCode::InvalidFormat, "{}: no list '{}'", fields.where(), name);
  }
  std::vector<Fields> out;
  for (std::size_t i = 0; i < found->size(); ++i) {
    out.emplace_back((*found)[i], fmt::format("{}: {}[{}]", fields.where(), name, i));
  }
  return out;
}

void check_numbers(const Fields& fields, const std::vector<const char*>& names) {
  for (const char* name : names) fields.number(name);
}

void check_use(const Fields& use) {
  check_numbers(use, {"choices", "used", "entropy", "kl_uniform", "top_percent", "largest"});
  check_numbers(use.object("chance"), {"used", "entropy", "kl_uniform"});
  check_columns(use.object("curve"), {"rank", "share", "chance"});
  check_columns(use.object("histogram"), {"from", "to", "experts", "chance"});
}

void check_tokens(const Fields& tokens) {
  check_numbers(tokens, {"information", "chance", "tokens"});
  for (const Fields& expert : objects_of(tokens, "experts")) {
    expert.string("why");
    check_numbers(expert, {"expert", "choices", "particular"});
    for (const Fields& token : objects_of(expert, "tokens")) {
      token.string("token");
      check_numbers(token, {"count", "share", "lift"});
    }
  }
}

void check_layer(const Fields& layer) {
  layer.int_in("layer", 0, INT64_MAX);
  if (const auto usage = layer.object_if("usage")) {
    check_use(usage->object("all"));
    if (usage->has("heads")) {
      for (const Fields& head : objects_of(*usage, "heads")) check_use(head);
    }
  }
  if (const auto tokens = layer.object_if("tokens")) check_tokens(*tokens);
  if (const auto clusters = layer.object_if("clusters")) {
    check_columns(*clusters, {"clusters", "explained", "chance"});
    check_columns(*clusters, {"axes"});
    check_columns(clusters->object("map"), {"x", "y", "group", "expert"});
    for (const Fields& group : objects_of(*clusters, "groups")) check_numbers(group, {"experts"});
  }
  if (const auto found = layer.object_if("neighbours")) {
    check_columns(*found, {"cosines", "chance"});
    check_numbers(*found, {"shared_key", "shared_key_by_chance"});
    for (const Fields& one : objects_of(*found, "examples")) {
      for (const Fields& other : objects_of(one, "nearest"))
        check_numbers(other, {"expert", "cosine"});
    }
  }
  if (const auto found = layer.object_if("interpolation")) {
    check_columns(*found, {"t"});
    for (const Fields& pair : objects_of(*found, "pairs")) {
      pair.string("kind");
      check_columns(pair, {"to_a", "to_b", "length", "departure"});
      pair.object("midpoint").boolean("end");
    }
  }
}

/// Every singular value of the layer's maps, as many digits as are drawn.
void add_spectra(Json& layer, const SafetensorsFile& file) {
  for (auto& [map, entry] : layer.at("maps").items()) {
    const std::string name =
        fmt::format("layers.{}.{}.stack", layer.at("layer").get<std::int64_t>(), map);
    const TensorInfo& info = file.info(name);
    if (info.dtype != DType::F64 || info.shape.size() != 1) {
      fail(ErrorCode::InvalidShape, "{}: tensor '{}' is {} {}; expected F64 [n]",
           file.path().string(), name, dtype_name(info.dtype), shape_text(info.shape));
    }
    std::vector<double> values(static_cast<std::size_t>(info.elements()));
    if (!values.empty()) file.read(info, 0, values.data(), info.bytes());
    for (double& value : values) value = std::stod(fmt::format("{:.6g}", value));
    entry["values"] = values;
  }
}

std::size_t packed_layer(const Json& layer, Chunks& chunks) {
  const std::string text = layer.dump(-1, ' ', true, Json::error_handler_t::replace);
  chunks.texts.push_back(
      base64(gzip({reinterpret_cast<const std::uint8_t*>(text.data()), text.size()})));
  return chunks.texts.size() - 1;
}

}  // namespace

void write_experts_report(const fs::path& folder, const fs::path& out,
                          const ReportOptions& options) {
  const fs::path path = folder / "experts.json";
  const Json json = read_json_file(path);
  const Fields fields(json, path.string());
  format_of(fields);
  const std::string kind = fields.object("model").string("feed_forward");
  const std::vector<Fields> layers = objects_of(fields, "layers");
  if (layers.empty()) fail(ErrorCode::InvalidFormat, "{}: no layer in it", path.string());
  for (const Fields& layer : layers) check_layer(layer);
  for (const Fields& one : objects_of(fields, "absent")) {
    one.string("what");
    one.string("why");
  }
  const Plotly plotly = plotly_for(options);
  Page page{.eyebrow = "Experts",
            .title = fmt::format("Experts: {}", fields.string("run")),
            .data = {},
            .chunks = {},
            .scripts = kExpertsScripts};
  std::optional<SafetensorsFile> spectra;
  Json numbers = Json::array();
  for (const Fields& layer : layers) {
    Json whole = layer.json();
    if (layer.object_if("maps")) {
      if (!spectra) spectra.emplace(folder / "spectra.safetensors");
      add_spectra(whole, *spectra);
    }
    numbers.push_back({{"layer", whole.at("layer")}, {"chunk", packed_layer(whole, page.chunks)}});
  }
  page.data = json;
  page.data["layers"] = std::move(numbers);
  write_page(page, out, plotly, options);
}

}  // namespace subspace
