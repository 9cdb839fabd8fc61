#include "lora/token_words.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <fstream>
#include <optional>

#include "base/error.h"
#include "checkpoint/safetensors.h"

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

/// The input embedding, by the ends of its names in all families.
std::string embedding_name(const Checkpoint& model) {
  for (const char* ending : {"word_embeddings.weight", "embed_tokens.weight", "wte.weight",
                             "tok_embeddings.weight", "embed.weight"}) {
    for (const std::string& name : model.names()) {
      if (name.ends_with(ending) && name.find("vision") == std::string::npos) return name;
    }
  }
  fail(ErrorCode::NotFound, "{}: no input embedding among its tensors", model.folder().string());
}

at::Tensor unit_embedding(const Checkpoint& model, const std::string& name, int threads) {
  const auto& shape = model.info(name).shape;
  if (shape.size() != 2) {
    fail(ErrorCode::InvalidShape, "{}: '{}' has shape {}; expected [tokens, width]",
         model.folder().string(), name, shape_text(shape));
  }
  at::Tensor values = at::empty(shape, at::kDouble);
  model.decode(name, values.data_ptr<double>(), threads);
  values.sub_(values.mean(0, /*keepdim=*/true));
  const at::Tensor norms = values.norm(2, 1, /*keepdim=*/true).clamp_min(1e-30);
  return values.div_(norms).to(at::kFloat);
}

struct Place {
  std::int64_t layer;
  std::string circuit, change;
};

/// layers.<L>.<CIRCUIT>.shared.<change>.directions
std::optional<Place> place_of(const std::string& name) {
  const std::string middle = ".shared.", end = ".directions";
  const auto shared = name.find(middle);
  if (!name.starts_with("layers.") || shared == std::string::npos || !name.ends_with(end)) {
    return std::nullopt;
  }
  const auto dot = name.find('.', 7);
  if (dot >= shared) return std::nullopt;
  const auto change = shared + middle.size();
  return Place{std::atoll(name.substr(7, dot - 7).c_str()), name.substr(dot + 1, shared - dot - 1),
               name.substr(change, name.size() - end.size() - change)};
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

Json token_words(const fs::path& values, const Checkpoint& model, int threads,
                 std::int64_t directions, std::int64_t words) {
  const std::vector<std::string> tokens = read_vocabulary(model.folder());
  const std::string name = embedding_name(model);
  const at::Tensor embedding = unit_embedding(model, name, threads);
  const std::int64_t width = embedding.size(1);
  const at::Tensor random =
      at::randn({kRandomDirections, width}, at::detail::createCPUGenerator(17), at::kFloat);
  const at::Tensor best =
      std::get<0>(at::matmul(random / random.norm(2, 1, true), embedding.t()).max(1));
  Json result = {{"random_cosine", best.mean().item<double>()}, {"embedding", name}};
  Json features = Json::array();
  const SafetensorsFile file(values);
  for (const auto& [tensor, info] : file.header().tensors) {
    const auto place = place_of(tensor);
    if (!place || info.dtype != DType::F64 || info.shape.size() != 2 || info.shape[1] != width) {
      continue;
    }
    at::Tensor rows = at::empty(info.shape, at::kDouble);
    file.read(info, 0, rows.data_ptr<double>(), info.bytes());
    const std::int64_t count = std::min(directions, info.shape[0]);
    const at::Tensor cosines = at::matmul(rows.narrow(0, 0, count).to(at::kFloat), embedding.t());
    for (std::int64_t j = 0; j < count; ++j) {
      features.push_back({{"layer", place->layer},
                          {"circuit", place->circuit},
                          {"change", place->change},
                          {"direction", j},
                          {"along", listed(cosines[j], tokens, words, true)},
                          {"against", listed(cosines[j], tokens, words, false)}});
    }
  }
  if (features.empty()) {
    fail(ErrorCode::NotFound,
         "{}: no shared directions of width {} in it; `lora heads` writes them", values.string(),
         width);
  }
  result["features"] = std::move(features);
  return result;
}

}  // namespace subspace
