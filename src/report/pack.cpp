#include "report/pack.h"

#include <zlib.h>

#include <algorithm>
#include <bit>
#include <cmath>

#include "base/error.h"

namespace subspace {
namespace {

constexpr std::int64_t kMaxDrawnValues = 64;
constexpr int kFloorOctaves = 60;

void append_word_planes(Bytes& out, const std::vector<std::uint32_t>& words) {
  out.reserve(out.size() + 4 * words.size());
  for (int plane = 0; plane < 4; ++plane) {
    for (const std::uint32_t word : words) {
      out.push_back(static_cast<std::uint8_t>(word >> (8 * plane)));
    }
  }
}

}  // namespace

void append_float_planes(Bytes& out, std::span<const float> values) {
  std::vector<std::uint32_t> words;
  words.reserve(values.size());
  for (const float value : values) words.push_back(std::bit_cast<std::uint32_t>(value));
  append_word_planes(out, words);
}

void append_spectrum_planes(Bytes& out, std::span<const float> values) {
  std::vector<std::uint32_t> words;
  words.reserve(values.size());
  std::uint32_t previous = 0;
  for (const float value : values) {
    const auto bits = std::bit_cast<std::uint32_t>(value);
    words.push_back(words.empty() ? bits : previous - bits);
    previous = bits;
  }
  append_word_planes(out, words);
}

std::vector<std::int64_t> sample_positions(std::int64_t n) {
  const std::int64_t count = std::min(n, kMaxDrawnValues);
  std::vector<std::int64_t> positions;
  for (std::int64_t j = 0; j < count; ++j) {
    positions.push_back(count == 1 ? 0 : (j * (n - 1)) / (count - 1));
  }
  return positions;
}

void append_drawn_spectrum(Bytes& out, std::span<const double> spectrum,
                           std::span<const std::int64_t> positions) {
  constexpr double kFloor = kFloorOctaves * kStepsPerOctave;
  std::uint32_t previous = 0;
  for (const std::int64_t position :
       positions.subspan(std::min<std::size_t>(1, positions.size()))) {
    const double ratio = spectrum[static_cast<std::size_t>(position)] / spectrum[0];
    // A zero spectrum gives NaN, which fails the comparison and lands on the floor.
    const double octaves = ratio > 0 ? -std::log2(ratio) : kFloorOctaves;
    const double steps = std::clamp(std::round(octaves * kStepsPerOctave), 0.0, kFloor);
    const auto level = std::max(static_cast<std::uint32_t>(steps), previous);
    std::uint32_t rest = level - previous;
    while (rest >= 0x80) {
      out.push_back(static_cast<std::uint8_t>(rest | 0x80));
      rest >>= 7;
    }
    out.push_back(static_cast<std::uint8_t>(rest));
    previous = level;
  }
}

Bytes gzip(std::span<const std::uint8_t> bytes) {
  z_stream stream = {};
  constexpr int kGzipWindow = 15 + 16;
  if (deflateInit2(&stream, 9, Z_DEFLATED, kGzipWindow, 9, Z_DEFAULT_STRATEGY) != Z_OK) {
    fail(ErrorCode::Internal, "zlib could not be started");
  }
  Bytes out(deflateBound(&stream, static_cast<uLong>(bytes.size())));
  stream.next_in = const_cast<Bytef*>(bytes.data());
  stream.avail_in = static_cast<uInt>(bytes.size());
  stream.next_out = out.data();
  stream.avail_out = static_cast<uInt>(out.size());
  const int status = deflate(&stream, Z_FINISH);
  const auto written = stream.total_out;
  deflateEnd(&stream);
  if (status != Z_STREAM_END) {
    fail(ErrorCode::Internal, "zlib could not compress {} bytes (status {})", bytes.size(), status);
  }
  out.resize(written);
  return out;
}

std::string base64(std::span<const std::uint8_t> bytes) {
  static constexpr char kDigits[] =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  text.reserve((bytes.size() + 2) / 3 * 4);
  for (std::size_t i = 0; i < bytes.size(); i += 3) {
    const std::size_t here = std::min<std::size_t>(3, bytes.size() - i);
    std::uint32_t group = 0;
    for (std::size_t j = 0; j < 3; ++j) group = group << 8 | (j < here ? bytes[i + j] : 0u);
    for (std::size_t j = 0; j < 4; ++j) {
      text += j <= here ? kDigits[group >> (18 - 6 * j) & 63] : '=';
    }
  }
  return text;
}

std::string escape_html(std::string_view text) {
  std::string safe;
  for (const char c : text) {
    switch (c) {
      case '&':
        safe += "&amp;";
        break;
      case '<':
        safe += "&lt;";
        break;
      case '>':
        safe += "&gt;";
        break;
      case '"':
        safe += "&quot;";
        break;
      case '\'':
        safe += "&#39;";
        break;
      default:
        safe += c;
    }
  }
  return safe;
}

std::string escape_script_json(std::string_view json) {
  std::string safe;
  safe.reserve(json.size());
  for (const char c : json) {
    switch (c) {
      case '<':
        safe += "\\u003c";
        break;
      case '>':
        safe += "\\u003e";
        break;
      case '&':
        safe += "\\u0026";
        break;
      default:
        safe += c;
    }
  }
  return safe;
}

}  // namespace subspace
