#include "base/sha256.h"

#include <gtest/gtest.h>

#include <string>
#include <string_view>

namespace subspace {
namespace {

std::string hash_in_pieces(std::string_view text, std::size_t piece) {
  Sha256 hash;
  for (; !text.empty(); text.remove_prefix(std::min(piece, text.size()))) {
    const auto part = text.substr(0, piece);
    hash.update({reinterpret_cast<const std::byte*>(part.data()), part.size()});
  }
  return hash.hex();
}

// The examples of FIPS 180-4 (NIST, "Secure Hash Standard examples with intermediate values").
TEST(Sha256Test, Standard) {
  EXPECT_EQ(hash_in_pieces("", 1),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(hash_in_pieces("abc", 3),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(hash_in_pieces("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", 100),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(hash_in_pieces(std::string(1'000'000, 'a'), 1'000'000),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(Sha256Test, DoesNotDependOnPieces) {
  std::string text;
  for (int i = 0; i < 300; ++i) text += static_cast<char>(i * 7);
  for (std::size_t size = 0; size <= text.size(); ++size) {
    const std::string whole = hash_in_pieces(text.substr(0, size), 1000);
    for (const std::size_t piece : {1, 63, 64, 65, 127}) {
      ASSERT_EQ(hash_in_pieces(text.substr(0, size), piece), whole) << size << " by " << piece;
    }
  }
}

}  // namespace
}  // namespace subspace
