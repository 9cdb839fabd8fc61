# cmake -DFILES=... -DNAME=... -DOUT=BASE -P write_embedded.cmake: writes BASE.h and BASE.cpp.
set(branches "")
foreach(file IN LISTS FILES)
  get_filename_component(leaf "${file}" NAME)
  file(READ "${file}" hex HEX)
  string(LENGTH "${hex}" digits)
  math(EXPR size "${digits} / 2")
  string(MAKE_C_IDENTIFIER "k_${leaf}" symbol)
  # Bytes, not a raw string: no delimiter to collide with, and any content is exact.
  string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${hex}")
  string(REGEX REPLACE "0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..," "\\0\n" bytes "${bytes}")
  string(APPEND arrays "const unsigned char ${symbol}[] = {\n${bytes}0x00};\n")
  string(APPEND branches "  if (file == \"${leaf}\") return {reinterpret_cast<const char*>(${symbol}), ${size}};\n")
endforeach()
file(WRITE "${OUT}.h"
"#pragma once

#include <string_view>

namespace subspace::embedded {

/// Content of the embedded file of that name; empty if there is none.
std::string_view ${NAME}(std::string_view file);

}  // namespace subspace::embedded
")
file(WRITE "${OUT}.cpp"
"#include \"embedded/${NAME}.h\"

namespace subspace::embedded {
namespace {
${arrays}}  // namespace

std::string_view ${NAME}([[maybe_unused]] std::string_view file) {
${branches}  return {};
}

}  // namespace subspace::embedded
")
