#include "base/pattern.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace subspace {
namespace {

bool matches(const char* pattern, const char* subject) {
  return Pattern(pattern, "test").matches(subject);
}

ErrorCode refused(const std::string& pattern) {
  try {
    Pattern(pattern, "test");
  } catch (const Error& error) {
    return error.code();
  }
  return ErrorCode::Internal;
}

// Every expectation is what Python's re.fullmatch answers.
TEST(Pattern, MatchesAsPythonDoes) {
  EXPECT_TRUE(matches("q_proj", "q_proj"));
  EXPECT_FALSE(matches("q_proj", "xq_proj"));
  EXPECT_FALSE(matches("q_proj", "q_proj2"));
  EXPECT_TRUE(matches("layers.0.q", "layers-0-q"));
  EXPECT_FALSE(matches("layers\\.0\\.q", "layers-0-q"));
  EXPECT_TRUE(matches("layers\\.(0|1|2)\\.[qkv]_proj", "layers.2.v_proj"));
  EXPECT_FALSE(matches("layers\\.(0|1|2)\\.[qkv]_proj", "layers.3.v_proj"));
  EXPECT_TRUE(matches("a*?b+?c{2,3}", "aabccc"));
  EXPECT_FALSE(matches("a*?b+?c{2,3}", "aabc"));
  EXPECT_TRUE(matches("(?:ab){2}", "abab"));
  EXPECT_TRUE(matches("[^a-c]\\d\\w\\s", "d7_ "));
  EXPECT_FALSE(matches("[^a-c]\\d\\w\\s", "b7_ "));
  EXPECT_TRUE(matches("^a$", "a"));
  EXPECT_TRUE(matches("(^|x)a", "a"));
  EXPECT_TRUE(matches("a{,2}", "aa"));
  EXPECT_TRUE(matches("a{x}", "a{x}"));
  EXPECT_TRUE(matches("[]a]+", "]a"));
  EXPECT_TRUE(matches("", ""));
  EXPECT_TRUE(matches("(a?){3}b", "aab"));
  EXPECT_TRUE(matches("a|b|", ""));
}

TEST(Pattern, AnchorsKnowTheBeginningOfTheWholeSubject) {
  const Pattern anchored("^b", "test"), plain("b", "test");
  EXPECT_FALSE(anchored.matches("a.b", 2));
  EXPECT_TRUE(plain.matches("a.b", 2));
  EXPECT_FALSE(plain.matches("ab", 3));
}

// Backtracking would take 2^200 steps.
TEST(Pattern, TakesPolynomialTime) {
  const std::string subject(200, 'a');
  EXPECT_FALSE(Pattern("(a+)+b", "test").matches(subject));
  EXPECT_FALSE(Pattern("((a?){1000}){1000}b", "test").matches(subject));
  EXPECT_TRUE(Pattern("(a|aa)*", "test").matches(subject));
}

TEST(Pattern, RefusesWhatIsNoRegularExpressionOrNotReadHere) {
  for (const char* wrong :
       {"(", ")", "a)", "[a", "*a", "a**", "+", "a\\", "[b-a]", "a{3,2}", "^*"}) {
    EXPECT_EQ(refused(wrong), ErrorCode::InvalidFormat) << wrong;
  }
  for (const char* unread : {"(?=a)", "(?!a)", "(?P<n>a)", "\\b", "(a)\\1", "a++"}) {
    EXPECT_EQ(refused(unread), ErrorCode::Unsupported) << unread;
  }
  EXPECT_EQ(refused(std::string(5000, 'a')), ErrorCode::InvalidFormat);
  EXPECT_EQ(refused(std::string(100, '(') + std::string(100, ')')), ErrorCode::InvalidFormat);
}

}  // namespace
}  // namespace subspace
