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

}  // namespace subspace
