"""Everything `subspace lora heads` says of a Llama-3-8B-shaped layer: ours, NumPy, dense matrices.

An adapter of rank 16 on q, k, v and o. All run in this script, on the same weights, in float64, on
the same number of threads:

  subspace     the program, from the files to the written results, the start of the process included
  numpy        the same factorisation in NumPy: QR of [W | A] head by head (R alone, keys and values
               once a group), cores, the Gram matrix of the terms by matrices of k x k, three SVDs,
               two eigenvalue problems; nothing of offsets, intruders, angles, shared features
  dense        the four terms of a circuit multiplied out, [4096, 4096] each, and their Gram matrix;
               no spectra, which would take minutes a circuit

The baselines do some heads of one layer and are scaled to all of them, which the table says.

    ./run bench lora_heads [--record] [--layers N] [--device cuda] [--threads N] [--heads N]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from common.machine import ROOT, processor, program

RANK, HEADS, GROUPS, WIDTH, HEAD = 16, 32, 8, 4096, 128
OUT = {"q_proj": HEADS * HEAD, "k_proj": GROUPS * HEAD, "v_proj": GROUPS * HEAD, "o_proj": WIDTH}


def write_adapter(folder, base, layers):
    """An adapter as PEFT writes it, of a size that fine-tuning gives."""
    folder.mkdir(parents=True)
    random = torch.Generator().manual_seed(1)
    tensors = {}
    for layer in range(layers):
        for name, out in OUT.items():
            path = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors[f"{path}.lora_A.weight"] = torch.randn(RANK, WIDTH, generator=random) / 64
            tensors[f"{path}.lora_B.weight"] = torch.randn(out, RANK, generator=random) / 640
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": str(base),
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "target_modules": list(OUT),
        "bias": "none",
        "fan_in_fan_out": False,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return tensors


def ours(model, adapter, out, options):
    start = time.perf_counter()
    subprocess.run(
        program()
        + ["lora", "heads", "--base", str(model), "--adapter", str(adapter), "--out", str(out)]
        + ["--device", options.device, "--threads", str(options.threads), "--quiet"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    seconds = time.perf_counter() - start
    return seconds, json.loads((out / "heads.json").read_text())


def layer_zero(model, adapter):
    """W [d, ..], A [d, r] and B [r, ..] of the projections, row vectors, float64."""
    index = model / "model.safetensors.index.json"
    where = json.loads(index.read_text())["weight_map"] if index.exists() else None

    def weight(name):
        key = f"model.layers.0.self_attn.{name}.weight"
        with safe_open(model / (where[key] if where else "model.safetensors"), "pt") as file:
            return file.get_tensor(key).to(torch.float64).numpy().T

    found = {}
    for name in OUT:
        path = f"base_model.model.model.layers.0.self_attn.{name}"
        a = adapter[f"{path}.lora_A.weight"].double().numpy().T
        b = 2 * adapter[f"{path}.lora_B.weight"].double().numpy().T
        found[name] = weight(name), a, b
    return found


def part(x, head):
    return x[:, head * HEAD : (head + 1) * HEAD]


def cores_of(layer, name, head):
    """R of [W_i | A] (o: of [O_i^T | B^T]), cut into the cores of W_i and of A B_i."""
    weight, a, b = layer[name]
    if name == "o_proj":
        rows = weight[head * HEAD : (head + 1) * HEAD].T
        span, coords = b.T, a[head * HEAD : (head + 1) * HEAD].T
    else:
        rows, span, coords = part(weight, head), a, part(b, head)
    r = np.linalg.qr(np.concatenate([rows, span], 1), mode="r")
    return r[:, :HEAD], r[:, HEAD:] @ coords


def numpy_circuit(x, y):
    """Terms' Gram matrix, spectra of base, adapted and delta from two sides' cores."""
    xs, ys = np.stack(x), np.stack(y)
    left = np.einsum("afk,bfl->abkl", xs, xs, optimize=True)
    right = np.einsum("afk,bfl->abkl", ys, ys, optimize=True)
    gram = np.einsum("acxy,bdxy->abcd", left, right, optimize=True)
    base, adapted = x[0] @ y[0].T, (x[0] + x[1]) @ (y[0] + y[1]).T
    delta = x[1] @ (y[0] + y[1]).T + x[0] @ y[1].T
    for matrix in (base, adapted, delta):
        np.linalg.svd(matrix, full_matrices=False)
    return gram


def numpy_eigenvalues(layer, left, right, head, group):
    w, a, b = layer[left]
    x, dx = part(w, group if left == "v_proj" else head), a
    coords = part(b, group if left == "v_proj" else head)
    w2, a2, b2 = layer[right]
    if right == "o_proj":
        y, dy, coords2 = w2[head * HEAD : (head + 1) * HEAD].T, b2.T, a2[head * HEAD : (head + 1) * HEAD].T
    else:
        y, dy, coords2 = part(w2, group), a2, part(b2, group)
    base = y.T @ x
    adapted = (
        base + (y.T @ dx) @ coords + coords2.T @ (dy.T @ x) + coords2.T @ (dy.T @ dx) @ coords
    )
    for matrix in (base, adapted):
        np.linalg.eigvals(matrix)


def numpy_seconds(layer, heads):
    """Of `heads` heads, scaled to the layer; keys' and values' frames count once a group."""
    per_head, per_group = 0.0, 0.0
    for head in range(heads):
        group = head // (HEADS // GROUPS)
        start = time.perf_counter()
        keys, values = cores_of(layer, "k_proj", group), cores_of(layer, "v_proj", group)
        middle = time.perf_counter()
        queries, outputs = cores_of(layer, "q_proj", head), cores_of(layer, "o_proj", head)
        numpy_circuit(queries, keys)
        numpy_circuit(values, outputs)
        numpy_eigenvalues(layer, "q_proj", "k_proj", head, group)
        numpy_eigenvalues(layer, "v_proj", "o_proj", head, group)
        per_group += middle - start
        per_head += time.perf_counter() - middle
    return (per_head * HEADS + per_group * GROUPS) / heads


def dense_seconds(layer, heads):
    """Of `heads` heads, scaled to the layer."""
    start = time.perf_counter()
    for head in range(heads):
        group = head // (HEADS // GROUPS)
        for left, right, i, j in (("q_proj", "k_proj", head, group), ("v_proj", "o_proj", group, head)):
            w, a, b = layer[left]
            x = part(w, i), a @ part(b, i)
            w2, a2, b2 = layer[right]
            if right == "o_proj":
                rows = slice(j * HEAD, (j + 1) * HEAD)
                y = w2[rows].T, (a2[rows] @ b2).T
            else:
                y = part(w2, j), a2 @ part(b2, j)
            terms = [(one @ two.T).ravel() for one in x for two in y]
            gram = np.array([[s @ t for t in terms] for s in terms])
            assert np.isfinite(gram).all()
    return (time.perf_counter() - start) * HEADS / heads


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help="write bench/results/")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--layers", type=int, default=4, help="of the 32 that the model has")
    parser.add_argument("--heads", type=int, default=2, help="that the baselines do")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--skip-baseline", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    with tempfile.TemporaryDirectory() as scratch:
        model, folder = Path(scratch) / "model", Path(scratch) / "adapter"
        subprocess.run(
            program()
            + ["synth", "llama-3-8b", "--layers", str(options.layers), "--dtype", "bf16"]
            + ["--out", str(model)],
            check=True,
        )
        adapter = write_adapter(folder, model, options.layers)
        seconds, result = ours(model, folder, Path(scratch) / "out", options)
        layer_seconds = result["times"]["layer_seconds"]
        baseline = {}
        if not options.skip_baseline:
            layer = layer_zero(model, adapter)
            for name, measure in (("numpy", numpy_seconds), ("dense", dense_seconds)):
                baseline[name] = measure(layer, options.heads)
                print(f"  {name}: {baseline[name]:.1f} s a layer", file=sys.stderr, flush=True)

    per_layer = seconds / options.layers
    record = {
        "benchmark": "lora_heads",
        "commit": result["program"].get("commit"),
        "device": options.device
        if options.device == "cpu"
        else torch.cuda.get_device_name(torch.device(options.device)),
        "processor": processor(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "threads": options.threads,
        "shape": "Llama-3-8B: d 4096, 32 heads of 128, 8 groups, bf16; rank 16 on q, k, v, o",
        "layers": options.layers,
        "subspace_seconds": seconds,
        "subspace_seconds_in_layers": layer_seconds,
        "subspace_seconds_a_layer": per_layer,
        "model_of_32_layers_seconds": 32 * per_layer,
        "scaled_from_layers": options.layers,
        "baseline_heads_measured": options.heads,
        "baseline_seconds_a_layer": baseline,
        "ratios": {name: value / per_layer for name, value in baseline.items()},
    }
    scaled = "" if options.layers == 32 else f", scaled from {options.layers}"
    print(f"{'subspace lora heads, a layer (start included)':52s} {per_layer:9.2f} s")
    print(f"{'  all 32 layers' + scaled:52s} {32 * per_layer:9.2f} s")
    for name, value in baseline.items():
        label = f"{name}, a layer (scaled from {options.heads} heads of 32)"
        print(f"{label:52s} {value:9.2f} s   {value / per_layer:6.1f} times ours")
    if options.record:
        name = "cpu" if options.device == "cpu" else record["device"].split()[-1].lower()
        path = ROOT / "bench" / "results" / f"lora_heads-{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(record, indent=1) + "\n")
        print(f"record: {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
