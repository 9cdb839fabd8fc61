#include "base/interrupt.h"

#include <unistd.h>

#include <csignal>
#include <string_view>

#include "base/error.h"
#include "base/progress.h"

namespace subspace {
namespace {
volatile std::sig_atomic_t g_signal = 0;

extern "C" void on_signal(int signal) {
  g_signal = signal;
  std::signal(signal, SIG_DFL);
  // A step can take a minute: silence would look as if the signal had been lost.
  constexpr std::string_view kText =
      "\ninterrupted: finishing the step in work; interrupt again to stop at once\n";
  if (is_quiet()) return;
  [[maybe_unused]] const auto written = ::write(STDERR_FILENO, kText.data(), kText.size());
}
}  // namespace

void catch_interrupts() {
  std::signal(SIGINT, on_signal);
  std::signal(SIGTERM, on_signal);
  // A limit on the size of files is then an error of write() like a full disk, and no sudden end.
  std::signal(SIGXFSZ, SIG_IGN);
}

bool interrupted() { return g_signal != 0; }

void check_interrupted(const char* kept) {
  if (interrupted()) fail(ErrorCode::Interrupted, "interrupted; {}", kept);
}

}  // namespace subspace
