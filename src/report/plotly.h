#pragma once

#include <filesystem>
#include <string>

namespace subspace {

/// The drawing library for a page.
struct Plotly {
  std::string version;  ///< from the file's banner, e.g. "3.1.0"
  std::string source;   ///< the library itself; may stand inside <script>
};

/// Reads plotly.min.js. `path` empty: $SUBSPACE_PLOTLYJS if set, else
/// <program>/../share/subspace/plotly.min.js. Throws NotFound saying what to do, InvalidFormat if
/// the file has no Plotly banner or could end a script element early.
Plotly load_plotly(const std::filesystem::path& path);

}  // namespace subspace
