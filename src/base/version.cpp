#include "base/version.h"

// Defined by a generated file that is part of the program alone (cmake/Version.cmake).
extern "C" __attribute__((weak)) const char subspace_commit_text[];

namespace subspace {

const char* version() { return SUBSPACE_VERSION; }

const char* git_commit() {
  // Through a volatile pointer: the address of an array is never null to the optimiser.
  const char* volatile text = subspace_commit_text;
  return text != nullptr ? text : "unknown";
}

const char* compiler() {
#if defined(__clang__)
  return "clang++ " __clang_version__;
#else
  return "g++ " __VERSION__;
#endif
}

std::vector<std::string> instruction_sets() {
  std::vector<std::string> sets;
  if (__builtin_cpu_supports("avx2")) sets.emplace_back("avx2");
  if (__builtin_cpu_supports("avx512f")) sets.emplace_back("avx512f");
  return sets;
}

}  // namespace subspace
