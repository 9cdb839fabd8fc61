"""Trains and measures with the program, each thing once: what is in the folder is not made again."""

import json
import subprocess
import sys

import numpy as np
from safetensors.numpy import load_file, save_file

from .. import known_answers
from .factors import Model, merged, read_adapter, write_model
from .rows import rows

ROOT = known_answers.ROOT
LATENT = {"attention": "mla", "q_lora_rank": 32, "kv_lora_rank": 32, "qk_nope_head_dim": 8,
          "qk_rope_head_dim": 8, "v_head_dim": 16}
TARGETS = known_answers.ADAPTERS["qkvo"]
LATENT_TARGETS = ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"]
ROWS = 512  # of what `lora forward` reads


def read_config(name):
    return json.loads((ROOT / "configs" / name).read_text())


class Lab:
    """One seed's folder. settings: steps, base_steps, latent_steps, passes, threads."""

    def __init__(self, out, seed, settings):
        self.out, self.seed, self.settings = out, seed, settings
        self.here = out / f"seed{seed}"
        self.common = ["--quiet", "--device", "cpu", "--threads", settings["threads"]]
        self.train_config = read_config("known-answer-adapter.json")["train"] | {"steps": settings["steps"]}

    def say(self, words):
        print(f"seed {self.seed}: {words}", file=sys.stderr, flush=True)

    def run(self, *arguments):
        """The program's standard output. Its own words are the error's."""
        done = subprocess.run([*known_answers.program(), *map(str, [*self.common, *arguments])],
                              capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"subspace {' '.join(map(str, arguments))}\n{done.stderr.strip()}")
        return done.stdout

    def task(self, answer, half=False):
        """A folder of `--data`; half: rows of the first half of the symbols only."""
        folder = self.out / "tasks" / (answer + ("-half" if half else ""))
        if not (folder / "task.json").exists():
            folder.mkdir(parents=True, exist_ok=True)
            task = {"kind": "induction", "answer": answer} | ({"symbols": 16} if half else {})
            (folder / "task.json").write_text(json.dumps(task) + "\n")
        return folder

    # Training

    def base(self, kind="mha"):
        folder = self.here / ("base" if kind == "mha" else f"base-{kind}")
        if (folder / "config.json").exists():
            return folder
        config, steps = read_config("known-answer-base.json"), self.settings["base_steps"]
        if kind == "gqa":
            config["num_key_value_heads"] = 2
        if kind == "mla":
            config |= LATENT
            del config["head_dim"]
            steps = self.settings["latent_steps"]
        file = self.out / f"base-{kind}.json"
        file.write_text(json.dumps(config, indent=2) + "\n")
        self.run("train", file, "--out", folder, "--data", self.task("base"), "--seed", self.seed,
                 "--resume", "--steps", steps)
        self.say(f"base {kind}")
        return folder

    def adapter(self, name, base, task, targets=TARGETS, **fields):
        """An adapter by `subspace train`; fields of its configuration."""
        folder = self.here / name
        if not (folder / "adapter_config.json").exists():
            sets = {"target_modules": json.dumps(targets)} | fields
            self.run("train", ROOT / "configs" / "known-answer-adapter.json", "--base", base, "--data", task,
                     "--out", folder, "--seed", self.seed, "--resume", "--steps", self.settings["steps"],
                     *(word for key, value in sets.items() for word in ("--set", f"{key}={value}")))
            self.say(name)
        return folder

    def usual(self, answer, rank=4):
        """Rank 4 is that of the known-answer suite, whose folder may be given as --out."""
        name = f"{answer}-qkvo" if rank == 4 else f"{answer}-r{rank}"
        fields = {} if rank == 4 else {"r": rank, "lora_alpha": rank}
        return self.adapter(name, self.base(), self.task(answer), **fields)

    def arm(self, answer, arm, rank, rate=None):
        """An adapter by PyTorch (training.py)."""
        folder = self.here / f"{answer}-{arm}{rank}"
        if not (folder / "adapter_config.json").exists():
            from . import training  # PyTorch takes seconds to load

            task = json.loads((self.task(answer) / "task.json").read_text())
            training.train(self.base(), task, folder, arm, rank, self.train_config, self.seed, rate,
                           self.settings["threads"])
            self.say(folder.name)
        return folder

    # Measuring

    def model(self, folder, base, *adapters):
        """The base with adapters merged, as a model."""
        if not (folder / "config.json").exists():
            model = Model(base)
            write_model(folder, base, merged(model, *map(read_adapter, adapters)))
        return folder

    def loss(self, model, task):
        """Nats a predicted token on the task's held-out rows, by `subspace eval`."""
        file = model / f"loss-{task.name}.json"
        if not file.exists():
            found = self.run("--json", "eval", model, "--data", task, "--batch-size", 64)
            file.write_text(found)
        return json.loads(file.read_text())["loss"]

    def adapted_loss(self, adapter, base, task):
        return self.loss(self.model(adapter / "merged", base, adapter), task)

    def lora(self, what, adapter, base, *more):
        """What `subspace lora heads|compose|causal` wrote."""
        file = adapter / "lora" / f"{what}.json"
        if not file.exists():
            self.run("lora", what, "--base", base, "--adapter", adapter, "--out", file.parent, *more)
        return json.loads(file.read_text())

    def heads(self, adapter, base):
        return self.lora("heads", adapter, base, "--fold-norm", "--offsets",
                         f"0:{len(known_answers.OFFSETS)}")["heads"]

    def compose(self, adapter, base):
        return self.lora("compose", adapter, base, "--between", "0-1", "--offsets",
                         f"0:{len(known_answers.OFFSETS)}")["pairs"]

    def causal(self, adapter, base, task, *more):
        """Without Shapley values of heads, which are most of its time."""
        return self.lora("causal", adapter, base, "--data", task, "--dtype", "float32", "--batch-size", 64,
                         "--batches", self.settings["passes"], "--orders", 0, *more)

    def gated_loss(self, adapter, base, answer, gates, half=False):
        """Loss with terms gated, {term: gate} for all heads, on rows of the task drawn here."""
        name = "-".join(f"{term}{gate:g}" for term, gate in gates.items()) or "all"
        file = adapter / "gated" / f"{answer}{'-half' if half else ''}-{name}.json"
        if not file.exists():
            file.parent.mkdir(exist_ok=True)
            task = {"answer": answer} | ({"symbols": 16} if half else {})
            tokens, wanted = rows(task, ROWS, np.random.default_rng(1))
            config = json.loads((base / "config.json").read_text())
            listed = [{"layer": layer, "term": term, "head": head, "gate": gate}
                      for layer in range(config["num_hidden_layers"]) for term, gate in gates.items()
                      for head in range(config["num_attention_heads"])]
            given = {key: file.parent / f"{key}-{file.stem}.{end}"
                     for key, end in (("in", "safetensors"), ("gates", "json"), ("out", "safetensors"))}
            save_file({"input_ids": tokens}, given["in"])
            given["gates"].write_text(json.dumps({"default": 1, "gates": listed}))
            self.run("lora", "forward", "--base", base, "--adapter", adapter, "--input", given["in"],
                     "--gates", given["gates"], "--out", given["out"], "--dtype", "float32")
            found = cross_entropy(load_file(given["out"])["logits"], wanted)
            for path in given.values():
                path.unlink()
            file.write_text(json.dumps({"loss": found}) + "\n")
        return json.loads(file.read_text())["loss"]


