#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace subspace {

struct ReportOptions {
  /// Where the page's drawing library comes from:
  ///   "embed"  into the page, from the first of: the path in $SUBSPACE_PLOTLYJS,
  ///            <program>/../share/subspace/plotly.min.js (the page then opens offline);
  ///   "cdn"    a script tag for Plotly's own server, in the version of that same file;
  ///   else     the path of a plotly.min.js, embedded.
  std::string plotlyjs = "embed";
};

/// Writes one self-contained HTML page that shows the spectra of one or several runs.
///
/// Each folder of `runs` holds `summary.json` and `spectra.safetensors` as `subspace spectra`
/// writes them; several are compared. Every number the page states is one of summary.json (head
/// metrics as float32, 7 digits). Curves: stacks carry every singular value as float32, heads at
/// most 64 of theirs, as logarithms rounded to 1/512 octave (0.07 %), which are only drawn.
///
/// The page is written atomically: whole, or not at all. Time and memory are those of reading
/// summary.json once and each spectrum once; about 12 MB of page for 61 layers of 128 heads.
///
/// Throws NotFound (a missing file, field or tensor, or no plotly.min.js), InvalidFormat,
/// InvalidShape or InvalidValue (contents that contradict the format or each other; the message
/// names file and field), Usage (no run), Io.
void write_report(const std::vector<std::filesystem::path>& runs, const std::filesystem::path& out,
                  const ReportOptions& options = {});

}  // namespace subspace
