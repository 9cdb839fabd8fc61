"""Everything `subspace lora heads` says of a Llama-3-8B-shaped layer: ours, NumPy, dense matrices.

An adapter of rank 16 on q, k, v and o. All run in this script, on the same weights, in float64, on
the same number of threads:

  subspace     the program, from the files to the written results, the start of the process included
  numpy        the same factorisation in NumPy: QR of [W | A] head by head (R alone, keys and values
               once a group), cores, the Gram matrix of the terms by matrices of k x k, three SVDs,
               two eigenvalue problems; nothing of offsets, intruders, angles, shared features
  forming      the four terms of a circuit multiplied out, [4096, 4096] each, and their Gram matrix;
               nothing else
  dense        what someone does who has a library and not the algebra: base, change and adapted
               circuit of a head formed, [4096, 4096] each, and the singular values of each. No
               vectors, terms, eigenvalues or offsets. One circuit of one head is measured (QK of
               head 0: three matrices), the layer's 64 are scaled from it
  on a GPU     forming and dense are measured there as well, by PyTorch

The other baselines do some heads of one layer and are scaled to all of them, which the table says.

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


def circuit_sides(layer, left, right, head):
    """X_0 and X_1 = A B of both sides of a head's circuit, [4096, 128] each."""
    group = head // (HEADS // GROUPS)
    w, a, b = layer[left]
    own = group if left == "v_proj" else head
    x = part(w, own), a @ part(b, own)
    w2, a2, b2 = layer[right]
    if right == "o_proj":
        rows = slice(head * HEAD, (head + 1) * HEAD)
        return x, (w2[rows].T, (a2[rows] @ b2).T)
    return x, (part(w2, group), a2 @ part(b2, group))


CIRCUITS = (("q_proj", "k_proj"), ("v_proj", "o_proj"))


def wait(device):
    if device != "cpu":
        torch.cuda.synchronize(torch.device(device))


def forming_seconds(layer, heads, device="cpu"):
    """Of `heads` heads, scaled to the layer."""
    wait(device)
    start = time.perf_counter()
    for head in range(heads):
        for left, right in CIRCUITS:
            x, y = circuit_sides(layer, left, right, head)
            terms = [(one @ two.T).reshape(-1) for one in x for two in y]
            gram = [[float(s @ t) for t in terms] for s in terms]
            assert np.isfinite(gram).all()
    return (time.perf_counter() - start) * HEADS / heads


def dense_seconds(layer, device="cpu"):
    """Base, change and adapted QK of head 0 and their singular values, scaled to the layer."""
    values = (
        torch.linalg.svdvals
        if device != "cpu"
        else lambda matrix: np.linalg.svd(matrix, compute_uv=False)
    )
    wait(device)
    start = time.perf_counter()
    (x0, x1), (y0, y1) = circuit_sides(layer, *CIRCUITS[0], 0)
    base, delta = x0 @ y0.T, x1 @ (y0 + y1).T + x0 @ y1.T
    for matrix in (base, delta, base + delta):
        assert np.isfinite(float(values(matrix)[0]))
    return (time.perf_counter() - start) * len(CIRCUITS) * HEADS


def on_device(layer, device):
    return {
        name: tuple(torch.from_numpy(np.ascontiguousarray(x)).to(device) for x in tensors)
        for name, tensors in layer.items()
    }


def baselines(layer, options):
    """Seconds a layer by name, and what of it was measured."""
    few = f"scaled from {options.heads} heads of {HEADS}"
    one = f"scaled from one circuit of {HEADS * len(CIRCUITS)}"
    measures = {
        "numpy": (lambda: numpy_seconds(layer, options.heads), few),
        "forming": (lambda: forming_seconds(layer, options.heads), few),
        "dense": (lambda: dense_seconds(layer), one),
    }
    if options.device != "cpu":
        there = on_device(layer, options.device)
        forming_seconds(there, 1, options.device)  # the libraries' start, which is not timed
        torch.linalg.svdvals(torch.eye(256, dtype=torch.float64, device=options.device))
        measures["forming on the GPU"] = (
            lambda: forming_seconds(there, options.heads, options.device),
            few,
        )
        measures["dense on the GPU"] = (lambda: dense_seconds(there, options.device), one)
    found = {}
    for name, (measure, scaled) in measures.items():
        if options.skip_dense and name.startswith("dense"):
            continue
        found[name] = {"seconds_a_layer": measure(), "measured": scaled}
        print(f"  {name}: {found[name]['seconds_a_layer']:.1f} s a layer", file=sys.stderr, flush=True)
    return found


STAGES = {
    "read": "read the layer (GPU: and copy it there, convert it)",
    "products": "products over the model's width (GPU)",
    "transfer": "copy what they gave to the host (GPU)",
    "frames": "triangular factors (CPU: with their products)",
    "heads": "all small matrices (CPU: with Y^T X)",
    "json": "entries of heads.json",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help="write bench/results/")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--layers", type=int, default=4, help="of the 32 that the model has")
    parser.add_argument("--heads", type=int, default=2, help="that the baselines do")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--skip-baseline", action="store_true")
    parser.add_argument("--skip-dense", action="store_true", help="minutes on two cores")
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
        times = result["times"]
        baseline = {} if options.skip_baseline else baselines(layer_zero(model, adapter), options)

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
        "subspace_seconds_to_write": seconds - times["total_seconds"],
        "subspace_seconds_in_layers": times["layer_seconds"],
        "subspace_stage_seconds": times["stage_seconds"],
        "subspace_seconds_a_layer": per_layer,
        "model_of_32_layers_seconds": 32 * per_layer,
        "scaled_from_layers": options.layers,
        "baselines": baseline,
        "ratios": {name: row["seconds_a_layer"] / per_layer for name, row in baseline.items()},
    }
    scaled = "" if options.layers == 32 else f", scaled from {options.layers}"
    print(f"{'subspace lora heads, a layer (start included)':52s} {per_layer:9.2f} s")
    print(f"{'  all 32 layers' + scaled:52s} {32 * per_layer:9.2f} s")
    print(f"{'  start of the process and writing':52s} {seconds - times['total_seconds']:9.2f} s")
    for name, label in STAGES.items():
        print(f"{'  ' + label:52s} {times['stage_seconds'][name]:9.2f} s")
    print("  (stages: summed over layers, which overlap)")
    for name, row in baseline.items():
        value = row["seconds_a_layer"]
        label = f"{name}, a layer ({row['measured']})"
        print(f"{label:60s} {value:9.2f} s   {value / per_layer:6.1f} times ours")
    if options.record:
        name = "cpu" if options.device == "cpu" else record["device"].split()[-1].lower()
        path = ROOT / "bench" / "results" / f"lora_heads-{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(record, indent=1) + "\n")
        print(f"record: {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
