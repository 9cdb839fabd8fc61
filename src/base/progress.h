#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace subspace {

/// Messages and progress go to standard error, so that standard output stays clean for results.
/// quiet(true) silences both; errors are still shown.
void set_quiet(bool quiet);
bool is_quiet();

/// One line on standard error, unless quiet.
void message(const std::string& line);

/// "1 h 02 min", "3 min 20 s", "12.3 s", "45 ms".
std::string format_seconds(double seconds);

/// "11.4 GB", "812 kB" (powers of ten).
std::string format_bytes(std::uint64_t bytes);

/// Progress of a count of equal steps with the time left, estimated from the steps done by this
/// process. On a terminal it is one line redrawn in place, elsewhere one line a step. Not for use
/// from several threads.
class Progress {
 public:
  /// `total` steps, of which `already` were done by an earlier run.
  Progress(std::string label, std::int64_t total, std::int64_t already = 0);
  ~Progress();
  /// One more step done; `note` is shown behind it.
  void step(const std::string& note);
  /// As many more as it takes to have `done` of them done.
  void step(const std::string& note, std::int64_t done);

 private:
  void clear_line();

  std::string label_;
  std::int64_t total_;
  std::int64_t done_;
  std::int64_t here_ = 0;
  bool terminal_;
  bool drawn_ = false;
  std::chrono::steady_clock::time_point start_;
};

}  // namespace subspace
