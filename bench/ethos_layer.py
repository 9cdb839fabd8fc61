"""Layers of single-neuron experts, forward + backward: ours against plain PyTorch, in one process.

Plain PyTorch is the reordered layer (h generated for every selection: the published idea, with the
projections moved out) and table + gather (all h once, then gathered), each eager and compiled, with
the usual product-key search (top k of both sides, then of their k^2 sums). It keeps [tokens,
selections, d_h] values, for which the memory must be there.

    ./run bench ethos_layer [--record] [--device cuda] [--tokens N] [--skip NAME,...]
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch.nn.functional import embedding, gelu

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "python"))

from subspace import nn, ops  # noqa: E402

SIZES = {  # the specification's, and one for two cores
    "cuda": dict(d=1024, d_h=512, d_l=128, side=512, heads=8, k=16, query=512, tokens=32768,
                 dtype=torch.bfloat16),
    "cpu": dict(d=256, d_h=256, d_l=128, side=128, heads=8, k=16, query=128, tokens=1024,
                dtype=torch.float32),
}  # fmt: skip


def inputs(s, device):
    torch.manual_seed(1)

    def normal(*sizes, scale=1.0):
        values = torch.randn(*sizes, device=device) * scale
        return values.to(s["dtype"]).requires_grad_()

    selections = s["heads"] * s["k"]
    scores = torch.rand(s["tokens"], selections, device=device) / s["k"]
    power = (nn.GELU_SQUARE * s["d_h"]) ** -0.5
    return {
        "x": normal(s["tokens"], s["d"]),
        "xp": normal(s["tokens"], s["d_h"], scale=power),
        "scores": scores.requires_grad_(),
        "index": torch.randint(s["side"] ** 2, (s["tokens"], selections), device=device),
        "z": normal(s["side"] ** 2, s["d_l"]),
        "w1": normal(s["d_l"], s["d_h"], scale=s["d_l"] ** -0.5),
        "w_u": normal(s["d"], s["d_h"], scale=s["d"] ** -0.5 * power),
        "w_v": normal(s["d_h"], s["d"], scale=power),
        "key": normal(2, s["side"], s["query"] // 2, scale=(s["query"] / 2) ** -0.5),
        "w_q": normal(s["d"], s["heads"] * s["query"], scale=s["d"] ** -0.5),
    }


def weigh(h, xp, scores):
    a = gelu(torch.einsum("tsi,ti->ts", h, xp)) * scores.to(h.dtype)
    return torch.einsum("ts,tsi->ti", a, h)


def reordered(xp, scores, index, z, w1):
    return weigh(gelu(embedding(index, z) @ w1), xp, scores)


def table_and_gather(xp, scores, index, z, w1):
    return weigh(embedding(index, gelu(z @ w1)), xp, scores)


def topk_pytorch(s1, s2, k):
    """The usual product-key search: top k of each side, then of the k^2 sums."""
    side = s1.shape[-1]
    a, i = s1.topk(k, -1)
    b, j = s2.topk(k, -1)
    scores, best = (a[..., :, None] + b[..., None, :]).flatten(-2).topk(k, -1)
    index = (i[..., :, None] * side + j[..., None, :]).flatten(-2).gather(-1, best)
    return scores.float().softmax(-1), index


def halves_pytorch(queries, heads):
    """Both halves of every head's query, normalised over the tokens."""
    normal = torch.nn.functional.batch_norm(queries, None, None, training=True)
    return normal.unflatten(1, (heads, 2, -1)).unbind(2)


def halves_subspace(queries, heads):
    moments = ops.column_moments(queries.detach())
    ones = queries.new_ones(queries.shape[1], dtype=torch.float32)
    return ops.batch_norm_halves(queries, ones, torch.zeros_like(ones), *moments, heads, 1e-5, True)


def whole_layer(s, halves, topk, experts):
    """Routing (query norm over tokens), projections and experts."""

    def run(x, key, w_q, z, w1, w_u, w_v):
        first, second = halves(x @ w_q, s["heads"])
        scores, index = topk(first @ key[0].T, second @ key[1].T, s["k"])
        acc = experts(x @ w_u, scores.flatten(1), index.flatten(1), z, w1)
        return acc @ (w_v / s["heads"])

    return run


