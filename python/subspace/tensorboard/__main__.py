"""python -m subspace.tensorboard RUN... [--out DIR]

Each RUN is a folder that `subspace train` wrote. Its metrics.jsonl becomes one event file in
RUN/tensorboard (or DIR/<name of RUN>); `tensorboard --logdir` shows it. Doing it again, also while the run is
under way, replaces the file.
"""

import argparse
import json
import os
import sys
from pathlib import Path

from .events import record, scalar_event, version_event

# Always the same name: TensorBoard takes files with "tfevents" in theirs, in order of name.
FILE = "events.out.tfevents.0000000000.subspace"


class MetricsError(Exception):
    pass


def scalars(entry, prefix=""):
    """(tag, value) of every number of a line; those within an object have its name in front, as a
    string's (`"eval": "valid"`) has the whole line's."""
    for name, value in entry.items():
        if isinstance(value, bool):
            continue
        if isinstance(value, (int, float)):
            yield prefix + name, float(value)
        elif isinstance(value, dict):
            yield from scalars(value, f"{prefix}{name}/")


def line_scalars(entry):
    prefix = f"eval/{entry['eval']}/" if isinstance(entry.get("eval"), str) else ""
    for tag, value in scalars(entry):
        if tag not in ("step", "seconds"):
            yield prefix + tag, value


def read_metrics(path):
    """(step, seconds, scalars) of each line. Python's json takes NaN and Infinity, as a run that went
    wrong may hold. A last line without its end is being written just now."""
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise MetricsError(f"{path}: line {number} is not JSON: {error}; remove the line") from error
        step = entry.get("step") if isinstance(entry, dict) else None
        if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step < 1 << 63:
            raise MetricsError(f"{path}: line {number} has no 'step', a whole number; expected the metrics.jsonl of "
                               "`subspace train`")
        seconds = entry.get("seconds", 0)
        good = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
        yield step, float(seconds) if good else 0.0, list(line_scalars(entry))


def convert(run, out):
    """Writes the event file of one run and returns (its path, lines)."""
    path = Path(run) / "metrics.jsonl"
    if not path.is_file():
        raise MetricsError(f"{path}: no such file; expected a folder that `subspace train` wrote")
    # A run's clock starts at 0; so does TensorBoard's "relative", which is all that is shown of it.
    records, count = [record(version_event(0.0))], 0
    for step, seconds, values in read_metrics(path):
        count += 1
        if values:
            records.append(record(scalar_event(seconds, step, values)))
    out.mkdir(parents=True, exist_ok=True)
    partial = out / f"{FILE}.partial.{os.getpid()}"
    try:
        partial.write_bytes(b"".join(records))
        os.replace(partial, out / FILE)
    finally:
        partial.unlink(missing_ok=True)
    return out / FILE, count


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m subspace.tensorboard",
                                     description="A run's metrics as TensorBoard event files.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a folder that `subspace train` wrote")
    parser.add_argument("--out", metavar="DIR", help="write to DIR/<name of RUN> (default: RUN/tensorboard)")
    options = parser.parse_args(arguments)
    names = [Path(run).resolve().name for run in options.runs]
    try:
        if options.out and len(set(names)) < len(names):
            raise MetricsError("--out: two runs have one name; convert them one by one")
        for run, name in zip(options.runs, names):
            out = Path(options.out) / name if options.out else Path(run) / "tensorboard"
            path, count = convert(run, out)
            print(f"{path}: {count} lines", file=sys.stderr)
    except (MetricsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    root = options.out or (Path(options.runs[0]) / "tensorboard")
    print(f"tensorboard --logdir {root}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
