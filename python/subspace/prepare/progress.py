"""Messages and progress, on standard error."""

import sys
import time


def say(text):
    print(text, file=sys.stderr, flush=True)


def duration(seconds):
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min {seconds % 60:02.0f} s"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:02.0f} min"


def size(count):
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


class Progress:
    """The share done of a known amount and the time left, estimated from what this process did
    itself. One line redrawn in place on a terminal, elsewhere a line every ten seconds."""

    def __init__(self, label, total):
        self.label, self.total = label, max(total, 1)
        self.begun = self.start = self.shown = time.monotonic()
        self.skipped = 0
        self.terminal = sys.stderr.isatty()

    def skip(self, done):
        """Up to here an earlier run did the work; it says nothing about speed."""
        self.skipped, self.start = done, time.monotonic()

    def _due(self):
        now = time.monotonic()
        if now - self.shown < (0.2 if self.terminal else 10):
            return None
        self.shown = now
        return now

    def _draw(self, line):
        print(f"\r\033[K{line}" if self.terminal else line, end="" if self.terminal else "\n",
              file=sys.stderr, flush=True)

    def count(self, done, what):
        """For work whose end is not known."""
        if self._due():
            self._draw(f"{self.label}: {done:,} {what}")

    def show(self, done, note=""):
        now = self._due()
        if not now:
            return
        here = done - self.skipped
        left = (self.total - done) * (now - self.start) / here if here > 0 else None
        line = f"{self.label}: {100 * done / self.total:.0f} %"
        line += f", {duration(left)} left" if left is not None else ""
        line += f", {note}" if note else ""
        self._draw(line)

    def done(self):
        if self.terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
