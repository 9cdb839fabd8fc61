#include "base/error.h"

namespace subspace {

const char* error_code_name(ErrorCode code) {
  switch (code) {
    case ErrorCode::Usage:
      return "usage";
    case ErrorCode::NotFound:
      return "not_found";
    case ErrorCode::InvalidFormat:
      return "invalid_format";
    case ErrorCode::InvalidShape:
      return "invalid_shape";
    case ErrorCode::InvalidValue:
      return "invalid_value";
    case ErrorCode::NotFinite:
      return "not_finite";
    case ErrorCode::Unsupported:
      return "unsupported";
    case ErrorCode::Io:
      return "io";
    case ErrorCode::Busy:
      return "busy";
    case ErrorCode::Interrupted:
      return "interrupted";
    case ErrorCode::Internal:
      return "internal";
  }
  return "internal";
}

int exit_status(ErrorCode code) {
  if (code == ErrorCode::Usage) return 2;
  if (code == ErrorCode::Interrupted) return 130;
  return 1;
}

}  // namespace subspace
