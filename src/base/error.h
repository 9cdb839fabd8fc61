#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace subspace {

/// What kind of thing went wrong. Every kind but `Usage` and `Interrupted` exits with status 1.
enum class ErrorCode {
  Usage,          ///< the command line is wrong                                   (exit status 2)
  NotFound,       ///< a file, tensor, field or model that should be there is not
  InvalidFormat,  ///< bytes that are not what their format says
  InvalidShape,   ///< a tensor whose shape contradicts the configuration
  InvalidValue,   ///< a value outside its range
  NotFinite,      ///< NaN or Inf among the weights
  Unsupported,    ///< well formed, but nothing here can read or do it
  Io,             ///< the operating system refused (no space, no permission, ...)
  Busy,           ///< another run holds the folder
  Interrupted,    ///< SIGINT or SIGTERM; what is done is kept                     (exit status 130)
  Internal,       ///< a broken promise of this program
};

/// The one exception of the library. `what()` says what, where, found, expected and what to do.
class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ErrorCode code() const { return code_; }

 private:
  ErrorCode code_;
};

/// Throws Error(code, message) with fmt's formatting.
template <typename... Args>
[[noreturn]] void fail(ErrorCode code, fmt::format_string<Args...> format, Args&&... args) {
  throw Error(code, fmt::format(format, std::forward<Args>(args)...));
}

/// Name of a code as it appears in JSON output, e.g. "invalid_shape".
const char* error_code_name(ErrorCode code);

/// Exit status of the program for an error of that kind: 1, 2 (Usage) or 130 (Interrupted).
int exit_status(ErrorCode code);

}  // namespace subspace
