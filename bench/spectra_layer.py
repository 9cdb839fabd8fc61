"""One DeepSeek-V3-shaped FP8 layer, all spectra: subspace against the published method.

The published method is `torch.linalg.svdvals` in float32 on every head's matrix and on every stack,
products formed ("Output Latent Spaces in Multihead Attention", McCormick, 2025). Both run in this
script, on the same weights, the same device and the same number of threads. The published method
gets its weights decoded and on the device before the clock starts. Of subspace the second of two
layers counts, as one in the middle of a run: everything from the file to the written result, with
the next layer read meanwhile. The first, which also starts the device and waits for its own
weights, is recorded beside it.

    ./run bench spectra_layer [--record] [--device cuda] [--threads N] [--skip-baseline]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors import safe_open

from common.machine import ROOT, processor, program



def dequantized(file, name, device):
    """An FP8 matrix with its 128x128 block scales, float32, as the published code computes it."""
    weight = file.get_tensor(name).to(device).to(torch.float32)
    scale = file.get_tensor(name + "_scale_inv").to(device).to(torch.float32)
    rows, cols = weight.shape
    scale = scale.repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :cols]
    return weight * scale


def factors(folder, device):
    """Q_i, Qpe_i, K_i, V_i, O_i, QA, KVA, Kpe of layer 0, row vectors, float32."""
    config = json.loads((folder / "config.json").read_text())
    heads, nope, rope = (
        config["num_attention_heads"],
        config["qk_nope_head_dim"],
        config["qk_rope_head_dim"],
    )
    value, r_kv = config["v_head_dim"], config["kv_lora_rank"]
    index = folder / "model.safetensors.index.json"
    where = json.loads(index.read_text())["weight_map"] if index.exists() else None
    prefix = "model.layers.0.self_attn."

    def read(name):
        shard = where[prefix + name] if where else "model.safetensors"
        with safe_open(folder / shard, "pt") as file:
            return dequantized(file, prefix + name, device)

    q = read("q_b_proj.weight").view(heads, nope + rope, -1).transpose(1, 2)
    kv = read("kv_b_proj.weight").view(heads, nope + value, -1).transpose(1, 2)
    kva = read("kv_a_proj_with_mqa.weight").T
    o = read("o_proj.weight").T.reshape(heads, value, -1)
    return {
        "Q": q[..., :nope],
        "Qpe": q[..., nope:],
        "K": kv[..., :nope],
        "V": kv[..., nope:],
        "O": o,
        "QA": read("q_a_proj.weight").T,
        "KVA": kva[:, :r_kv],
        "Kpe": kva[:, r_kv:],
    }


def published_method(f, device, parts):
    """Seconds of each part: svdvals of each head and each stack, products formed."""
    seconds = {}

    def timed(name, make):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        for matrix in make():
            torch.linalg.svdvals(matrix)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds[name] = time.perf_counter() - start
        print(f"  published  {name:14s} {seconds[name]:8.2f} s", file=sys.stderr, flush=True)

    heads = range(f["Q"].shape[0])
    if "heads" in parts:
        for name in ("Q", "Qpe", "K", "V", "O"):
            timed(name + " heads", lambda name=name: (f[name][i] for i in heads))
        timed("VO heads", lambda: (f["V"][i] @ f["O"][i] for i in heads))
        timed("QK heads", lambda: (f["Q"][i] @ f["K"][i].T for i in heads))
    if "stacks" in parts:
        for name in ("Q", "Qpe", "K", "V"):
            timed(name + " stack", lambda name=name: [torch.cat(list(f[name]), 1)])
        for name in ("QA", "KVA", "Kpe"):
            timed(name, lambda name=name: [f[name]])
        timed("O stack", lambda: [torch.cat(list(f["O"]), 0)])
        timed("VO stack", lambda: [torch.cat([f["V"][i] @ f["O"][i] for i in heads], 0)])
        timed("OV stack", lambda: [torch.cat([f["V"][i] @ f["O"][i] for i in heads], 1)])
        timed("QK stack", lambda: [torch.cat([f["Q"][i] @ f["K"][i].T for i in heads], 0)])
        timed("KQ stack", lambda: [torch.cat([f["Q"][i] @ f["K"][i].T for i in heads], 1)])
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help="write bench/results/")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model", type=Path, help="a checkpoint made earlier by synth")
    parser.add_argument("--parts", default="heads,stacks")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--skip-baseline", action="store_true")
    parser.add_argument("--repeats", type=int, default=1, help="runs of subspace; the best counts")
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.set_num_threads(options.threads)

    with tempfile.TemporaryDirectory() as scratch:
        model = options.model or Path(scratch) / "model"
        if options.model is None:
            subprocess.run(
                program()
                + ["synth", "deepseek-v3", "--layers", "2", "--dtype", "fp8", "--out", str(model)],
                check=True,
            )
        runs = []
        for repeat in range(options.repeats):
            out = Path(scratch) / f"out{repeat}"
            subprocess.run(
                program()
                + ["spectra", str(model), "--layers", "0,1", "--out", str(out)]
                + ["--device", options.device, "--threads", str(options.threads), "--quiet"],
                check=True,
                stdout=subprocess.DEVNULL,
            )
            runs.append(json.loads((out / "summary.json").read_text()))
        baseline = {}
        if not options.skip_baseline:
            with torch.no_grad():
                baseline = published_method(
                    factors(model, device), device, options.parts.split(",")
                )

    first = [run["times"]["layer_seconds"][0] for run in runs]
    ours = [run["times"]["layer_seconds"][1] for run in runs]
    record = {
        "benchmark": "spectra_layer",
        "commit": runs[0]["program"].get("commit"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else runs[0]["device"],
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "shape": "DeepSeek-V3, FP8, a layer: d 7168, 128 heads, q latent 1536, kv latent 512",
        "processor": processor(),
        "bytes_read_by_two_layers": runs[0]["bytes_read"],
        "peak_memory_bytes": runs[0]["peak_memory_bytes"],
        "subspace_layer_seconds": ours,
        "subspace_first_layer_seconds": first,
        "published_seconds": baseline,
        "published_total_seconds": sum(baseline.values()) or None,
        "ratio": sum(baseline.values()) / min(ours) if baseline else None,
    }
    print(f"{'published method (svdvals, float32)':40s} {sum(baseline.values()):9.2f} s")
    print(f"{'subspace (float64, factored)':40s} {min(ours):9.2f} s")
    print(f"{'  its first layer, start included':40s} {min(first):9.2f} s")
    if baseline:
        print(f"{'ratio':40s} {record['ratio']:9.2f}")
    if options.record:
        name = options.device if device.type == "cpu" else record["device"].split()[-1].lower()
        path = ROOT / "bench" / "results" / f"spectra_layer-{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(record, indent=1) + "\n")
        print(f"record: {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
