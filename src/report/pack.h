#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace subspace {

/// Bytes of a chunk of the page while they are being collected.
using Bytes = std::vector<std::uint8_t>;

/// Appends float32 values as four planes: all first (least significant) bytes, all second, ...
/// Exponents of neighbours agree, so that plane costs next to nothing after gzip.
void append_float_planes(Bytes& out, std::span<const float> values);

/// The same for the bit patterns' differences d_0 = bits(x_0), d_j = bits(x_(j-1)) - bits(x_j)
/// modulo 2^32, which are small for a descending spectrum. Lossless for any values.
void append_spectrum_planes(Bytes& out, std::span<const float> values);

/// Steps of one octave in which the drawn spectra of heads are stored.
inline constexpr int kStepsPerOctave = 512;

/// Positions (ascending, first 0, last n - 1) at which a head's spectrum of n values is stored:
/// all of them up to 64, else 64 evenly spread.
std::vector<std::int64_t> sample_positions(std::int64_t n);

/// Appends the descending spectrum at `positions`, relative to its first value, as differences of
/// round(-kStepsPerOctave log2(s_j / s_0)) in LEB128 (low seven bits first). Values of 2^-60 s_0
/// and below, zero included, are stored as 2^-60 s_0. The first position is not written.
void append_drawn_spectrum(Bytes& out, std::span<const double> spectrum,
                           std::span<const std::int64_t> positions);

/// gzip (RFC 1952) at level 9 without name or time, so that equal input gives equal output.
/// Throws Internal if zlib fails.
Bytes gzip(std::span<const std::uint8_t> bytes);

/// RFC 4648 base64 with padding.
std::string base64(std::span<const std::uint8_t> bytes);

/// `text` with & < > " ' as character references, for HTML content and attributes.
std::string escape_html(std::string_view text);

/// JSON text that may stand inside <script>: every '<', '>' and '&' is written \u003c etc., and
/// everything outside ASCII is escaped as well (U+2028 breaks scripts). `json` is valid JSON text
/// in ASCII.
std::string escape_script_json(std::string_view json);

}  // namespace subspace
