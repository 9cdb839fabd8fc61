#pragma once

#include <bitset>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace subspace {

/// A regular expression as Python's `re` reads it, for patterns that come from files: literals,
/// '.', classes ([a-z], [^..], \d \w \s and their opposites), groups, alternatives, greedy and lazy
/// repetitions, '^' and '$'. Which strings match, and nothing else, is asked of it, so lazy and
/// greedy are the same.
///
/// Unlike std::regex it walks sets of positions instead of backtracking: time is polynomial and the
/// stack is bounded whatever the pattern. Throws InvalidFormat (not a regular expression: `where`,
/// the pattern, the byte), Unsupported (back-references, look-around, \b and the like).
class Pattern {
 public:
  Pattern(std::string_view text, const std::string& where);

  const std::string& text() const { return text_; }
  /// Whether the pattern matches subject[begin ..] up to its end; '^' is the subject's beginning.
  bool matches(std::string_view subject, std::size_t begin = 0) const;

 private:
  friend class PatternParser;
  enum class Kind { set, begin, end, sequence, choice, repeat };
  struct Node {
    Kind kind = Kind::sequence;
    std::bitset<256> set = {};
    std::vector<std::size_t> children = {};
    std::size_t least = 0, most = 0;  ///< of a repetition
  };
  using Positions = std::vector<bool>;
  Positions ends(std::size_t node, std::string_view subject, const Positions& from) const;
  Positions repeated(const Node& node, std::string_view subject, Positions from) const;

  std::string text_;
  std::vector<Node> nodes_;
  std::size_t root_ = 0;
};

}  // namespace subspace
