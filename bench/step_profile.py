"""Where a training step's time goes on a GPU: every launch of one step, by what it does.

Nsight Compute replays each launch of the step that bench/train_engine --profile marks (outside its
CUDA graph, one launch at a time: gaps and overlap between launches are not in these figures) and
counts its time and the bytes that reach memory. A matrix product says nothing about whose it is;
those between the first and the last launch of the loss, with the one before and the two behind, are
the head's.

    ./run bench step_profile --config configs/decoder-mla-o.json [--set NAME=VALUE]... [--record]
        [--program build/cuda/bench/train_engine]
"""

import argparse
import csv
import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TIME, BYTES = "gpu__time_duration.sum", "dram__bytes.sum"
UNITS = {"ns": 1e-3, "nsecond": 1e-3, "us": 1, "usecond": 1, "ms": 1e3, "msecond": 1e3,
         "byte": 1, "Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9}
PARTS = (  # in the order in which they are tried
    ("loss", r"CrossEntropy"),
    ("norms", r"RmsNorm"),
    ("gates", r"Swiglu"),
    ("rotation and heads", r"RotaryHeads"),
    ("attention", r"ShortAttention|sdpa|flash|fmha|attention"),
    ("optimiser", r"Adamw|AdamwRun"),
    ("routing", r"ProductKeyTopk"),
    ("norm of queries", r"BatchNorm|ColumnMoments"),
    ("experts", r"walk_tokens|sum_pieces|sum_lists|Expert|find_offsets"),
    ("sums of gradients", r"add_sums"),
    ("products", r"gemm|nvjet|cutlass|xmma|splitKreduce|cublas"),
    ("embedding and sorts", r"embedding|indexSelect|index_select|gather|scatter|index_put|radix|sort"),
)


def part_of(kernel):
    return next((part for part, names in PARTS if re.search(names, kernel, re.I)), "other")


def launches_of(text):
    """Nsight Compute's rows, one a launch and metric, as [name, microseconds, bytes] in order."""
    rows = list(csv.DictReader(line for line in text.splitlines() if line.startswith('"')))
    launches = {}
    for row in rows:
        launch = launches.setdefault(row["ID"], [row["Kernel Name"], 0.0, 0.0])
        value = float(row["Metric Value"].replace(",", "")) * UNITS[row["Metric Unit"]]
        launch[1 if row["Metric Name"] == TIME else 2] += value
    return list(launches.values())


def head_products(launches):
    """The launches of matrix products that belong to the head."""
    losses = [i for i, launch in enumerate(launches) if part_of(launch[0]) == "loss"]
    products = [i for i, launch in enumerate(launches) if part_of(launch[0]) == "products"]
    if not losses:
        return set()
    inside = {i for i in products if losses[0] < i < losses[-1]}
    before = [i for i in products if i < losses[0]][-1:]
    behind = [i for i in products if i > losses[-1]][:2]
    return inside | set(before) | set(behind)


def table_of(launches):
    head, parts = head_products(launches), {}
    for i, (kernel, time, size) in enumerate(launches):
        part = "products of the head" if i in head else part_of(kernel)
        entry = parts.setdefault(part, {"part": part, "launches": 0, "microseconds": 0.0,
                                        "bytes": 0.0, "kernels": {}})
        entry["launches"] += 1
        entry["microseconds"] += time
        entry["bytes"] += size
        entry["kernels"][kernel] = entry["kernels"].get(kernel, 0) + time
    rows = sorted(parts.values(), key=lambda entry: -entry["microseconds"])
    for row in rows:
        longest = sorted(row["kernels"].items(), key=lambda item: -item[1])[:4]
        row["kernels"] = [{"name": name[:160], "microseconds": round(t, 1)} for name, t in longest]
        row["terabytes_per_second"] = round(row["bytes"] / row["microseconds"] / 1e6, 2)
        row["microseconds"], row["bytes"] = round(row["microseconds"], 1), int(row["bytes"])
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", default="configs/decoder-mla-o.json")
    parser.add_argument("--set", action="append", default=[], dest="sets")
    parser.add_argument("--program", default="build/cuda/bench/train_engine")
    parser.add_argument("--record", action="store_true", help="write bench/results/")
    options = parser.parse_args()
    import torch
    if not torch.cuda.is_available():
        print("step_profile: needs a CUDA device")
        return
    device = torch.cuda.get_device_name()
    sets = [word for setting in options.sets for word in ("--set", setting)]
    command = ["ncu", "--profile-from-start", "off", "--clock-control", "none", "--csv",
               "--metrics", f"{TIME},{BYTES}", str(ROOT / options.program), options.config, *sets,
               "--steps", "5", "--repeats", "1", "--profile"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    launches = launches_of(done.stdout)
    if done.returncode or not launches:
        sys.exit(f"step_profile: ncu failed:\n{(done.stdout + done.stderr)[-2000:]}")
    rows = table_of(launches)
    total = sum(row["microseconds"] for row in rows)
    print(f"{device}, {options.config}: {len(launches)} launches, {total / 1e3:.2f} ms")
    for row in rows:
        print(f"{row['microseconds'] / 1e3:8.2f} ms {row['launches']:5d} launches "
              f"{row['terabytes_per_second']:6.2f} TB/s  {row['part']}")
    if options.record:
        name = f"step_profile-{Path(options.config).stem}-{device.split()[1].lower()}.json"
        record = {"benchmark": "step_profile", "device": device, "config": options.config,
                  "set": options.sets, "launches": len(launches),
                  "milliseconds": round(total / 1e3, 2), "parts": rows}
        (ROOT / "bench" / "results" / name).write_text(json.dumps(record, indent=1) + "\n")
        print(f"wrote bench/results/{name}")


if __name__ == "__main__":
    main()
