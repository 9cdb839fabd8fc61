#include "base/interrupt.h"

#include <csignal>

#include "base/error.h"

namespace subspace {
namespace {
volatile std::sig_atomic_t g_signal = 0;

extern "C" void on_signal(int signal) {
  g_signal = signal;
  std::signal(signal, SIG_DFL);
}
}  // namespace

void catch_interrupts() {
  std::signal(SIGINT, on_signal);
  std::signal(SIGTERM, on_signal);
}

bool interrupted() { return g_signal != 0; }

void check_interrupted(const char* kept) {
  if (interrupted()) fail(ErrorCode::Interrupted, "interrupted; {}", kept);
}

}  // namespace subspace
