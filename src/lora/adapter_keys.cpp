// Names: keys of an adapter's file, and paths of modules against names of a base's tensors.

#include <algorithm>
#include <charconv>
#include <map>
#include <set>

#include "base/error.h"
#include "lora/adapter_config.h"

namespace subspace {
namespace {

using Words = std::vector<std::string>;

Words split(std::string_view text) {
  Words words(1);
  for (const char c : text) {
    if (c == '.') {
      words.emplace_back();
    } else {
      words.back() += c;
    }
  }
  return words;
}

std::string join(const Words& words, std::size_t end) {
  std::string text;
  for (std::size_t i = 0; i < end; ++i) text += (i > 0 ? "." : "") + words[i];
  return text;
}

bool is_number(const std::string& word) {
  return !word.empty() && std::all_of(word.begin(), word.end(),
                                      [](unsigned char c) { return c >= '0' && c <= '9'; });
}

/// What stands behind lora_A and the like: [ending], or [adapter's name, ending].
bool tail_is(const Words& rest, const std::set<std::string>& endings, AdapterKey& key,
             std::string& ending) {
  if (rest.empty()) {
    ending.clear();
    return endings.contains("");
  }
  if (endings.contains(rest.back()) && rest.size() <= 2) {
    ending = rest.back();
    if (rest.size() == 2) key.adapter = rest.front();
    return true;
  }
  if (rest.size() == 1 && endings.contains("")) {
    ending.clear();
    key.adapter = rest.front();
    return true;
  }
  return false;
}

/// A tensor that was saved whole: without what PEFT wraps around its module.
AdapterKey whole(const Words& words) {
  AdapterKey key;
  Words kept;
  for (std::size_t i = 0; i + 1 < words.size(); ++i) {
    if (words[i] == "base_layer") continue;
    if (words[i] == "original_module") key.part = AdapterKey::Part::ignored;
    if (words[i] == "modules_to_save") {
      if (i + 2 < words.size()) key.adapter = words[++i];
      continue;
    }
    kept.push_back(words[i]);
  }
  key.path = join(kept, kept.size());
  key.leaf = words.back();
  return key;
}

}  // namespace

AdapterKey parse_adapter_key(const std::string& text, const std::string& where) {
  using Part = AdapterKey::Part;
  constexpr std::string_view kPrefix = "base_model.model.";
  const Words words =
      split(text.starts_with(kPrefix) ? std::string_view(text).substr(kPrefix.size()) : text);
  std::size_t at = 0;
  while (at < words.size() && !words[at].starts_with("lora_")) ++at;
  if (at == words.size()) return whole(words);

  AdapterKey key;
  key.path = join(words, at);
  const std::string& kind = words[at];
  const Words rest(words.begin() + static_cast<std::ptrdiff_t>(at) + 1, words.end());
  std::string ending;
  bool known = false;
  if (kind == "lora_A") {
    known = tail_is(rest, {"weight"}, key, ending);
    key.part = Part::a;
  } else if (kind == "lora_B") {
    known = tail_is(rest, {"weight", "bias"}, key, ending);
    key.part = ending == "bias" ? Part::b_bias : Part::b;
  } else if (kind == "lora_magnitude_vector") {
    known = tail_is(rest, {"", "weight"}, key, ending);
    key.part = Part::magnitude;
  } else if (kind == "lora_embedding_A" || kind == "lora_embedding_B") {
    known = tail_is(rest, {""}, key, ending);
    key.part = Part::embedding;
  }
  if (!known || key.path.empty()) {
    fail(ErrorCode::InvalidFormat,
         "{}: nothing is known of the tensor '{}'; expected <module>.lora_A.weight, "
         "lora_B.weight, lora_B.bias or lora_magnitude_vector (with an adapter's name in between "
         "in a dump of a model in memory)",
         where, text.substr(0, 200));
  }
  return key;
}

std::string canonical_path(std::string_view path) {
  // Stands for the model, or for what wraps it, and differs between files and classes.
  static const std::set<std::string> outside = {
      "model", "transformer", "bert", "roberta", "vit", "distilbert", "language_model", "encoder"};
  static const std::map<std::string, std::string> renamed = {
      {"attn.wq_a", "self_attn.q_a_proj"},     {"attn.wq_b", "self_attn.q_b_proj"},
      {"attn.wkv", "self_attn.kv_proj"},       {"attn.wo_a", "self_attn.o_a_proj"},
      {"attn.wo_b", "self_attn.o_b_proj"},     {"attn.q_norm", "self_attn.q_a_norm"},
      {"attn.norm", "self_attn.kv_norm"},      {"attn.kv_norm", "self_attn.kv_norm"},
      {"attention.query", "attention.q_proj"}, {"attention.key", "attention.k_proj"},
      {"attention.value", "attention.v_proj"}};
  Words words;
  for (std::string& word : split(path)) {
    if (outside.contains(word)) continue;
    if (word == "layer") word = "layers";
    // ViT: attention.attention.query and attention.output.dense, or attention.q_proj and .o_proj.
    if (word == "attention" && !words.empty() && words.back() == "attention") continue;
    if (word == "dense" && words.size() > 1 && words.back() == "output" &&
        words[words.size() - 2] == "attention") {
      words.back() = "o_proj";
      continue;
    }
    if (!words.empty()) {
      const auto found = renamed.find(words.back() + "." + word);
      if (found != renamed.end()) {
        const Words pair = split(found->second);
        words.back() = pair[0];
        word = pair[1];
      }
    }
    if (word == "attn_norm" && !words.empty() && is_number(words.back())) word = "input_layernorm";
    if (word == "layernorm_before") word = "input_layernorm";
    words.push_back(std::move(word));
  }
  return join(words, words.size());
}

std::int64_t layer_in_path(std::string_view canonical) {
  const Words words = split(canonical);
  for (std::size_t i = 0; i + 1 < words.size(); ++i) {
    if ((words[i] != "layers" && words[i] != "h") || !is_number(words[i + 1])) continue;
    std::int64_t layer = -1;
    const std::string& digits = words[i + 1];
    const auto [end, status] = std::from_chars(digits.data(), digits.data() + digits.size(), layer);
    return status == std::errc() ? layer : -1;
  }
  return -1;
}

}  // namespace subspace
