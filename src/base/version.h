#pragma once

#include <string>
#include <vector>

namespace subspace {

/// Version of the source, e.g. "0.1.0".
const char* version();

/// Commit the program was built from, as git describes it ("4f2a91c0d3e8", "...-dirty" with local
/// changes); "unknown" outside a git checkout. Only the program `subspace` carries it: in other
/// executables (tests, benchmarks), which need not be linked anew for every commit, it is
/// "unknown" too.
const char* git_commit();

/// Compiler this library was built by, e.g. "g++ 12.2.0".
const char* compiler();

/// Those of this processor that the build has rules for: "avx2", "avx512f" (no kernel uses the
/// latter yet); empty: the baseline.
std::vector<std::string> instruction_sets();

}  // namespace subspace
