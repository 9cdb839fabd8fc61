#include "report/lora_report.h"

#include <map>

#include "base/error.h"
#include "checkpoint/safetensors.h"
#include "report/pack.h"
#include "report/page.h"

namespace subspace {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kMostLayers = 100'000;
constexpr JsonLimits kLimits = {.max_bytes = std::size_t{2} << 30, .max_depth = 16};

/// In the order in which they are joined to one script: each uses only what stands before it.
const std::vector<const char*> kLoraScripts = {
    "chunks.js",        "selection.js",     "lora_data.js",    "stats.js",        "theme.js",
    "dom.js",           "figure.js",        "lora_parts.js",   "lora_size.js",    "lora_terms.js",
    "lora_features.js", "lora_spectrum.js", "lora_modules.js", "lora_rope.js",    "lora_wiring.js",
    "lora_scores.js",   "lora_causal.js",   "lora_tokens.js",  "lora_compare.js", "lora_summary.js",
    "lora_reading.js",  "lora_glossary.js", "lora_main.js",
};

/// The list `name` of a result file, every entry an object. Throws InvalidFormat otherwise.
const Json& entries(const Json& json, const fs::path& path, const char* name) {
  const Fields fields(json, path.string());
  const auto found = json.find(name);
  if (found == json.end() || !found->is_array()) {
    fail(ErrorCode::InvalidFormat, "{}: no list '{}'; was it written by `subspace lora`?",
         path.string(), name);
  }
  for (std::size_t i = 0; i < found->size(); ++i) {
    Fields((*found)[i], fmt::format("{}: {}[{}]", path.string(), name, i));
  }
  return *found;
}

/// A number, or null where it is not defined.
void check_number(const Fields& fields, const std::string& name) {
  if (fields.has(name)) fields.number(name);
}

void check_head(const Fields& head) {
  head.int_in("layer", 0, kMostLayers);
  head.int_in("head", 0, kMostLayers);
  head.string("circuit");
  for (const char* name : {"rel_fro", "rel_spec", "cos", "gain"}) check_number(head, name);
  for (const auto& [name, term] : head.object("terms").json().items()) {
    const Fields one(term, fmt::format("{}: terms: {}", head.where(), name));
    for (const char* field : {"fro", "share", "energy"}) check_number(one, field);
  }
  if (const auto split = head.object_if("split")) {
    for (const auto& [name, value] : split->json().items()) check_number(*split, name);
  }
}

Json read_heads(const fs::path& path) {
  std::error_code status;
  if (!fs::exists(path, status)) {
    fail(ErrorCode::NotFound,
         "{}: no heads.json; expected a folder that `subspace lora heads --adapter ADAPTER --out "
         "{}` "
         "has written",
         path.parent_path().string(), path.parent_path().string());
  }
  Json json = read_json_file(path, kLimits);
  const Json& heads = entries(json, path, "heads");
  if (heads.empty()) {
    fail(ErrorCode::InvalidValue, "{}: the list 'heads' is empty; the adapter changes no head",
         path.string());
  }
  for (std::size_t i = 0; i < heads.size(); ++i) {
    check_head(Fields(heads[i], fmt::format("{}: heads[{}]", path.string(), i)));
  }
  return json;
}

void check_pair(const Fields& pair) {
  for (const char* end : {"w", "r"}) {
    const Json& at = pair.json().contains(end) ? pair.json().at(end) : Json();
    const bool right =
        at.is_array() && at.size() == 2 && at[0].is_number_integer() && at[1].is_number_integer();
    if (!right) {
      fail(ErrorCode::InvalidValue, "{}: field '{}' is {}; expected [layer, head]", pair.where(),
           end, at.dump().substr(0, 80));
    }
  }
  pair.string("mode");
  for (const char* name : {"S", "S1", "rho", "writer_qk", "q_bh"}) check_number(pair, name);
  for (const char* name : {"S_band", "S1_band"}) {
    if (!pair.json().contains(name)) continue;  // results of earlier versions
    const Json& band = pair.json().at(name);
    const auto end = [](const Json& x) { return x.is_number() || x.is_null(); };
    if (band.is_array() && band.size() == 2 && end(band[0]) && end(band[1])) continue;
    fail(ErrorCode::InvalidValue, "{}: field '{}' is {}; expected [lowest, highest]", pair.where(),
         name, band.dump().substr(0, 80));
  }
}

/// `path` of the adapter that `heads` is of: a folder may hold whole modules of an earlier one.
Json read_modules(const fs::path& path, const Json& heads) {
  Json json = read_json_file(path, kLimits);
  const Json& modules = entries(json, path, "modules");
  for (std::size_t i = 0; i < modules.size(); ++i) {
    const Fields module(modules[i], fmt::format("{}: modules[{}]", path.string(), i));
    module.int_in("layer", 0, kMostLayers);
    module.string("module");
    for (const char* name : {"rel_fro", "rel_spec"}) check_number(module, name);
    for (const char* side : {"output", "input"}) {
      const Json& found = module.object(side).json();
      const auto cosines = found.find("similarity");
      if (cosines != found.end() && cosines->is_array()) continue;
      fail(ErrorCode::InvalidFormat, "{}: no list 'similarity' of the {} side", module.where(),
           side);
    }
  }
  const auto adapter_of = [](const Json& file) {
    const auto model = file.find("model");
    return model == file.end() ? Json() : model->value("adapter", Json());
  };
  if (adapter_of(json) != adapter_of(heads)) {
    fail(ErrorCode::InvalidValue,
         "{} is of the adapter {}, heads.json beside it of {}; run `subspace lora heads --modules "
         "yes` again, or remove it",
         path.string(), adapter_of(json).dump().substr(0, 200),
         adapter_of(heads).dump().substr(0, 200));
  }
  return json;
}

std::size_t pack(const Json& json, Chunks& chunks) {
  const std::string text = json.dump(-1, ' ', true, Json::error_handler_t::replace);
  chunks.texts.push_back(
      base64(gzip({reinterpret_cast<const std::uint8_t*>(text.data()), text.size()})));
  return chunks.texts.size() - 1;
}

std::string name_of(const fs::path& folder) {
  const fs::path whole = fs::path(folder).lexically_normal();
  return (whole.filename().empty() ? whole.parent_path() : whole).filename().string();
}

/// Singular values of all heads, float32, a chunk a layer: {"<layer>": {"chunk", "parts": [[name,
/// heads, values], ..]}} with names such as "QK.base".
Json pack_values(const fs::path& path, Chunks& chunks) {
  const SafetensorsFile file(path);
  std::map<std::string, std::pair<Json, Bytes>> layers;
  for (const auto& [name, info] : file.header().tensors) {
    // layers.<L>.<CIRCUIT>.<base|adapted|delta>; others are not drawn.
    const auto first = name.find('.'), second = name.find('.', first + 1);
    const std::string part = second == std::string::npos ? "" : name.substr(second + 1);
    const bool wanted =
        name.starts_with("layers.") && info.shape.size() == 2 &&
        (part.ends_with(".base") || part.ends_with(".adapted") || part.ends_with(".delta"));
    if (!wanted) continue;
    if (info.dtype != DType::F64) {
      fail(ErrorCode::InvalidFormat, "{}: tensor '{}' is {}; expected F64", path.string(), name,
           dtype_name(info.dtype));
    }
    std::vector<double> values(static_cast<std::size_t>(info.elements()));
    file.read(info, 0, values.data(), values.size() * sizeof(double));
    auto& [parts, bytes] = layers[name.substr(first + 1, second - first - 1)];
    parts.push_back({part, info.shape[0], info.shape[1]});
    append_float_planes(bytes, std::vector<float>(values.begin(), values.end()));
  }
  Json out = Json::object();
  for (auto& [layer, packed] : layers) {
    chunks.texts.push_back(base64(gzip(packed.second)));
    out[layer] = {{"chunk", chunks.texts.size() - 1}, {"parts", packed.first}};
  }
  return out;
}

Json pack_run(const fs::path& folder, Chunks& chunks) {
  Json run = {{"name", name_of(folder)}, {"heads", nullptr},        {"compose", nullptr},
              {"causal", nullptr},       {"rope", nullptr},         {"tokens", nullptr},
              {"modules", nullptr},      {"values", Json::object()}};
  const Json heads = read_heads(folder / "heads.json");
  run["heads"] = pack(heads, chunks);
  std::error_code status;
  if (const fs::path path = folder / "modules.json"; fs::exists(path, status)) {
    run["modules"] = pack(read_modules(path, heads), chunks);
  }
  if (const fs::path path = folder / "compose.json"; fs::exists(path, status)) {
    const Json json = read_json_file(path, kLimits);
    const Json& pairs = entries(json, path, "pairs");
    for (std::size_t i = 0; i < pairs.size(); ++i) {
      check_pair(Fields(pairs[i], fmt::format("{}: pairs[{}]", path.string(), i)));
    }
    run["compose"] = pack(json, chunks);
  }
  if (const fs::path path = folder / "heads.safetensors"; fs::exists(path, status)) {
    run["values"] = pack_values(path, chunks);
  }
  for (const char* name : {"causal", "rope", "tokens"}) {
    const fs::path path = folder / (std::string(name) + ".json");
    if (!fs::exists(path, status)) continue;
    const Json json = read_json_file(path, kLimits);
    Fields(json, path.string());
    run[name] = pack(json, chunks);
  }
  return run;
}

}  // namespace

void write_lora_report(const std::vector<fs::path>& folders, const fs::path& out,
                       const ReportOptions& options) {
  if (folders.empty()) {
    fail(ErrorCode::Usage, "no adapter to report; give one or several folders of `lora heads`");
  }
  const Plotly plotly = plotly_for(options);
  Page page{.eyebrow = "What an adapter does to attention",
            .title = "Adapters: ",
            .data = {},
            .chunks = {},
            .scripts = kLoraScripts};
  Json runs = Json::array();
  for (const fs::path& folder : folders) {
    runs.push_back(pack_run(folder, page.chunks));
    page.title += (runs.size() > 1 ? ", " : "") + name_of(folder);
  }
  page.data = Json{{"runs", std::move(runs)}};
  write_page(page, out, plotly, options);
}

}  // namespace subspace
