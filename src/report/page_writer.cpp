#include "report/page_writer.h"

#include "base/error.h"

namespace subspace {

void write_template(AtomicFile& file, std::string_view text, const PageParts& parts) {
  while (true) {
    const auto open = text.find("{{");
    file.write(text.substr(0, open));
    if (open == std::string_view::npos) return;
    text.remove_prefix(open + 2);
    const auto close = text.find("}}");
    if (close == std::string_view::npos) {
      fail(ErrorCode::Internal, "the page's template opens {{{{ without closing it");
    }
    const auto part = parts.find(text.substr(0, close));
    if (part == parts.end()) {
      fail(ErrorCode::Internal, "the page's template names '{}', which is unknown",
           text.substr(0, close));
    }
    part->second(file);
    text.remove_prefix(close + 2);
  }
}

}  // namespace subspace
