"""Results with the files of `subspace spectra` but invented spectra, for tests of the report.

The spectra are a random matrix's (Marchenko-Pastur) times a decay that varies with depth and head,
so that every metric stays consistent with its spectrum and the figures look like real ones.

    python tests/python/fake_run.py OUT --preset minilm|deepseek_v3 [--name NAME] [--seed S]
"""

import argparse
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

TAUS = [0.99, 0.999]

PRESETS = {
    "minilm": dict(
        family="bert", attention="MHA", layers=6, hidden_size=384, heads=12, kv_groups=12,
        dims={"head_dim": 32}, rope={"layout": "none", "dims": 0}, dtypes={"F32": 24},
        stated=[4, 8, 16, 24, 64, 128, 192, 256, 320], offsets=[],
        maps={
            "Q": ((384, 32), (384, 384)), "K": ((384, 32), (384, 384)),
            "V": ((384, 32), (384, 384)), "O": ((32, 384), (384, 384)),
            "VO": ((384, 384), (4608, 384)), "OV": (None, (384, 4608)),
            "QK": ((384, 384), (4608, 384)), "KQ": (None, (4608, 384)),
        }, rank={"VO": 32, "QK": 32}),
    "deepseek_v3": dict(
        family="deepseek_v3", attention="MLA", layers=61, hidden_size=7168, heads=128,
        kv_groups=128,
        dims={"qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
              "q_lora_rank": 1536, "kv_lora_rank": 512},
        rope={"layout": "interleaved", "dims": 64}, dtypes={"F8_E4M3": 305, "F32": 305, "BF16": 122},
        stated=[16, 32, 64, 96, 512, 1024, 2048, 3072, 4096],
        offsets=[0, 1, 2, 4, 8, 16, 32, 64, 128, 256],
        maps={
            "Q": ((1536, 128), (1536, 16384)), "Qpe": ((1536, 64), (1536, 8192)),
            "K": ((512, 128), (512, 16384)), "V": ((512, 128), (512, 16384)),
            "O": ((128, 7168), (16384, 7168)), "QA": (None, (7168, 1536)),
            "KVA": (None, (7168, 512)), "Kpe": (None, (7168, 64)),
            "VO": ((512, 7168), (65536, 7168)), "OV": (None, (512, 917504)),
            "QK": ((1536, 512), (196608, 512)), "KQ": (None, (65536, 1536)),
        }, rank={"VO": 128, "QK": 128}, rope_shape=(1536, 7168), rope_rank=64),
}


def random_spectrum(n, aspect):
    """Quantiles of the Marchenko-Pastur law: singular values of an n x n/aspect Gaussian matrix."""
    grid = np.linspace(-1, 1, 4001)
    lam = 1 + aspect + 2 * np.sqrt(aspect) * grid
    density = np.sqrt(np.clip(1 - grid**2, 0, None)) / np.maximum(lam, 1e-9)
    cdf = np.cumsum(density)
    return np.sqrt(np.interp((np.arange(n, 0, -1) - 0.5) / n, cdf / cdf[-1], lam))


def metrics(s, stated):
    """Metrics of spectra s [heads, n] as columns (section 3 of the specification)."""
    power = s**2
    total = power.sum(1, keepdims=True)
    kept = np.cumsum(power, 1) / total
    p = np.maximum(power / total, 1e-300)
    out = {"largest": s[:, 0].tolist()}
    for tau in TAUS:
        out[f"rank_{tau}"] = (1 + (kept < tau).sum(1)).clip(max=s.shape[1]).tolist()
    out["stable_rank"] = (total[:, 0] / power[:, 0]).tolist()
    out["entropy_rank"] = np.exp(-(p * np.log(p)).sum(1)).tolist()
    out["participation_ratio"] = (total[:, 0] ** 2 / (power**2).sum(1)).tolist()
    out["condition_number"] = (s[:, 0] / s[:, -1]).tolist()
    tails = np.concatenate([np.cumsum(power[:, ::-1], 1)[:, ::-1], np.zeros((len(s), 1))], 1)
    out["energy_lost"] = {str(r): (tails[:, r] / total[:, 0]).tolist()
                          for r in stated if r < s.shape[1]}
    return out


