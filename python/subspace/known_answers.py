"""The known-answer suite of LoRA algebra: adapters whose effect theory says in advance.

    ./run python -m subspace.known_answers --out DIR [--seeds 0,1,2,3,4] [--record]

Trains small attention-only decoders that do induction (`configs/known-answer-base.json`), then
LoRA adapters on them for three other answers to the same sequences, with this project's own
trainer; measures with `subspace lora causal` what each circuit, head and connection of heads
contributes, and compares that with what the weights alone say: rel_fro of a head's circuits, and
rho of `subspace lora compose`. What is there already is not made again.

    ov    answers pass through a fixed exchange of 6 pairs of tokens: VO of the induction layer
    skip  the token two after the match: QK of the head that looks at the previous token
    rev   the token before the match: QK of layer 1 and VO of layer 0

docs/lora-known-answers.md has the table and what it says.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
TASKS = ("ov", "skip", "rev")
ADAPTERS = {
    "qkvo": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "qv": ["q_proj", "v_proj"],
}
OFFSETS = range(25)


def program():
    found = os.environ.get("SUBSPACE_PROGRAM")
    return [found] if found else [str(ROOT / "run"), "subspace"]


def run(*arguments):
    subprocess.run([*program(), *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def task_folder(out, answer):
    folder = out / "tasks" / answer
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "task.json").write_text(json.dumps({"kind": "induction", "answer": answer}) + "\n")
    return folder


def train(out, seed, tasks, adapters, threads):
    base = out / f"seed{seed}" / "base"
    common = ["--quiet", "--device", "cpu", "--threads", threads]
    if not (base / "config.json").exists():
        run(*common, "train", ROOT / "configs" / "known-answer-base.json", "--out", base,
            "--data", task_folder(out, "base"), "--seed", seed, "--resume")
    for task in tasks:
        for name in adapters:
            adapter = out / f"seed{seed}" / f"{task}-{name}"
            if (adapter / "adapter_config.json").exists():
                continue
            run(*common, "train", ROOT / "configs" / "known-answer-adapter.json", "--base", base,
                "--data", task_folder(out, task), "--out", adapter, "--seed", seed, "--resume",
                "--set", "target_modules=" + json.dumps(ADAPTERS[name]))
            print(f"trained seed {seed}: {task} {name}", file=sys.stderr, flush=True)


def analyse(out, seed, task, name, threads):
    adapter = out / f"seed{seed}" / f"{task}-{name}"
    given = ["--base", out / f"seed{seed}" / "base", "--adapter", adapter, "--out", adapter / "lora"]
    common = ["--quiet", "--device", "cpu", "--threads", threads]
    if not (adapter / "lora" / "compose.json").exists():
        run(*common, "lora", "compose", *given, "--offsets", f"0:{len(OFFSETS)}", "--between", "0-1")
    if not (adapter / "lora" / "causal.json").exists():
        run(*common, "lora", "causal", *given, "--data", task_folder(out, task), "--edges", "all",
            "--dtype", "float32", "--batch-size", 64, "--batches", 6, "--orders", 4)
    read = lambda file: json.loads((adapter / "lora" / file).read_text())
    return read("compose.json"), read("causal.json")


def rotation(delta, width, theta=10000.0):
    """R(delta) on row vectors, half layout."""
    half = width // 2
    angle = delta * theta ** (-np.arange(half) / half)
    turn = np.zeros((width, width))
    i = np.arange(half)
    turn[i, i] = turn[i + half, i + half] = np.cos(angle)
    turn[i, i + half], turn[i + half, i] = np.sin(angle), -np.sin(angle)
    return turn


def head_sizes(base, adapter, heads=4):
    """rel_fro of every head's circuits, dense: {(layer, circuit, head): ..}; QK over all offsets."""
    from safetensors.numpy import load_file

    weights = load_file(base / "model.safetensors")
    low_rank = load_file(adapter / "adapter_model.safetensors")
    config = json.loads((adapter / "adapter_config.json").read_text())
    scale = config["lora_alpha"] / config["r"]
    sizes = {}
    layer = 0
    while f"model.layers.{layer}.self_attn.q_proj.weight" in weights:
        block = f"model.layers.{layer}."
        gamma = weights[block + "input_layernorm.weight"].astype(float)

        def pair(part):
            name = f"{block}self_attn.{part}_proj"
            w = weights[name + ".weight"].astype(float)
            a = low_rank.get(f"base_model.model.{name}.lora_A.weight")
            b = low_rank.get(f"base_model.model.{name}.lora_B.weight")
            new = w if a is None else w + scale * b.astype(float) @ a.astype(float)
            if part == "o":
                return [m.T.reshape(heads, -1, len(gamma)) for m in (w, new)]
            return [(m * gamma).reshape(heads, -1, len(gamma)).transpose(0, 2, 1) for m in (w, new)]

        q, k, v, o = (pair(part) for part in "qkvo")
        for head in range(heads):
            vo = [v[i][head] @ o[i][head] for i in range(2)]
            sizes[layer, "VO", head] = np.linalg.norm(vo[1] - vo[0]) / np.linalg.norm(vo[0])
            change = whole = 0.0
            for delta in OFFSETS:
                turn = rotation(delta, q[0].shape[2])
                qk = [q[i][head] @ turn @ k[i][head].T for i in range(2)]
                change += np.sum((qk[1] - qk[0]) ** 2)
                whole += np.sum(qk[0] ** 2)
            sizes[layer, "QK", head] = np.sqrt(change / whole)
        layer += 1
    return sizes


