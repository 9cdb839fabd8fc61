#include "base/progress.h"

#include <unistd.h>

#include <cstdio>

#include "base/error.h"

namespace subspace {
namespace {
bool g_quiet = false;
}

void set_quiet(bool quiet) { g_quiet = quiet; }
bool is_quiet() { return g_quiet; }

void message(const std::string& line) {
  if (g_quiet) return;
  std::fprintf(stderr, "%s\n", line.c_str());
  std::fflush(stderr);
}

std::string format_seconds(double seconds) {
  if (seconds < 0.9995) return fmt::format("{:.0f} ms", seconds * 1e3);
  if (seconds < 99.95) return fmt::format("{:.1f} s", seconds);
  const auto whole = static_cast<std::int64_t>(seconds + 0.5);
  if (whole < 3600) return fmt::format("{} min {:02} s", whole / 60, whole % 60);
  return fmt::format("{} h {:02} min", whole / 3600, whole / 60 % 60);
}

std::string format_bytes(std::uint64_t bytes) {
  const char* units[] = {"B", "kB", "MB", "GB", "TB", "PB", "EB"};
  auto value = static_cast<double>(bytes);
  int unit = 0;
  while (value >= 999.5 && unit < 6) {
    value /= 1000;
    ++unit;
  }
  if (unit == 0) return fmt::format("{} B", bytes);
  return fmt::format("{:.{}f} {}", value, value < 9.95 ? 1 : 0, units[unit]);
}

Progress::Progress(std::string label, std::int64_t total, std::int64_t already)
    : label_(std::move(label)),
      total_(total),
      done_(already),
      terminal_(::isatty(STDERR_FILENO) != 0),
      start_(std::chrono::steady_clock::now()) {}

Progress::~Progress() { clear_line(); }

void Progress::clear_line() {
  if (!drawn_) return;
  std::fputs("\r\033[K", stderr);
  std::fflush(stderr);
  drawn_ = false;
}

void Progress::step(const std::string& note) { step(note, done_ + 1); }

void Progress::step(const std::string& note, std::int64_t done) {
  here_ += done - done_;
  done_ = done;
  if (g_quiet) return;
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start_;
  const double left =
      elapsed.count() / static_cast<double>(here_) * static_cast<double>(total_ - done_);
  const std::string line =
      fmt::format("{} {}/{}{}{}{}", label_, done_, total_, note.empty() ? "" : "  ", note,
                  done_ < total_ ? fmt::format("  {} left", format_seconds(left))
                                 : fmt::format("  {} in all", format_seconds(elapsed.count())));
  if (terminal_) {
    std::fprintf(stderr, "\r\033[K%s", line.c_str());
    drawn_ = true;
  } else {
    std::fprintf(stderr, "%s\n", line.c_str());
  }
  std::fflush(stderr);
}

}  // namespace subspace
