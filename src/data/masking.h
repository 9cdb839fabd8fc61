#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace subspace {

/// A target that the loss leaves out.
inline constexpr std::int32_t kIgnoredTarget = -100;

/// How tokens are masked for a masked language model.
struct MaskingRule {
  double rate = 0.15;   ///< share of ordinary tokens that are predicted
  double masked = 0.8;  ///< of those: replaced by `mask_id`
  double random = 0.1;  ///< of those: replaced by an ordinary token; the rest stays
  std::int32_t mask_id = 0;
  std::int64_t vocab_size = 0;
  /// Special tokens, rising: never predicted, never put in as random ones.
  std::vector<std::int32_t> special;
};

/// Masking for masked language models, dynamic: made anew each step, by (seed, step, position).
///
///   (u0, u1, u2, u3) = philox(seed, position, Masking << 56 | step)       position = row * length
///   + column predicted  <=>  not special and u0 < 2^32 rate then       u1 < 2^32 masked: mask_id;
///   u1 < 2^32 (masked + random): the ordinary token number
///              floor((u2 2^32 + u3) ordinary / 2^64);   else the token itself
///
/// `ordinary` = vocab_size - special.size() tokens are those that are not special, in order of id.
/// Source: BERT (Devlin et al. 2019, section 3.1); theirs masks once, and random tokens may be
/// special.
class Masking {
 public:
  /// Throws InvalidValue: a rate outside (0, 1], shares negative or above 1 together, ids outside
  /// the vocabulary, `special` not rising, no ordinary token.
  Masking(MaskingRule rule, std::uint64_t seed);

  const MaskingRule& rule() const { return rule_; }

  /// `inputs` gets the tokens with masks, `targets` the tokens to predict and kIgnoredTarget
  /// elsewhere; all of one size. `first` is the position of tokens[0] in the step's whole batch
  /// (for a batch that is made in parts). `inputs` may be `tokens` itself. About 20 ns a token.
  /// Returns how many are predicted. Throws Internal if sizes differ or step >= 2^56.
  std::int64_t apply(std::uint64_t step, std::span<const std::int32_t> tokens,
                     std::span<std::int32_t> inputs, std::span<std::int32_t> targets,
                     std::uint64_t first = 0) const;

 private:
  bool is_special(std::int32_t token) const;
  std::int32_t ordinary(std::uint64_t number) const;

  MaskingRule rule_;
  std::uint64_t seed_;
  std::uint64_t predicted_below_;
  std::uint64_t masked_below_;
  std::uint64_t random_below_;
  std::uint64_t ordinary_count_;
};

}  // namespace subspace