def seconds(work, device, repeats):
    """Median and spread of forward + backward after two for warming up."""
    times = []
    for i in range(repeats + 2):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if i >= 2:
            times.append(time.perf_counter() - start)
    return {"seconds": statistics.median(times), "min": min(times), "max": max(times)}


def cases(s, t):
    """name -> (group, function, arguments)."""
    expert_names = ("xp", "scores", "index", "z", "w1")
    layer_names = ("x", "key", "w_q", "z", "w1", "w_u", "w_v")
    ours = whole_layer(s, halves_subspace, lambda a, b, k: ops.product_key_topk(a, b, k, True),
                       ops.ethos_experts)  # fmt: skip
    found = {
        "experts, subspace": ("experts", ops.ethos_experts, expert_names),
        "layer, subspace": ("layer", ours, layer_names),
        "layer, subspace, compiled": ("layer", torch.compile(ours), layer_names),
    }
    for name, experts in (("reordered", reordered), ("table + gather", table_and_gather)):
        layer = whole_layer(s, halves_pytorch, topk_pytorch, experts)
        found[f"experts, {name}, eager"] = ("experts", experts, expert_names)
        found[f"experts, {name}, compiled"] = ("experts", torch.compile(experts), expert_names)
        found[f"layer, {name}, eager"] = ("layer", layer, layer_names)
        found[f"layer, {name}, compiled"] = ("layer", torch.compile(layer), layer_names)
    return {name: (group, f, [t[n] for n in names]) for name, (group, f, names) in found.items()}


def measure(s, device, repeats, skip=""):
    """Rows of what is timed at a size, and how much longer the best of PyTorch takes than ours."""
    t, rows, best = inputs(s, device), [], {}
    for name, (group, function, arguments) in cases(s, t).items():
        if any(part and part in name for part in skip.split(",")):
            continue
        grad = torch.randn(s["tokens"], s["d_h"] if group == "experts" else s["d"], device=device)
        grad = grad.to(s["dtype"])
        wanted = [a for a in arguments if a.requires_grad]

        def work(function=function, arguments=arguments, wanted=wanted, grad=grad):
            torch.autograd.grad(function(*arguments), wanted, grad)

        try:
            time_of = seconds(work, device, repeats)
        except torch.OutOfMemoryError as error:  # a baseline that does not fit is a result too
            rows.append({"name": name, "error": str(error)[:120]})
            print(f"{name:40s} out of memory", flush=True)
            continue
        us = 1e6 * time_of["seconds"] / s["tokens"]
        rows.append({"name": name, "us_per_token": us, **time_of})
        who = "subspace" if "subspace" in name else "pytorch"
        best[group, who] = min(best.get((group, who), float("inf")), us)
        print(f"{name:40s} {1e3 * time_of['seconds']:10.3f} ms {us:9.4f} us/token", flush=True)
    ratios = {
        group: best[group, "pytorch"] / best[group, "subspace"]
        for group in ("experts", "layer")
        if (group, "pytorch") in best and (group, "subspace") in best
    }
    return rows, ratios


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help="write bench/results/")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--skip", default="", help="parts of names, separated by commas")
    options = parser.parse_args()
    device = torch.device(options.device)
    s = dict(SIZES[device.type])
    s["tokens"] = options.tokens or s["tokens"]
    rows, ratios = measure(s, device, options.repeats, options.skip)
    for group, ratio in ratios.items():
        print(f"{group}: the best of PyTorch takes {ratio:.2f} times as long")
    if options.record:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=ROOT, capture_output=True, text=True,
        ).stdout.strip()  # fmt: skip
        record = {
            "benchmark": "ethos_layer",
            "commit": described or None,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "sizes": {name: str(value) if name == "dtype" else value for name, value in s.items()},
            "rows": rows,
            "ratios": ratios,
        }
        name = "h200" if device.type == "cuda" else "cpu"
        path = ROOT / "bench" / "results" / f"ethos_layer-{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(record, indent=1) + "\n")
        print(f"record: {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
