#include "lora/token_words.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <fstream>
#include <optional>
#include <regex>

#include "base/error.h"
#include "checkpoint/safetensors.h"
#include "lora/embeddings.h"
#include "lora/wiring.h"

namespace subspace {
namespace fs = std::filesystem;
namespace {

constexpr std::int64_t kMostTokens = 1 << 24;
constexpr std::int64_t kRandomDirections = 32;

void put(std::vector<std::string>& tokens, const SortedJson& id, const std::string& token,
         const std::string& where) {
  if (!id.is_number_integer() || id.get<std::int64_t>() < 0 ||
      id.get<std::int64_t>() >= kMostTokens) {
    fail(ErrorCode::InvalidValue, "{}: token '{}' has id {}; expected a whole number below {}",
         where, token.substr(0, 40), id.dump().substr(0, 40), kMostTokens);
  }
  const auto at = id.get<std::size_t>();
  if (tokens.size() <= at) tokens.resize(at + 1);
  tokens[at] = token;
}

void put_all(std::vector<std::string>& tokens, const SortedJson& vocabulary,
             const std::string& where) {
  if (vocabulary.is_object()) {  // WordPiece, BPE: token -> id
    for (const auto& [token, id] : vocabulary.items()) put(tokens, id, token, where);
  } else if (vocabulary.is_array()) {  // Unigram: [token, score], the id is the place
    for (const SortedJson& one : vocabulary) {
      const bool right = one.is_array() && !one.empty() && one[0].is_string();
      if (!right)
        fail(ErrorCode::InvalidFormat, "{}: a vocabulary entry is no [token, score]", where);
      tokens.push_back(one[0].get<std::string>());
    }
  } else {
    fail(ErrorCode::InvalidFormat, "{}: no vocabulary in it", where);
  }
}

std::vector<std::string> from_tokenizer(const fs::path& path) {
  const SortedJson json = parse_sorted_json(read_text_file(path), path.string());
  std::vector<std::string> tokens;
  const bool has_model = json.is_object() && json.contains("model") && json["model"].is_object();
  put_all(tokens, has_model ? json["model"].value("vocab", SortedJson()) : SortedJson(),
          path.string());
  if (!json.contains("added_tokens") || !json["added_tokens"].is_array()) return tokens;
  for (const SortedJson& added : json["added_tokens"]) {
    if (!added.is_object() || !added.contains("id") || !added.contains("content")) continue;
    if (added["content"].is_string()) {
      put(tokens, added["id"], added["content"].get<std::string>(), path.string());
    }
  }
  return tokens;
}

/// Rows of length one.
at::Tensor unit(const at::Tensor& rows) {
  return rows / rows.norm(2, 1, /*keepdim=*/true).clamp_min(1e-30);
}

/// The mean over random directions of their largest cosine with a row.
double random_cosine(const at::Tensor& rows) {
  const at::Tensor random =
      at::randn({kRandomDirections, rows.size(1)}, at::detail::createCPUGenerator(17), at::kFloat);
  return std::get<0>(at::matmul(unit(random), rows.t()).max(1)).mean().item<double>();
}

/// layers.<L>.<CIRCUIT>.shared.<change>.directions [r, d], or
/// layers.<L>.<CIRCUIT>.vectors.<which>.<left|right> [H, count, d].
struct Place {
  std::int64_t layer = 0;
  std::string circuit, change;  ///< of a shared basis
  std::string which, side;      ///< of a head's vectors
  bool written = false;
};

std::optional<Place> place_of(const std::string& name) {
  static const std::regex shape(
      R"(layers\.(\d{1,9})\.(\w+)\.(?:shared\.(.+)\.directions|vectors\.(\w+)\.(left|right)))");
  std::smatch part;
  if (!std::regex_match(name, part, shape)) return std::nullopt;
  Place place{std::atoll(part[1].str().c_str()), part[2], part[3], part[4], part[5], false};
  // Keys read the residual stream, as queries do; only the output writes to it.
  const bool output = place.change == "o" || place.change.starts_with("o.") ||
                      place.change.starts_with("o_") || place.change.starts_with("output");
  place.written = place.circuit == "VO" && (output || place.side == "right");
  return place;
}

/// "Ġword" of byte-level vocabularies as "▁word", which reads as a space.
std::string shown(std::string token) {
  const std::string from = "\u0120", to = "\u2581";
  for (auto at = token.find(from); at != std::string::npos; at = token.find(from, at + to.size())) {
    token.replace(at, from.size(), to);
  }
  return token;
}

Json listed(const at::Tensor& cosines, const std::vector<std::string>& tokens, std::int64_t count,
            bool largest) {
  const auto [values, ids] = cosines.topk(std::min(count, cosines.size(0)), 0, largest);
  Json out = Json::array();
  for (std::int64_t i = 0; i < values.size(0); ++i) {
    out.push_back({{"token", token_text(tokens, ids[i].item<std::int64_t>())},
                   {"cosine", values[i].item<double>()}});
  }
  return out;
}

}  // namespace

std::vector<std::string> read_vocabulary(const fs::path& folder) {
  std::error_code status;
  if (const fs::path path = folder / "tokenizer.json"; fs::exists(path, status)) {
    return from_tokenizer(path);
  }
  std::vector<std::string> tokens;
  if (const fs::path path = folder / "vocab.txt"; fs::exists(path, status)) {
    std::ifstream stream(path);
    for (std::string line; std::getline(stream, line);) tokens.push_back(line);
    return tokens;
  }
  if (const fs::path path = folder / "vocab.json"; fs::exists(path, status)) {
    put_all(tokens, parse_sorted_json(read_text_file(path), path.string()), path.string());
    return tokens;
  }
  fail(ErrorCode::NotFound,
       "{}: no vocabulary: neither tokenizer.json nor vocab.txt nor vocab.json is in it",
       folder.string());
}

std::string token_text(const std::vector<std::string>& vocabulary, std::int64_t id) {
  const auto place = static_cast<std::size_t>(id);
  const bool named = place < vocabulary.size() && !vocabulary[place].empty();
  return named ? shown(vocabulary[place]) : fmt::format("#{}", id);
}

namespace {

/// Both tables of a model, and what its norms make of directions.
class Words {
 public:
  Words(const Checkpoint& model, const TokenOptions& options)
      : options_(options),
        tokens_(read_vocabulary(model.folder())),
        input_(input_embedding(model, options.threads)),
        output_(output_embedding(model, options.threads)) {
    // All embeddings share their mean.
    input_.rows = unit(input_.rows.sub_(input_.rows.mean(0, /*keepdim=*/true)));
    output_.rows = unit(output_.rows);
  }

