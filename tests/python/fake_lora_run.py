"""Result folders of `subspace lora` with invented numbers that satisfy what the real ones do: shares
and splits add up to one, Shapley values to the drop of the loss."""

import json

import numpy as np
from safetensors.numpy import save_file

TERMS = {"QK": ["q", "k", "qk"], "VO": ["v", "o", "vo"]}
SIDES = {"q": "read", "k": "write", "v": "read", "o": "write"}


def head_entry(random, layer, head, circuit, names, rotary, values):
    shares = random.dirichlet([4, 4, 0.4][: len(names)])
    split = random.dirichlet([1, 4, 4, 0.3])
    rel = float(random.gamma(3, 0.05) * (1 + layer / 3))
    entry = {
        "layer": layer, "head": head, "circuit": circuit,
        "offset_mode": "mean 0:257" if rotary and circuit == "QK" else "none",
        "fro": [1.0, float(np.sqrt(1 + rel**2)), rel], "rel_fro": rel, "rel_spec": rel * 0.8,
        "cos": float(1 / np.sqrt(1 + rel**2)), "gain": float(random.normal(0, 0.02)),
        "terms": {
            name: {"fro": rel * float(np.sqrt(share)), "share": float(share), "energy": float(share)}
            for name, share in zip(names, shares)
        },
        "split": dict(zip(["in_in", "new_read", "new_write", "new_new"], map(float, split))),
        "split_gain_free": dict(zip(["in_in", "new_read", "new_write", "new_new"],
                                    map(float, random.dirichlet([1, 4, 4, 0.3])))),
        "align_lift": {"read": 1.7, "write": 1.2}, "null": {"read": 1 / 12, "write": 1 / 12},
        "erank99": [14, 15, 7], "erank999": [16, 16, 8], "stable_rank": [5.1, 5.0, 2.2],
        "entropy_rank": [9.0, 9.1, 3.0],
        "singular": {which: list(map(float, rows[head][:8])) for which, rows in values.items()},
        "intruder_vec": {"left": int(random.integers(0, 5)), "right": int(random.integers(0, 5))},
        "intruder_sub": {"left": int(random.integers(0, 2)), "right": 0},
        "approx": ["data_unweighted"],
    }
    if rotary and circuit == "QK":
        offsets = [0, 1, 2, 4, 8, 16, 32, 64, 128, 256]
        entry["rel_fro_at"] = {str(o): rel * (1 + 0.3 * np.sin(o + head)) for o in offsets}
    return entry


def effect(random, mean):
    width = abs(mean) * 0.2 + 1e-4
    return {"mean": mean, "ci": [mean - width, mean + width]}


def compose(random, layers, heads):
    screens, pairs = [], []
    for mode in ("Q", "K", "V"):
        for w in range(layers):
            for r in range(w + 1, layers):
                rho = random.gamma(2, 0.02, (heads, heads))
                share = dict(zip(["bn", "nb", "nn"], map(float, random.dirichlet([4, 2, 1]))))
                screens.append({
                    "w": w, "r": r, "mode": mode, "rho": float(rho.mean()),
                    "rho_max": float(rho.max()), "heads": [0, 1], "share": share,
                    "lift": {"bn": 1.2, "nb": 1.0, "nn": 4.0}, "p_gamma": 0.01,
                    "q_bh": float(random.uniform(0, 0.1)),
                    "cosines": sorted(map(float, random.uniform(0, 0.9, 8)), reverse=True),
                    "rho_heads": rho.tolist(),
                })
                i, j = np.unravel_index(rho.argmax(), rho.shape)
                s = float(random.uniform(0.03, 0.1))
                pairs.append({
                    "w": [w, int(i)], "r": [r, int(j)], "mode": mode, "S": s,
                    "S1": s * float(random.uniform(0.9, 1.3)), "dS": 0.0, "S1_base": s,
                    "S_band": [0.055, 0.091], "S1_band": [0.056, 0.092],
                    "rho": float(rho.max()), "writer_qk": float(random.gamma(2, 0.05)), "cos": 0.98, "share": share,
                    "lift": {"bn": 1.2, "nb": 1.0, "nn": 4.0}, "p_gamma": 0.01,
                    "q_bh": float(random.uniform(0, 0.1)),
                })
    pairs.sort(key=lambda pair: -pair["rho"])
    return {"d": 192, "heads": heads, "layers": list(range(layers)), "screens": screens,
            "pairs": pairs}


def causal(random, layers, heads):
    groups, units = [], []
    for layer in range(layers):
        for circuit in TERMS:
            mean = float(random.gamma(1, 0.1))
            groups.append({"layer": layer, "circuit": circuit, "loo": effect(random, mean * 0.6),
                           "aoi": effect(random, mean * 0.8), "shapley": effect(random, mean)})
            for head in range(heads):
                part = float(mean * random.uniform(0, 2) / heads)
                units.append({"layer": layer, "circuit": circuit, "head": head,
                              "loo": effect(random, part * 0.6), "aoi": effect(random, part),
                              "shapley": effect(random, part)})
    drop = sum(one["shapley"]["mean"] for one in groups)
    return {"loss": {"base": effect(random, 1 + drop), "tuned": effect(random, 1.0),
                     "drop": effect(random, drop)},
            "groups": groups, "heads": units, "terms": [], "term_heads": [], "edges": []}