def ranks(values):
    """Ranks from 1, ties in the middle."""
    values = np.asarray(values, float)
    order = values.argsort(kind="stable")
    out = np.empty(len(values))
    out[order] = np.arange(1, len(values) + 1)
    for value in np.unique(values):
        out[values == value] = out[values == value].mean()
    return out


def spearman(a, b):
    a, b = ranks(a), ranks(b)
    if a.std() == 0 or b.std() == 0:
        return None
    return float(np.corrcoef(a, b)[0, 1])


def precision(metric, effect, k):
    """Share of the k largest effects that are among the k largest of the metric."""
    top = lambda values: set(np.argsort(-np.asarray(values), kind="stable")[:k].tolist())
    return len(top(metric) & top(effect)) / k


def interval(values):
    """Mean with a 95 % bootstrap interval over seeds."""
    values = np.array([v for v in values if v is not None], float)
    if len(values) == 0:
        return None
    random = np.random.default_rng(0)
    means = values[random.integers(0, len(values), (4000, len(values)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return {"mean": float(values.mean()), "ci": [float(low), float(high)], "n": len(values)}


def compare(compose, causal, sizes):
    """One adapter's row: what happened, and how well weights told it."""
    units = {(h["layer"], h["circuit"], h["head"]): h for h in causal["heads"]}
    keys = sorted(units)
    size = [sizes[key] for key in keys]
    loo = [units[key]["loo"]["mean"] for key in keys]
    edges = {(*e["w"], *e["r"], e["mode"]): e["loo"]["mean"] for e in causal["edges"]}
    pairs = {(*p["w"], *p["r"], p["mode"]): p for p in compose["pairs"]}
    edge_keys = sorted(set(edges) & set(pairs))
    rho = [pairs[key]["rho"] for key in edge_keys]
    lift = [max(v or 0 for v in pairs[key]["lift"].values()) for key in edge_keys]
    effect = [edges[key] for key in edge_keys]
    best, cause = keys[int(np.argmax(size))], keys[int(np.argmax(loo))]
    groups = {f"L{g['layer']} {g['circuit']}": g["shapley"] for g in causal["groups"]}
    return {
        "loss": {k: causal["loss"][k] for k in ("base", "tuned")},
        "shapley": groups,
        "top_rel_fro": f"L{best[0]}H{best[2]} {best[1]}",
        "top_rel_fro_loo": units[best]["loo"]["mean"],
        "top_cause": f"L{cause[0]}H{cause[2]} {cause[1]}",
        "top_cause_loo": units[cause]["loo"]["mean"],
        "terms": {f"L{t['layer']} {t['term']}": t["loo"]["mean"] for t in causal["terms"]},
        "rel_fro_spearman": spearman(size, loo),
        "rel_fro_precision": {str(k): precision(size, loo, k) for k in (1, 3)},
        "rho_spearman": spearman(rho, effect),
        "rho_precision": {str(k): precision(rho, effect, k) for k in (1, 5)},
        "lift_spearman": spearman(lift, effect),
        "units": len(keys),
        "edges": len(edge_keys),
    }


def summary(rows):
    """Over seeds, for each task and adapter."""
    out = {}
    for name in sorted({row["task"] + "-" + row["adapter"] for row in rows}):
        mine = [row for row in rows if row["task"] + "-" + row["adapter"] == name]
        pick = lambda f: interval([f(row) for row in mine])
        out[name] = {
            "loss_base": pick(lambda r: r["loss"]["base"]["mean"]),
            "loss_tuned": pick(lambda r: r["loss"]["tuned"]["mean"]),
            "shapley": {g: pick(lambda r, g=g: r["shapley"][g]["mean"])
                        for g in mine[0]["shapley"]},
            "rel_fro_spearman": pick(lambda r: r["rel_fro_spearman"]),
            "rel_fro_precision_1": pick(lambda r: r["rel_fro_precision"]["1"]),
            "rel_fro_precision_3": pick(lambda r: r["rel_fro_precision"]["3"]),
            "rho_spearman": pick(lambda r: r["rho_spearman"]),
            "rho_precision_5": pick(lambda r: r["rho_precision"]["5"]),
            "lift_spearman": pick(lambda r: r["lift_spearman"]),
        }
    return out


def text(value):
    return "-" if value is None else f"{value['mean']:.2f} [{value['ci'][0]:.2f}, {value['ci'][1]:.2f}]"


def print_tables(record):
    names = list(next(iter(record["summary"].values()))["shapley"])
    print("| task, adapter | loss base -> tuned | " + " | ".join(names) + " |")
    print("|---|---|" + "---|" * len(names))
    for name, row in record["summary"].items():
        cells = " | ".join(text(row["shapley"][g]) for g in names)
        print(f"| {name} | {row['loss_base']['mean']:.2f} -> {row['loss_tuned']['mean']:.3f} | {cells} |")
    print()
    kinds = [k for k in next(iter(record["summary"].values())) if "spearman" in k or "precision" in k]
    print("| task, adapter | " + " | ".join(kinds) + " |")
    print("|---|" + "---|" * len(kinds))
    for name, row in record["summary"].items():
        print(f"| {name} | " + " | ".join(text(row[k]) for k in kinds) + " |")


def main():
    parser = argparse.ArgumentParser(prog="subspace.known_answers", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--adapters", default=",".join(ADAPTERS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--train-only", action="store_true")
    parser.add_argument("--record", action="store_true", help="write bench/results/")
    options = parser.parse_args()
    tasks, adapters = options.tasks.split(","), options.adapters.split(",")
    seeds = [int(seed) for seed in options.seeds.split(",")]
    rows = []
    for seed in seeds:
        train(options.out, seed, tasks, adapters, options.threads)
    if options.train_only:
        return
    for seed in seeds:
        for task in tasks:
            for name in adapters:
                compose, causal = analyse(options.out, seed, task, name, options.threads)
                folder = options.out / f"seed{seed}"
                sizes = head_sizes(folder / "base", folder / f"{task}-{name}")
                rows.append({"seed": seed, "task": task, "adapter": name,
                             **compare(compose, causal, sizes)})
    config = json.loads((ROOT / "configs" / "known-answer-adapter.json").read_text())
    record = {"benchmark": "lora_known_answers", "seeds": seeds,
              "adapter": config, "summary": summary(rows), "runs": rows}
    print_tables(record)
    (options.out / "known_answers.json").write_text(json.dumps(record, indent=1) + "\n")
    if options.record:
        path = ROOT / "bench" / "results" / "lora_known_answers.json"
        path.write_text(json.dumps(record, indent=1) + "\n")
        print(f"record: {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
