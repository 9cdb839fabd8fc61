#pragma once

#include "base/error.h"

/// An Error is a refusal, and a good answer to a fuzzer's input; anything else is a finding.
template <typename Action>
void tolerate(Action action) {
  try {
    action();
  } catch (const subspace::Error&) {
  }
}