THRESHOLDS = [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]


def module_side(random, null):
    cosines = random.uniform(0.1, 1, 10)
    chance = np.sort(random.uniform(0.2, 1, 10))
    return {"similarity": cosines.tolist(), "nearest": list(range(10)), "inside": [1.0] * 10,
            "intruders": [int((cosines < eps).sum()) for eps in THRESHOLDS],
            "null": {"similarity": chance.tolist(),
                     "intruders": [float((chance < eps).sum()) for eps in THRESHOLDS]} if null else None}


def modules(random, layers, model):
    entries = []
    for layer in range(layers):
        for name in "qkvo":
            low_rank = name != "k"
            values = np.sort(random.gamma(2, 1, 10))[::-1].tolist()
            entries.append({
                "layer": layer, "module": f"layers.{layer}.self_attn.{name}_proj", "matrices": [name],
                "kind": "lora" if low_rank else "dora", "out": 192, "in": 192, "rank": 4, "alpha": 8,
                "scale": 2.0, "base_rank": 192, "fro": [1.0, 0.1], "rel_fro": 0.1,
                "rel_spec": float(random.uniform(0.3, 1)) if low_rank else None,
                "singular": {"base": values, "adapted": values, "delta": values[:4] if low_rank else None},
                "output": module_side(random, low_rank), "input": module_side(random, low_rank)})
    return {"model": model, "options": {"top": 10, "thresholds": THRESHOLDS, "draws": 8},
            "modules": entries}


def make_lora_run(folder, seed=0, layers=4, heads=6, rotary=True, complete=True, terms=TERMS, groups=6):
    """Writes a folder; returns what heads.json holds."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    entries, shared, tensors = [], [], {}
    for layer in range(layers):
        here = []
        for circuit, names in terms.items():
            values = {
                which: np.sort(random.gamma(2, scale, (heads, count)))[:, ::-1].copy()
                for which, scale, count in [("base", 1, 16), ("adapted", 1.05, 16), ("delta", 0.2, 8)]
            }
            for which, rows in values.items():
                tensors[f"layers.{layer}.{circuit}.{which}"] = rows
            entries += [head_entry(random, layer, head, circuit, names, rotary, values)
                        for head in range(heads)]
            for name in names[:2]:
                load = np.sort(random.gamma(1, 1, (4, heads)), 0)[::-1]
                here.append({"circuit": circuit, "change": name, "side": SIDES[name],
                             "values": np.sqrt((load**2).sum(1)).tolist(), "load": load.tolist()})
        shared.append({"layer": layer, "shared": here})
    model = {"adapter": "somewhere/invented", "type": "LoRA", "rank": 4, "alpha": 8, "scale": 2.0,
             "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"], "parameters": 12345,
             "base": {"model_type": "llama", "attention": "MHA", "hidden_size": 192, "heads": heads, "kv_groups": groups,
                      "layers": layers},
             "notes": ["an <invented> adapter"]}
    result = {"model": model, "layers": shared, "heads": entries}
    (folder / "heads.json").write_text(json.dumps(result))
    save_file(tensors, folder / "heads.safetensors")
    if complete and rotary:
        offsets = list(range(65))
        turning = [
            {"layer": entry["layer"], "head": entry["head"], "circuit": "QK",
             "rel_fro": [entry["rel_fro"] * (1 + 0.3 * np.sin(o / 5 + entry["head"])) for o in offsets],
             "freq_share": {name: random.dirichlet(np.ones(9)).tolist()
                            for name in ("base", "q", "k", "qk", "delta")}}
            for entry in entries if entry["circuit"] == "QK"
        ]
        (folder / "rope.json").write_text(json.dumps({"offsets": offsets, "heads": turning}))
    if complete:
        (folder / "modules.json").write_text(
            json.dumps(modules(np.random.default_rng(seed + 100), layers, model)))
        (folder / "compose.json").write_text(json.dumps(compose(random, layers, heads)))
        (folder / "causal.json").write_text(json.dumps(causal(random, layers, heads)))
        features = [
            {"layer": layer, "change": change, "direction": j,
             "along": [{"token": f"<b>{change}{k}", "cosine": 0.4 - 0.03 * k} for k in range(8)],
             "against": [{"token": f"&{k}", "cosine": -0.3 + 0.02 * k} for k in range(8)]}
            for layer in range(layers) for change in "qkvo" for j in range(4)
        ]
        own = [
            {"layer": layer, "head": head, "circuit": circuit, "which": "delta", "side": side,
             "direction": j, "along": [{"token": f"{circuit}{head}{side}{j}", "cosine": 0.5}],
             "against": [{"token": "no", "cosine": -0.5}]}
            for layer in range(layers) for head in range(heads) for circuit in TERMS
            for side in ("left", "right") for j in range(2)
        ]
        (folder / "tokens.json").write_text(
            json.dumps({"random_cosine": 0.21, "features": features, "heads": own,
                        "written": {"random_cosine": 0.24, "embedding": "lm_head.weight"}}))
    return result
