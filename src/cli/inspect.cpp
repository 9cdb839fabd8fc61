#include <fmt/ranges.h>

#include <algorithm>
#include <cstdio>
#include <optional>
#include <set>

#include "attention/family.h"
#include "base/error.h"
#include "base/progress.h"
#include "cli/commands.h"

namespace subspace {
namespace {

/// compressed-tensors leaves what its ignore list holds as it was, in the released INT4 checkpoints
/// all of attention: says so, and how that is stored. (A packed attention tensor is an error.)
std::optional<std::string> spared_attention(const Json& model_config,
                                            const std::map<std::string, std::uint64_t>& dtypes) {
  const Fields config(model_config, "config.json");
  auto quantization = config.object_if("quantization_config");
  if (!quantization && config.has("text_config")) {
    quantization = config.object("text_config").object_if("quantization_config");
  }
  if (!quantization || quantization->string_or("quant_method", "") != "compressed-tensors" ||
      dtypes.contains("F8_E4M3")) {
    return std::nullopt;
  }
  std::vector<std::string> kinds;
  if (const auto groups = quantization->object_if("config_groups")) {
    for (const auto& [name, group] : groups->json().items()) {
      if (!group.is_object()) continue;
      const auto weights = Fields(group, groups->where() + ": " + name).object_if("weights");
      if (!weights) continue;
      kinds.push_back(fmt::format("{}{}", weights->string_or("type", "int"),
                                  weights->positive_int_or("num_bits", 8)));
    }
  }
  std::vector<std::string> stored;
  for (const auto& [dtype, bytes] : dtypes) stored.push_back(dtype);
  return fmt::format(
      "weights are quantised by compressed-tensors ({}), attention is not: it is stored as {} and "
      "read as that",
      kinds.empty() ? "no group named" : fmt::format("{}", fmt::join(kinds, ", ")),
      fmt::join(stored, ", "));
}

/// Everything that configuration, index and headers tell; no weight is read.
Json inspect(const std::string& model) {
  const Checkpoint checkpoint(resolve_model(model));
  const auto family = open_family(checkpoint);
  const ModelShape& shape = family->shape();
  std::set<std::string> seen;
  std::map<std::string, std::uint64_t> bytes_by_dtype;
  std::uint64_t bytes = 0;
  Json tensors = Json::array();
  for (std::int64_t layer = 0; layer < shape.layers + shape.extra_layers; ++layer) {
    for (const auto& needed : family->needed(layer)) {
      const TensorInfo& info = checkpoint.info(needed.name);
      if (info.shape != needed.shape) {
        fail(ErrorCode::InvalidShape, "{}: tensor '{}' has shape {}; expected {} from config.json",
             checkpoint.shard_of(needed.name), needed.name, shape_text(info.shape),
             shape_text(needed.shape));
      }
      if (!seen.insert(needed.name).second) continue;
      tensors.push_back({{"name", needed.name},
                         {"dtype", dtype_name(info.dtype)},
                         {"shape", info.shape},
                         {"layer", layer},
                         {"file", checkpoint.shard_of(needed.name)}});
      bytes += info.bytes();
      bytes_by_dtype[dtype_name(info.dtype)] += info.bytes();
    }
  }
  Json result = Json::object();
  result["model"] = model;
  result["family"] = shape.family;
  result["model_type"] = shape.model_type;
  result["attention"] = shape.attention;
  result["layers"] = shape.layers;
  result["extra_layers"] = shape.extra_layers;
  result["hidden_size"] = shape.hidden_size;
  result["heads"] = shape.heads;
  result["kv_groups"] = shape.kv_groups;
  result["dims"] = shape.dims;
  result["dtypes"] = bytes_by_dtype;
  result["bytes_needed"] = bytes;
  result["bytes_in_checkpoint"] = checkpoint.total_bytes();
  result["shards"] = checkpoint.shards().size();
  result["notes"] = shape.notes;
  if (const auto note = spared_attention(checkpoint.config(), bytes_by_dtype)) {
    result["notes"].push_back(*note);
  }
  result["tensors"] = std::move(tensors);
  return result;
}

void print_model(const Json& r) {
  auto text = [&](const char* key) {
    return r.at(key).is_string() ? r.at(key).get<std::string>() : r.at(key).dump();
  };
  auto line = [](const char* name, const std::string& value) {
    std::printf("%-16s %s\n", name, value.c_str());
  };
  line("model", text("model"));
  line("family", text("family") + " (model_type " + text("model_type") + ")");
  line("attention", text("attention") + ", " + text("heads") + " heads, " + text("kv_groups") +
                        " key/value heads");
  const bool more = r.at("extra_layers") > 0;
  line("layers", text("layers") + (more ? " and " + text("extra_layers") + " behind them" : ""));
  line("width", text("hidden_size"));
  for (const auto& [name, value] : r.at("dims").items()) line(name.c_str(), value.dump());
  for (const auto& [dtype, bytes] : r.at("dtypes").items()) {
    line("stored as", dtype + ", " + format_bytes(bytes.get<std::uint64_t>()));
  }
  line("attention needs",
       fmt::format("{} of {} ({} tensors in {} file(s))",
                   format_bytes(r.at("bytes_needed").get<std::uint64_t>()),
                   format_bytes(r.at("bytes_in_checkpoint").get<std::uint64_t>()),
                   r.at("tensors").size(), r.at("shards").get<std::int64_t>()));
  for (const Json& note : r.at("notes")) line("note", note.get<std::string>());
  std::printf("\n%-64s %-8s %s\n", "tensors of layer 0", "dtype", "shape");
  for (const Json& tensor : r.at("tensors")) {
    if (tensor.at("layer") != 0) break;
    std::printf("%-64s %-8s %s\n", tensor.at("name").get<std::string>().c_str(),
                tensor.at("dtype").get<std::string>().c_str(), tensor.at("shape").dump().c_str());
  }
}

}  // namespace

void add_inspect(CLI::App& app, const GlobalOptions& globals) {
  auto model = std::make_shared<std::string>();
  CLI::App* command = app.add_subcommand(
      "inspect",
      "What a model is, which tensors its attention needs, and how many bytes of how many would "
      "be\n"
      "read. Checks every shape against config.json from the headers; never reads weights.\n\n"
      "  subspace inspect ./DeepSeek-V3\n"
      "  subspace --json inspect org/name | jq .bytes_needed\n\n"
      "'attention needs 11.4 GB of 689 GB' is what `spectra` would read. 'note' lines are what is\n"
      "unusual. The tensors of the first layer are listed; --json lists all.");
  command->add_option("model", *model, "MODEL (see subspace --help)")->required();
  command->callback([model, &globals] {
    const Json result = inspect(*model);
    if (globals.json) {
      std::printf("%s\n", result.dump().c_str());
    } else {
      print_model(result);
    }
  });
}

}  // namespace subspace
