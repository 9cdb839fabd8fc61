#include "data/masking.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/random.h"
#include "data/permutation.h"

namespace subspace {
namespace {

void check(const MaskingRule& rule) {
  if (!(rule.rate > 0 && rule.rate <= 1)) {
    fail(ErrorCode::InvalidValue, "masking: a rate of {}; expected a share above 0, at most 1",
         rule.rate);
  }
  if (!(rule.masked >= 0 && rule.random >= 0 && rule.masked + rule.random <= 1 + 1e-12)) {
    fail(ErrorCode::InvalidValue,
         "masking: {} masked and {} random; expected shares that are not negative and at most 1 "
         "together",
         rule.masked, rule.random);
  }
  if (rule.mask_id < 0 || rule.mask_id >= rule.vocab_size) {
    fail(ErrorCode::InvalidValue, "masking: the mask's id {} is outside the vocabulary of {}",
         rule.mask_id, rule.vocab_size);
  }
  for (std::size_t i = 0; i < rule.special.size(); ++i) {
    const std::int32_t id = rule.special[i];
    if (id < 0 || id >= rule.vocab_size || (i > 0 && id <= rule.special[i - 1])) {
      fail(ErrorCode::InvalidValue,
           "masking: special id {}; expected rising ids below the vocabulary's {}", id,
           rule.vocab_size);
    }
  }
  if (static_cast<std::int64_t>(rule.special.size()) >= rule.vocab_size) {
    fail(ErrorCode::InvalidValue, "masking: all {} tokens are special", rule.vocab_size);
  }
}

std::uint64_t below(double share) {
  return static_cast<std::uint64_t>(std::llround(std::min(share, 1.0) * 0x1p32));
}

}  // namespace

Masking::Masking(MaskingRule rule, std::uint64_t seed) : rule_(std::move(rule)), seed_(seed) {
  check(rule_);
  predicted_below_ = below(rule_.rate);
  masked_below_ = below(rule_.masked);
  random_below_ = below(rule_.masked + rule_.random);
  ordinary_count_ = static_cast<std::uint64_t>(rule_.vocab_size) - rule_.special.size();
}

bool Masking::is_special(std::int32_t token) const {
  return std::binary_search(rule_.special.begin(), rule_.special.end(), token);
}

std::int32_t Masking::ordinary(std::uint64_t number) const {
  // The special ids before it push it on.
  auto id = static_cast<std::int32_t>(number);
  for (const std::int32_t special : rule_.special) {
    if (special > id) break;
    ++id;
  }
  return id;
}

std::int64_t Masking::apply(std::uint64_t step, std::span<const std::int32_t> tokens,
                            std::span<std::int32_t> inputs, std::span<std::int32_t> targets,
                            std::uint64_t first) const {
  if (inputs.size() != tokens.size() || targets.size() != tokens.size() || step >> 56 != 0) {
    fail(ErrorCode::Internal, "masking: {} tokens, {} inputs, {} targets, step {}", tokens.size(),
         inputs.size(), targets.size(), step);
  }
  const std::uint64_t stream = static_cast<std::uint64_t>(RandomStream::Masking) << 56 | step;
  std::int64_t predicted = 0;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    const std::int32_t token = tokens[i];
    inputs[i] = token;
    targets[i] = kIgnoredTarget;
    const auto words = philox(seed_, first + i, stream);
    if (words[0] >= predicted_below_ || is_special(token)) continue;
    ++predicted;
    targets[i] = token;
    if (words[1] < masked_below_) {
      inputs[i] = rule_.mask_id;
    } else if (words[1] < random_below_) {
      const std::uint64_t uniform = std::uint64_t{words[2]} << 32 | words[3];
      __extension__ using Wide = unsigned __int128;
      inputs[i] = ordinary(static_cast<std::uint64_t>(Wide{uniform} * ordinary_count_ >> 64));
    }
  }
  return predicted;
}

}  // namespace subspace
