#pragma once

#include <string>
#include <vector>

#include "base/json.h"

namespace subspace::experts {

/// The tables of experts.json as CSV: {file name, text}, those that have rows.
std::vector<std::pair<std::string, std::string>> inspect_tables(const Json& result);

}  // namespace subspace::experts
