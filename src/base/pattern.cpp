#include "base/pattern.h"

#include <algorithm>
#include <limits>
#include <optional>

#include "base/error.h"

namespace subspace {
namespace {

constexpr std::size_t kMaxLength = 4096;
constexpr int kMaxDepth = 50;
constexpr std::size_t kUnlimited = std::numeric_limits<std::size_t>::max();

using Set = std::bitset<256>;

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

Set set_of(bool (*in)(char)) {
  Set set;
  for (int c = 0; c < 256; ++c) set[static_cast<std::size_t>(c)] = in(static_cast<char>(c));
  return set;
}

Set single(char c) { return Set().set(static_cast<unsigned char>(c)); }

/// \d, \w, \s and their opposites.
std::optional<Set> named_set(char name) {
  switch (name) {
    case 'd':
      return set_of(is_digit);
    case 'D':
      return ~set_of(is_digit);
    case 'w':
      return set_of([](char c) { return is_digit(c) || is_letter(c) || c == '_'; });
    case 'W':
      return ~set_of([](char c) { return is_digit(c) || is_letter(c) || c == '_'; });
    case 's':
      return set_of([](char c) { return c == ' ' || (c >= '\t' && c <= '\r'); });
    case 'S':
      return ~set_of([](char c) { return c == ' ' || (c >= '\t' && c <= '\r'); });
    default:
      return std::nullopt;
  }
}

}  // namespace

/// Recursive descent: choice -> sequence -> repetition -> atom.
class PatternParser {
 public:
  PatternParser(Pattern& pattern, const std::string& where)
      : pattern_(pattern), where_(where), text_(pattern.text_) {
    if (text_.size() > kMaxLength) wrong("is longer than 4096 bytes");
    pattern_.root_ = choice();
    if (at_ != text_.size()) wrong("has a ')' without its '('");
  }

 private:
  using Kind = Pattern::Kind;
  using Node = Pattern::Node;

  [[noreturn]] void wrong(const char* why) const {
    fail(ErrorCode::InvalidFormat, "{}: the pattern '{}' {} (byte {})", where_,
         text_.substr(0, 200), why, at_);
  }
  [[noreturn]] void unsupported(const char* what) const {
    fail(ErrorCode::Unsupported,
         "{}: the pattern '{}' uses {} (byte {}), which this program does not read; write the "
         "modules' names out instead",
         where_, text_.substr(0, 200), what, at_);
  }

  bool more() const { return at_ < text_.size(); }
  bool take(char c) {
    if (!more() || text_[at_] != c) return false;
    ++at_;
    return true;
  }
  std::size_t add(Node node) {
    pattern_.nodes_.push_back(std::move(node));
    return pattern_.nodes_.size() - 1;
  }
  std::size_t add_set(const Set& set) { return add({.kind = Kind::set, .set = set}); }

  std::size_t choice() {
    if (++depth_ > kMaxDepth) wrong("has groups deeper than 50 levels");
    Node node{.kind = Kind::choice};
    do {
      node.children.push_back(sequence());
    } while (take('|'));
    --depth_;
    return node.children.size() == 1 ? node.children.front() : add(std::move(node));
  }

  std::size_t sequence() {
    Node node{.kind = Kind::sequence};
    while (more() && text_[at_] != '|' && text_[at_] != ')') {
      const std::size_t one = atom();
      node.children.push_back(repetition(one));
    }
    return add(std::move(node));
  }

  std::size_t repetition(std::size_t child) {
    const auto bounds = quantifier();
    if (!bounds) return child;
    const Kind kind = pattern_.nodes_[child].kind;
    if (kind == Kind::begin || kind == Kind::end) wrong("repeats an anchor");
    take('?');
    if (more() && text_[at_] == '+') unsupported("a possessive repetition");
    const std::size_t before = at_;
    if (quantifier()) {
      at_ = before;
      wrong("repeats a repetition");
    }
    Node node{.kind = Kind::repeat};
    node.children = {child};
    std::tie(node.least, node.most) = *bounds;
    if (node.least > node.most) wrong("has a repetition whose least is more than its most");
    return add(std::move(node));
  }

  std::optional<std::pair<std::size_t, std::size_t>> quantifier() {
    if (take('*')) return std::pair{std::size_t{0}, kUnlimited};
    if (take('+')) return std::pair{std::size_t{1}, kUnlimited};
    if (take('?')) return std::pair{std::size_t{0}, std::size_t{1}};
    const std::size_t before = at_;
    if (!take('{')) return std::nullopt;
    const auto least = number();
    const bool open = take(',');
    const auto most = open ? number() : least;
    if ((!least && !most) || !take('}')) {  // Python takes such a brace literally.
      at_ = before;
      return std::nullopt;
    }
    return std::pair{least.value_or(0), open ? most.value_or(kUnlimited) : *least};
  }

