#include "experts/use.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <set>

namespace subspace::experts {
namespace {

constexpr int kRanks = 120;

/// Ranks to draw of 1 .. n: as dense at the small end as a logarithmic axis shows.
std::vector<std::int64_t> drawn_ranks(std::int64_t n) {
  std::set<std::int64_t> ranks;
  for (int i = 0; i < kRanks; ++i) {
    ranks.insert(std::llround(std::pow(static_cast<double>(n), i / (kRanks - 1.0))));
  }
  return {ranks.begin(), ranks.end()};
}

/// c log c, 0 at 0.
double weighed(double c) { return c > 0 ? c * std::log(c) : 0; }

Json curve_of(const std::vector<std::int64_t>& falling, double choices, const EvenUse& even) {
  Json curve = {{"rank", Json::array()}, {"share", Json::array()}, {"chance", Json::array()}};
  for (const std::int64_t rank : drawn_ranks(static_cast<std::int64_t>(falling.size()))) {
    const auto count = static_cast<double>(falling[static_cast<std::size_t>(rank - 1)]);
    curve["rank"].push_back(rank);
    curve["share"].push_back(count / choices);
    curve["chance"].push_back(static_cast<double>(even.at_rank(rank)) / choices);
  }
  return curve;
}

Json histogram_of(const std::vector<std::int64_t>& falling, const EvenUse& even) {
  Json out = {{"from", Json::array()},
              {"to", Json::array()},
              {"experts", Json::array()},
              {"chance", Json::array()}};
  // The end of those experts, used more often, that are in no bin yet.
  auto end = falling.end();
  for (std::int64_t low = 0, high = 0; end != falling.begin() || low == 0;
       low = high + 1, high = 2 * low - 1) {
    const auto begin =
        std::find_if(falling.begin(), end, [&](auto count) { return count <= high; });
    out["from"].push_back(low);
    out["to"].push_back(high);
    out["experts"].push_back(end - begin);
    out["chance"].push_back(even.between(low, high));
    end = begin;
  }
  return out;
}

Json use_of(const at::Tensor& counts) {
  const auto* value = counts.const_data_ptr<std::int64_t>();
  const std::int64_t experts = counts.numel();
  std::vector<std::int64_t> falling(value, value + experts);
  std::sort(falling.begin(), falling.end(), std::greater<>());
  std::int64_t choices = 0, used = 0, top = 0;
  double weighed_counts = 0;
  const auto hundredth = std::max<std::int64_t>(1, experts / 100);
  for (std::int64_t i = 0; i < experts; ++i) {
    const std::int64_t count = falling[static_cast<std::size_t>(i)];
    choices += count;
    used += count > 0;
    if (i < hundredth) top += count;
    weighed_counts += weighed(static_cast<double>(count));
  }
  const EvenUse even(choices, experts);
  const double all = static_cast<double>(std::max<std::int64_t>(choices, 1));
  const double most = std::log(static_cast<double>(experts));
  const double entropy = choices > 0 ? std::log(all) - weighed_counts / all : 0;
  return {{"choices", choices},
          {"used", static_cast<double>(used) / static_cast<double>(experts)},
          {"entropy", entropy},
          {"kl_uniform", std::max(0.0, most - entropy)},
          {"top_percent", static_cast<double>(top) / all},
          {"largest", static_cast<double>(falling.front()) / all},
          {"chance",
           {{"choices", choices},
            {"used", even.used},
            {"entropy", even.entropy},
            {"kl_uniform", std::max(0.0, most - even.entropy)}}},
          {"curve", curve_of(falling, all, even)},
          {"histogram", histogram_of(falling, even)}};
}

}  // namespace

EvenUse::EvenUse(std::int64_t choices, std::int64_t experts) : experts_(experts) {
  const double n = static_cast<double>(choices), all = static_cast<double>(experts);
  const double mean = n / all;
  // What lies further out is below 1e-15 of everything.
  const auto last = static_cast<std::int64_t>(mean + 12 * std::sqrt(mean) + 40);
  for (std::int64_t c = 0; c <= last; ++c) {
    const auto count = static_cast<double>(c);
    probability_.push_back(mean > 0
                               ? std::exp(count * std::log(mean) - mean - std::lgamma(count + 1))
                               : static_cast<double>(c == 0));
  }
  above_.assign(probability_.size() + 1, 0);
  for (std::size_t c = probability_.size(); c-- > 0;) above_[c] = above_[c + 1] + probability_[c];
  used = -std::expm1(-mean);
  if (choices == 0) return;
  double sum = 0;
  for (std::size_t c = 0; c < probability_.size(); ++c) {
    sum += probability_[c] * weighed(static_cast<double>(c));
  }
  entropy = std::log(n) - all / n * sum;
}

double EvenUse::between(std::int64_t low, std::int64_t high) const {
  const std::size_t end = above_.size() - 1;
  const auto from = std::min(end, static_cast<std::size_t>(low));
  const auto to = std::min(end, static_cast<std::size_t>(high) + 1);
  return static_cast<double>(experts_) * (above_[from] - above_[to]);
}

std::int64_t EvenUse::at_rank(std::int64_t rank) const {
  const double wanted = (static_cast<double>(rank) - 0.5) / static_cast<double>(experts_);
  // `above_` falls: the last count that so many experts reach.
  const auto place = std::partition_point(above_.begin(), above_.end(),
                                          [&](double share) { return share >= wanted; });
  return std::max<std::int64_t>(0, place - above_.begin() - 1);
}

Json use_of_experts(const at::Tensor& counts) {
  Json out = Json::object();
  out["all"] = use_of(counts.sum(0).contiguous());
  if (counts.size(0) == 1) return out;
  for (std::int64_t head = 0; head < counts.size(0); ++head) {
    out["heads"].push_back(use_of(counts[head].contiguous()));
  }
  return out;
}

}  // namespace subspace::experts
