"""What the benchmarks share: where the program is, and what they ran on."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def program():
    """The command that runs subspace: that of $SUBSPACE_PROGRAM, or the checkout's own."""
    found = os.environ.get("SUBSPACE_PROGRAM")
    return [found] if found else [str(ROOT / "run"), "subspace"]


def processor():
    for line in Path("/proc/cpuinfo").read_text().split("\n"):
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return None
