#pragma once

#include <functional>
#include <map>
#include <string>
#include <string_view>

#include "base/atomic_file.h"

namespace subspace {

/// Writes `text` to `file` with every "{{name}}" replaced by what the part of that name writes.
/// What parts write is not looked at again. Throws Internal for a name without a part.
using PageParts = std::map<std::string, std::function<void(AtomicFile&)>, std::less<>>;
void write_template(AtomicFile& file, std::string_view text, const PageParts& parts);

}  // namespace subspace
