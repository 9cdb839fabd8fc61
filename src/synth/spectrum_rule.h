#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace subspace {

/// What singular values a synthetic matrix is to have.
///
///   gaussian     independent normal elements: nothing is prescribed
///   power:P      sigma_j proportional to j^-P, j = 1..min(m, n)
///   rank:R       min(R, m, n) equal values, the others zero
///   FILE.json    a list for every matrix, or {"part of a tensor's name": list, ...}: the longest
///                part that occurs decides; matrices that none fits are gaussian. Shorter than
///                min(m, n): the others are zero
///
/// power and rank are scaled so that ||W||_F = std sqrt(m n), that of the gaussian matrix.
class SpectrumRule {
 public:
  /// Throws Usage for a text that is none of these; NotFound, InvalidFormat, InvalidValue (negative
  /// or not finite) for a file.
  explicit SpectrumRule(const std::string& text);

  const std::string& text() const { return text_; }

  /// Positive values, descending, for the matrix `name` of [m, n]; nothing if it is gaussian.
  /// Throws InvalidValue if a list is longer than min(m, n).
  std::optional<std::vector<double>> values(const std::string& name, std::int64_t m, std::int64_t n,
                                            double std) const;

  /// Throws Usage if the file names a part that no tensor of `names` has: a slip of the pen would
  /// otherwise pass for a gaussian matrix.
  void check_all_used(const std::vector<std::string>& names) const;

 private:
  enum class Kind { gaussian, power, rank, lists };
  void read_lists();

  std::string text_;
  Kind kind_ = Kind::gaussian;
  double power_ = 0;
  std::int64_t rank_ = 0;
  std::map<std::string, std::vector<double>> lists_;
};

}  // namespace subspace