def scalars(columns):
    return {k: {r: v[0] for r, v in c.items()} if isinstance(c, dict) else c[0]
            for k, c in columns.items()}


def spectra(rng, heads, n, shape, decay):
    """[heads, n], each head with its own strength of decay around `decay`."""
    base = random_spectrum(n, min(shape) / max(shape))
    x = (np.arange(n) + 0.5) / n
    rate = decay * np.exp(0.45 * rng.standard_normal((heads, 1)))
    s = base * np.exp(-rate * x) * np.exp(0.01 * rng.standard_normal((heads, n)))
    s *= 0.5 * np.exp(0.3 * rng.standard_normal((heads, 1)))
    s[:, :1] *= 1 + 1.5 * rng.random((heads, 1))
    return -np.sort(-s, axis=1)


def make_run(out, preset="minilm", name=None, seed=0, **changes):
    """Writes OUT/summary.json and OUT/spectra.safetensors; returns the summary."""
    spec = {**PRESETS[preset], **changes}
    rng = np.random.default_rng(seed)
    tensors, layers = {}, []
    for layer in range(spec["layers"]):
        depth = layer / max(1, spec["layers"] - 1)
        maps = {}
        todo = dict(spec["maps"])
        todo.update({f"QK@{d}": (spec.get("rope_shape", spec["maps"]["QK"][0]), None)
                     for d in spec["offsets"]})
        for i, (key, (head, stack)) in enumerate(todo.items()):
            entry = {}
            decay = (2.5 if key in ("VO", "QK") else 1.2) * (1.6 - depth) * (1 + 0.15 * np.sin(i))
            if head:
                at = int(key.split("@")[1]) if "@" in key else 0
                n = spec.get("rope_rank", spec["rank"]["QK"]) if "@" in key \
                    else spec["rank"].get(key, min(head))
                count = spec["kv_groups"] if key in ("K", "V") else spec["heads"]
                s = spectra(rng, count, n, (n, max(head)), decay * (1 + 0.1 * np.log1p(at)))
                entry["shape"] = list(head)
                entry["heads"] = metrics(s, spec["stated"])
                entry["random"] = scalars(metrics(
                    random_spectrum(n, n / max(head))[None], spec["stated"]))
                tensors[f"layers.{layer}.{key}.heads"] = s
            if stack:
                n = min(stack)
                s = spectra(rng, 1, n, stack, decay)
                entry["stack"] = {"shape": list(stack), **scalars(metrics(s, spec["stated"])),
                                  "random": scalars(metrics(
                                      random_spectrum(n, n / max(stack))[None], spec["stated"]))}
                tensors[f"layers.{layer}.{key}.stack"] = s[0]
            maps[key] = entry
        layers.append({"layer": layer, "notes": [], "maps": maps})
    summary = {
        "format": "subspace-spectra", "version": 1,
        "program": {"version": "0.1.0", "commit": "0123abc", "torch": "2.13.0",
                    "instruction_sets": ["avx2"]},
        "model": {"name": name or f"invented-{preset}", "path": f"models/{preset}",
                  "family": spec["family"], "model_type": spec["family"],
                  "attention": spec["attention"], "layers": spec["layers"],
                  "hidden_size": spec["hidden_size"], "heads": spec["heads"],
                  "kv_groups": spec["kv_groups"], "dims": spec["dims"], "rope": spec["rope"],
                  "dtypes": spec["dtypes"]},
        "conventions": {"name": "default", "normalize": "none", "fold_norms": False,
                        "space": "latent", "offsets": spec["offsets"], "exact": False,
                        "accuracy_floor": 1e-8},
        "device": "cpu (2 threads)",
        "times": {"total_seconds": 1.5 * spec["layers"], "layer_seconds": [1.5] * spec["layers"]},
        "bytes_read": 14_200_000, "bytes_in_checkpoint": 90_900_000,
        "peak_memory_bytes": 310_000_000, "taus": TAUS, "ranks_stated": spec["stated"],
        "layers": layers,
    }
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()},
              out / "spectra.safetensors")
    (out / "summary.json").write_text(json.dumps(summary, separators=(",", ":")))
    return summary


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--preset", choices=PRESETS, default="minilm")
    parser.add_argument("--name")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    make_run(args.out, args.preset, args.name, args.seed)