  std::int64_t width() const { return input_.rows.size(1); }
  Json facts() const {
    return {
        {"random_cosine", random_cosine(input_.rows)},
        {"embedding", input_.name},
        {"written", {{"random_cosine", random_cosine(output_.rows)}, {"embedding", output_.name}}}};
  }

  /// `rows` [n, d] of one place: {"along", "against"} of each.
  std::vector<Json> of(const at::Tensor& rows, const Place& place) {
    const at::Tensor cosines = at::matmul(unit(in_stream(rows, place)).to(at::kFloat),
                                          (place.written ? output_ : input_).rows.t());
    std::vector<Json> out;
    for (std::int64_t j = 0; j < rows.size(0); ++j) {
      out.push_back({{"along", listed(cosines[j], tokens_, options_.words, true)},
                     {"against", listed(cosines[j], tokens_, options_.words, false)}});
    }
    return out;
  }

 private:
  /// Directions of what a projection reads (heads write) as those of the residual stream.
  at::Tensor in_stream(const at::Tensor& rows, const Place& place) {
    if (!options_.norms) return rows;
    if (!layer_ || layer_->index != place.layer) {
      layer_ = options_.norms(place.layer);
      layer_->index = place.layer;
    }
    if (place.written) return written(rows, layer_->output);
    const Norm& norm = layer_->input;
    if (norm.kind == Norm::Kind::none) return rows;
    const at::Tensor scaled = rows * norm.weight;
    return norm.kind == Norm::Kind::layer ? scaled - scaled.mean(1, /*keepdim=*/true) : scaled;
  }

  const TokenOptions& options_;
  std::vector<std::string> tokens_;
  TokenTable input_, output_;
  std::optional<AttentionLayer> layer_;
};

Json shared_words(const at::Tensor& rows, const Place& place, Words& words) {
  Json out = Json::array();
  std::int64_t direction = 0;
  for (Json& found : words.of(rows, place)) {
    out.push_back({{"layer", place.layer},
                   {"circuit", place.circuit},
                   {"change", place.change},
                   {"direction", direction++}});
    out.back().update(found);
  }
  return out;
}

/// `rows` [H, count, d].
Json head_words(const at::Tensor& rows, const Place& place, Words& words) {
  Json out = Json::array();
  std::int64_t at = 0;
  for (Json& found : words.of(rows.flatten(0, 1), place)) {
    out.push_back({{"layer", place.layer},
                   {"head", at / rows.size(1)},
                   {"circuit", place.circuit},
                   {"which", place.which},
                   {"side", place.side},
                   {"direction", at % rows.size(1)}});
    out.back().update(found);
    ++at;
  }
  return out;
}

void append(Json& list, Json more) {
  for (Json& one : more) list.push_back(std::move(one));
}

}  // namespace

Json token_words(const fs::path& values, const Checkpoint& model, const TokenOptions& options) {
  Words words(model, options);
  Json result = words.facts(), features = Json::array(), heads = Json::array();
  const SafetensorsFile file(values);
  for (const auto& [tensor, info] : file.header().tensors) {
    const auto place = place_of(tensor);
    const std::size_t axes = place && place->change.empty() ? 3 : 2;
    if (!place || info.dtype != DType::F64 || info.shape.size() != axes ||
        info.shape.back() != words.width()) {
      continue;
    }
    at::Tensor rows = at::empty(info.shape, at::kDouble);
    file.read(info, 0, rows.data_ptr<double>(), info.bytes());
    if (axes == 2) {
      const std::int64_t count = std::min(options.directions, info.shape[0]);
      append(features, shared_words(rows.narrow(0, 0, count), *place, words));
    } else {
      append(heads, head_words(rows, *place, words));
    }
  }
  if (features.empty()) {
    fail(ErrorCode::NotFound,
         "{}: no shared directions of width {} in it; `lora heads` writes them", values.string(),
         words.width());
  }
  result["features"] = std::move(features);
  result["heads"] = std::move(heads);
  return result;
}

}  // namespace subspace
