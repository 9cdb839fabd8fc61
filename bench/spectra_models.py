"""Whole models: all-MiniLM-L6-v2 from disk to the written result, and time against depth.

MiniLM is the demo's model (`./run demo` fetches it). Depth is measured on BERT's shapes, random
weights, each depth in a process of its own, three times; least squares over the medians gives
seconds a layer and what a run costs whatever its depth.

    ./run bench spectra_models [--record] [--device cuda] [--threads N]
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

from common.machine import ROOT, processor, program

DEPTHS = (3, 6, 12, 24)


def seconds(model, out, options):
    command = program() + ["--device", options.device, "--threads", str(options.threads), "--quiet",
                           "spectra", str(model), "--out", str(out), "--force"]  # fmt: skip
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help="write bench/results/")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    record = {"benchmark": "spectra_models", "device": options.device, "threads": options.threads,
              "processor": processor()}  # fmt: skip
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    minilm = cache / "subspace" / "all-MiniLM-L6-v2"
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        if minilm.exists():
            times = [seconds(minilm, folder / "minilm", options) for _ in range(3)]
            record["minilm_seconds"] = times
            print(f"all-MiniLM-L6-v2: {min(times):.2f} s (slowest of 3: {max(times):.2f})")
        else:
            print("all-MiniLM-L6-v2 is not here: run ./run demo first")
        medians = []
        for depth in DEPTHS:
            subprocess.run(program() + ["--quiet", "synth", "bert-base", "--layers", str(depth),
                                        "--dtype", "f32", "--out", str(folder / f"bert{depth}")],
                           check=True, stdout=subprocess.DEVNULL)  # fmt: skip
            times = [seconds(folder / f"bert{depth}", folder / "out", options) for _ in range(3)]
            medians.append(statistics.median(times))
            print(f"BERT-base shapes, {depth:3d} layers: {medians[-1]:6.2f} s", flush=True)
    layer, fixed = np.polyfit(DEPTHS, medians, 1)
    off = max(abs(layer * n + fixed - t) / t for n, t in zip(DEPTHS, medians))
    record["depth"] = {"layers": DEPTHS, "seconds": medians, "seconds_a_layer": layer,
                       "fixed_seconds": fixed, "largest_relative_deviation": off}  # fmt: skip
    print(f"{layer:.3f} s a layer and {fixed:.2f} s; no depth is off that line by more than "
          f"{100 * off:.0f} %")
    if options.record:
        path = ROOT / "bench" / "results" / f"spectra_models-{options.device}.json"
        path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
