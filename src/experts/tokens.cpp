#include "experts/tokens.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "experts/vectors.h"
#include "lora/token_words.h"

namespace subspace::experts {
namespace {

constexpr std::int64_t kTokensListed = 8, kFewestChoices = 32;

/// Choices of one expert by one token, `expert * vocabulary + token` rising, and how many.
struct Pairs {
  std::vector<std::int64_t> key, count;
  std::vector<double> of_token;   // choices by each token
  std::vector<double> of_expert;  // choices of each expert
  std::int64_t vocabulary = 0;
  double all = 0;
};

Pairs pairs_of(const Observed& layer, const at::Tensor& tokens) {
  Pairs out;
  out.vocabulary = tokens.max().item<std::int64_t>() + 1;
  const at::Tensor keys =
      layer.index.to(at::kLong).flatten(1) * out.vocabulary + tokens.unsqueeze(1);
  const auto [values, inverse, counts] =
      at::_unique2(keys, /*sorted=*/true, /*return_inverse=*/false, /*return_counts=*/true);
  out.key = integers_of(values);
  out.count = integers_of(counts);
  out.of_token.assign(static_cast<std::size_t>(out.vocabulary), 0);
  out.of_expert.assign(static_cast<std::size_t>(layer.experts), 0);
  for (std::size_t i = 0; i < out.key.size(); ++i) {
    const auto n = static_cast<double>(out.count[i]);
    out.of_token[static_cast<std::size_t>(out.key[i] % out.vocabulary)] += n;
    out.of_expert[static_cast<std::size_t>(out.key[i] / out.vocabulary)] += n;
    out.all += n;
  }
  return out;
}

/// n_te log(p(t | e) / p(t)): a pair's part of the information, times all choices.
double part(const Pairs& pairs, std::size_t i) {
  const auto n = static_cast<double>(pairs.count[i]);
  const double of_token = pairs.of_token[static_cast<std::size_t>(pairs.key[i] % pairs.vocabulary)];
  const double of_expert =
      pairs.of_expert[static_cast<std::size_t>(pairs.key[i] / pairs.vocabulary)];
  return n * std::log(n * pairs.all / (of_expert * of_token));
}

double information(const Pairs& pairs) {
  double sum = 0;
  for (std::size_t i = 0; i < pairs.key.size(); ++i) sum += part(pairs, i);
  return pairs.all > 0 ? sum / pairs.all : 0;
}

at::Tensor in_another_order(const at::Tensor& tokens) {
  return tokens.index_select(0, shuffled(tokens.numel(), tokens.numel(), /*seed=*/1));
}

/// The pairs of one expert are neighbours.
std::pair<std::size_t, std::size_t> range_of(const Pairs& pairs, std::int64_t expert) {
  const auto begin =
      std::lower_bound(pairs.key.begin(), pairs.key.end(), expert * pairs.vocabulary);
  const auto end = std::lower_bound(begin, pairs.key.end(), (expert + 1) * pairs.vocabulary);
  return {begin - pairs.key.begin(), end - pairs.key.begin()};
}

double particular(const Pairs& pairs, std::int64_t expert) {
  const auto [begin, end] = range_of(pairs, expert);
  double sum = 0;
  for (std::size_t i = begin; i < end; ++i) sum += part(pairs, i);
  const double choices = pairs.of_expert[static_cast<std::size_t>(expert)];
  return choices > 0 ? sum / choices : 0;
}

Json expert_json(const Pairs& pairs, std::int64_t expert, const char* why,
                 const std::vector<std::string>& vocabulary) {
  const auto [begin, end] = range_of(pairs, expert);
  std::vector<std::size_t> order;
  for (std::size_t i = begin; i < end; ++i) order.push_back(i);
  const auto shown = std::min<std::size_t>(kTokensListed, order.size());
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(shown), order.end(),
                    [&](std::size_t a, std::size_t b) { return part(pairs, a) > part(pairs, b); });
  const double choices = pairs.of_expert[static_cast<std::size_t>(expert)];
  Json tokens = Json::array();
  for (std::size_t j = 0; j < shown; ++j) {
    const std::size_t i = order[j];
    const std::int64_t id = pairs.key[i] % pairs.vocabulary;
    const double share = static_cast<double>(pairs.count[i]) / choices;
    tokens.push_back({{"id", id},
                      {"token", token_text(vocabulary, id)},
                      {"count", pairs.count[i]},
                      {"share", share},
                      {"lift", share * pairs.all / pairs.of_token[static_cast<std::size_t>(id)]}});
  }
  return {{"expert", expert},
          {"why", why},
          {"choices", choices},
          {"particular", particular(pairs, expert)},
          {"tokens", tokens}};
}

}  // namespace

Json tokens_of_experts(const Observed& layer, const at::Tensor& tokens,
                       const std::vector<std::string>& vocabulary, std::int64_t most) {
  const Pairs pairs = pairs_of(layer, tokens);
  Json out = {{"information", information(pairs)},
              {"chance", information(pairs_of(layer, in_another_order(tokens)))},
              {"tokens", std::count_if(pairs.of_token.begin(), pairs.of_token.end(),
                                       [](double n) { return n > 0; })},
              {"experts", Json::array()}};
  std::vector<std::pair<double, std::int64_t>> used, telling;
  const double enough = std::max<double>(
      kFewestChoices,
      0.5 * pairs.all / static_cast<double>(std::max<std::int64_t>(1, layer.experts)));
  for (std::int64_t e = 0; e < layer.experts; ++e) {
    const double choices = pairs.of_expert[static_cast<std::size_t>(e)];
    if (choices > 0) used.emplace_back(-choices, e);
    if (choices >= enough) telling.emplace_back(-particular(pairs, e), e);
  }
  std::set<std::int64_t> listed;
  auto add = [&](std::vector<std::pair<double, std::int64_t>>& ranked, const char* why) {
    std::sort(ranked.begin(), ranked.end());
    std::int64_t added = 0;
    for (const auto& [size, expert] : ranked) {
      if (added == most) break;
      if (!listed.insert(expert).second) continue;
      out["experts"].push_back(expert_json(pairs, expert, why, vocabulary));
      ++added;
    }
  };
  add(used, "used");
  add(telling, "particular");
  return out;
}

}  // namespace subspace::experts