  std::optional<std::size_t> number() {
    if (!more() || !is_digit(text_[at_])) return std::nullopt;
    std::size_t value = 0;
    while (more() && is_digit(text_[at_])) {
      value = std::min<std::size_t>(value * 10 + static_cast<std::size_t>(text_[at_++] - '0'),
                                    1'000'000);
    }
    return value;
  }

  std::size_t atom() {
    const char c = text_[at_++];
    switch (c) {
      case '.':
        return add_set(~single('\n'));
      case '^':
        return add({.kind = Kind::begin});
      case '$':
        return add({.kind = Kind::end});
      case '(':
        return group();
      case '[':
        return add_set(bracket());
      case '\\':
        return add_set(escape());
      case '*':
      case '+':
      case '?':
        --at_;
        wrong("repeats nothing");
      default:
        return add_set(single(c));
    }
  }

  std::size_t group() {
    if (take('?') && !take(':')) unsupported("a group that begins with '(?'");
    const std::size_t inner = choice();
    if (!take(')')) wrong("has a '(' without its ')'");
    // A node of its own, so that repeating '(^)' is not mistaken for repeating '^'.
    Node node{.kind = Kind::sequence};
    node.children = {inner};
    return add(std::move(node));
  }

  Set escape() {
    if (!more()) wrong("ends in a backslash");
    const char c = text_[at_];
    if (const auto set = named_set(c)) {
      ++at_;
      return *set;
    }
    if (is_letter(c) || is_digit(c)) unsupported("an escape other than \\d, \\w, \\s");
    ++at_;
    return single(c);
  }

  Set bracket() {
    const bool opposite = take('^');
    Set set;
    bool first = true;
    while (true) {
      if (!more()) wrong("has a '[' without its ']'");
      if (text_[at_] == ']' && !first) break;
      first = false;
      const char c = text_[at_++];
      if (c == '\\') {
        const Set one = escape();
        if (one.count() != 1) {
          set |= one;
          continue;
        }
        add_range(set, text_[at_ - 1]);
      } else {
        add_range(set, c);
      }
    }
    ++at_;
    return opposite ? ~set : set;
  }

  /// `low`, or the range that it begins.
  void add_range(Set& set, char low) {
    char high = low;
    if (at_ + 1 < text_.size() && text_[at_] == '-' && text_[at_ + 1] != ']') {
      ++at_;
      high = text_[at_++];
      if (high == '\\') {
        if (escape().count() != 1) wrong("has a range that ends in a class");
        high = text_[at_ - 1];
      }
    }
    const auto from = static_cast<unsigned char>(low), to = static_cast<unsigned char>(high);
    if (from > to) wrong("has a range that runs backwards");
    for (std::size_t value = from; value <= to; ++value) set.set(value);
  }

  Pattern& pattern_;
  const std::string& where_;
  const std::string& text_;
  std::size_t at_ = 0;
  int depth_ = 0;
};

Pattern::Pattern(std::string_view text, const std::string& where) : text_(text) {
  PatternParser(*this, where);
}

bool Pattern::matches(std::string_view subject, std::size_t begin) const {
  if (begin > subject.size()) return false;
  Positions from(subject.size() + 1);
  from[begin] = true;
  return ends(root_, subject, from).back();
}

Pattern::Positions Pattern::ends(std::size_t index, std::string_view subject,
                                 const Positions& from) const {
  const Node& node = nodes_[index];
  const std::size_t n = subject.size();
  Positions out(n + 1);
  switch (node.kind) {
    case Kind::set:
      for (std::size_t i = 0; i < n; ++i) {
        if (from[i] && node.set[static_cast<unsigned char>(subject[i])]) out[i + 1] = true;
      }
      return out;
    case Kind::begin:
      out[0] = from[0];
      return out;
    case Kind::end:
      out[n] = from[n];
      return out;
    case Kind::sequence:
      out = from;
      for (const std::size_t child : node.children) out = ends(child, subject, out);
      return out;
    case Kind::choice:
      for (const std::size_t child : node.children) {
        const Positions one = ends(child, subject, from);
        for (std::size_t i = 0; i <= n; ++i) out[i] = out[i] || one[i];
      }
      return out;
    case Kind::repeat:
      return repeated(node, subject, from);
  }
  return out;
}

Pattern::Positions Pattern::repeated(const Node& node, std::string_view subject,
                                     Positions from) const {
  const Positions none(from.size());
  for (std::size_t count = 0; count < node.least; ++count) {
    Positions next = ends(node.children.front(), subject, from);
    // Empty for good, or at rest: more rounds change nothing.
    const bool settled = next == from || next == none;
    from = std::move(next);
    if (settled) break;
  }
  Positions reached = from;
  for (std::size_t count = node.least; count < node.most && from != none; ++count) {
    from = ends(node.children.front(), subject, from);
    bool grew = false;
    for (std::size_t i = 0; i < from.size(); ++i) {
      from[i] = from[i] && !reached[i];
      if (from[i]) grew = reached[i] = true;
    }
    if (!grew) break;
  }
  return reached;
}

}  // namespace subspace