def cross_entropy(logits, wanted):
    """Mean over the last tokens of each row, in nats."""
    x = logits[:, -wanted.shape[1]:].astype(np.float64)
    x = x - x.max(-1, keepdims=True)
    return float(np.mean(np.log(np.exp(x).sum(-1)) - np.take_along_axis(x, wanted[..., None], -1)[..., 0]))


# Numbers of one adapter, from the program's results.


def mean(values):
    values = [v for v in values if v is not None]
    return float(np.mean(values)) if values else None


def head_numbers(heads):
    """Means over heads and layers, for each circuit; counts are sums over heads and layers."""
    out = {}
    for circuit in ("QK", "VO"):
        mine = [h for h in heads if h["circuit"].startswith(circuit)]
        if not mine:
            continue
        # MLA has no one cross term: 16 terms of four matrices.
        cross = [h["terms"][name]["energy"] for h in mine for name in ("qk", "vo") if name in h["terms"]]
        kernels = [(a["kernel"] - a["kernel_null"]["mean"]) / a["kernel_null"]["deviation"]
                   for h in mine for a in h.get("angles", {}).values() if a["kernel_null"]["deviation"]]
        numbers = {
            "rel_fro": [h["rel_fro"] for h in mine],
            "rel_spec": [h["rel_spec"] for h in mine],
            "cos": [h["cos"] for h in mine],
            "gain": [h["gain"] for h in mine],
            "cross_energy": cross,
            "in_in": [h["split"]["in_in"] for h in mine],
            "new_new": [h["split"]["new_new"] for h in mine],
            "align_read": [h["align_lift"]["read"] for h in mine],
            "align_write": [h["align_lift"]["write"] for h in mine],
            "kernel_z": kernels,
            "erank99": [h["erank99"][2] for h in mine],
            "amplification": [h["amplification"] for h in mine],
            "eigen_change": [abs(np.subtract(*pair)) for h in mine
                             if (pair := h.get("matching") or h.get("copying"))],
        }
        out[circuit] = {name: mean(values) for name, values in numbers.items()}
        for kind in ("intruder_vec", "intruder_sub"):
            out[circuit][kind] = mean(sum(h[kind].values()) for h in mine)
    return out


def causal_numbers(causal, heads):
    """Shapley values of circuits, terms left out, and how rel_fro orders the heads' effects."""
    sizes = {(h["layer"], h["circuit"], h["head"]): h["rel_fro"] for h in heads}
    effects = {(h["layer"], h["circuit"], h["head"]): h["loo"]["mean"] for h in causal["heads"]}
    keys = sorted(set(sizes) & set(effects))
    size, effect = [sizes[key] for key in keys], [effects[key] for key in keys]
    groups = {f"L{g['layer']} {g['circuit']}": g["shapley"]["mean"] for g in causal["groups"]}
    whole = sum(groups.values())
    return {
        "shapley": groups,
        "share": {name: value / whole for name, value in groups.items()},
        "terms": {f"L{t['layer']} {t['term']}": t["loo"]["mean"] for t in causal["terms"]},
        "spearman": known_answers.spearman(size, effect),
        "precision_1": known_answers.precision(size, effect, 1),
        "drop": causal["loss"]["drop"]["mean"],
    }


def compose_numbers(pairs):
    lifts = {route: mean(p["lift"].get(route) for p in pairs) for route in ("bn", "nb", "nn")}
    return {"rho": mean(p["rho"] for p in pairs), "rho_most": max(p["rho"] for p in pairs),
            "cos": mean(p["cos"] for p in pairs), "change_of_S": mean(abs(p["dS"]) for p in pairs),
            "found": mean(float(p["q_bh"] is not None and p["q_bh"] < 0.05) for p in pairs),
            **{f"lift_{route}": value for route, value in lifts.items()}}
