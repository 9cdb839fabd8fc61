"""Run folders of `subspace train`, `finetune` and `sweep` with invented numbers."""

import json
import math

import numpy as np
from safetensors.numpy import save_file

MODEL = {"model_type": "subspace_encoder", "hidden_size": 256, "num_hidden_layers": 6, "vocab_size": 30522}
TRAIN = {"batch_size": 256, "steps": 1000, "learning_rate": 5e-4, "max_grad_norm": 1.0}


def make_run(folder, seed, level=2.5, steps=100, model=None, base=None, data="d" * 64, half_line=False):
    """A run whose loss falls to about `level`; fine-tuned from `base` if there is one."""
    draw = np.random.default_rng(seed + round(1000 * level))
    folder.mkdir(parents=True)
    run = {"model": dict(MODEL, **(model or {})), "train": dict(TRAIN, seed=seed), "data": data, "dtype": "bfloat16",
           "device": "cuda:0"}
    if base is not None:
        run["base"] = str(base)
        run["model"]["architectures"] = ["SubspaceEncoderForSequenceClassification"]
    (folder / "run.json").write_text(json.dumps(run))
    lines, offset = [], draw.normal(0, 0.02)
    for i in range(1, steps + 1):
        loss = level + 6 * math.exp(-5 * i / steps) + offset + draw.normal(0, 0.05)
        lines.append({"step": 10 * i, "loss": loss, "lr": 5e-4 * (1 - i / steps), "grad_norm": float(draw.gamma(4, 0.2)),
                      "tokens": 300_000 * i + seed, "tokens_per_second": 5e6 * draw.uniform(0.95, 1.0), "seconds": 0.062 * i})
        if i % (steps // 10) == 0:
            held_out = level + 6 * math.exp(-5 * i / steps) + offset
            found = {"loss": held_out, "accuracy": 0.86 - 0.1 * math.exp(-i / 10) + offset} if base is not None else {
                "loss": held_out, "perplexity": math.exp(held_out), "accuracy": 0.5 + offset, "tokens": 1000}
            lines.append({"step": 10 * i, "eval": found})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + ('{"step": 7, "lo' if half_line else ""))
    save_file({"a.weight": np.zeros((30, 40), np.float32), "b.bias": np.zeros(7, np.float32)}, folder / "model.safetensors")
    return lines


def make_experiment(folder, arms=("mha", "mla", "mla-o"), seeds=(0, 1, 2)):
    """As scripts/experiment.py leaves it; returns the last held-out loss of each run."""
    found = {}
    for k, arm in enumerate(arms):
        for seed in seeds:
            run = folder / "runs" / f"{arm}_seed_{seed}"
            lines = make_run(run, seed, level=2.5 + 0.05 * k, model={"kv_lora_rank": k})
            found[arm, seed] = [line["eval"]["loss"] for line in lines if "eval" in line][-1]
            tuned = folder / "sst2" / f"{arm}_seed_{seed}" / f"seed_{seed}"
            make_run(tuned, seed, level=0.4 + 0.01 * k, steps=30, model={"kv_lora_rank": k}, base=run)
    return found


def make_sweep(folder, measure="held_out_loss", seeds=(0, 1)):
    """Two arms over a grid of two fields."""
    draw = np.random.default_rng(4)
    runs, arms = [], []
    for kind in ("MLA", "MLA-o"):
        for q in (32, 64):
            for o in (16, 32, 64):
                arm, fields = f"{kind}, q_lora_rank {q}, o_lora_rank {o}", {"q_lora_rank": q, "o_lora_rank": o}
                values = [3 - 0.1 * math.log(o) - 0.05 * math.log(q) + (kind == "MLA") * 0.1 + draw.normal(0, 0.01)
                          for _ in seeds]
                runs += [{"arm": arm, "seed": s, "fields": fields, "numbers": {measure: v, "tokens_per_second": 1e6 + s}}
                         for s, v in zip(seeds, values)]
                half = 12.7062 * float(np.std(values, ddof=1)) / math.sqrt(2) if len(seeds) > 1 else None
                arms.append({"arm": arm, **fields, "numbers": {
                    measure: {"runs": len(seeds), "mean": float(np.mean(values)), "half_width_95": half},
                    "tokens_per_second": {"runs": len(seeds), "mean": 1e6 + 0.5, "half_width_95": half and 6.35}}})
    sweep = {"title": "An <invented> sweep", "question": "What does an output latent cost?",
             "grid": ["q_lora_rank", "o_lora_rank"], "runs": runs, "arms": arms}
    folder.mkdir(parents=True)
    (folder / "sweep.json").write_text(json.dumps(sweep))
    return sweep
