"""`subspace lora heads` and `lora rope` on PEFT's adapters, beside dense products in NumPy."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from oracle.adapters import adapt
from oracle.program import run


def analysed(program, command, base, adapter, out, *more):
    result = run(program, "--quiet", "lora", command, "--base", base, "--adapter", adapter, "--out", out,
                 *more)
    assert result.returncode == 0, result.stderr
    name = "rope.json" if command == "rope" else "heads.json"
    return json.loads((out / name).read_text())


@pytest.mark.parametrize("name, flags", [
    ("llama-gqa", {"data_unweighted"}),
    ("qwen3", {"data_unweighted", "qk_norm"}),
    ("deepseek_v3", {"data_unweighted", "mla_rms"}),
])
def test_every_entry_says_what_it_leaves_out(name, flags, program, tmp_path):
    base, adapter, _ = adapt(name, tmp_path)
    for command in ("heads", "rope"):
        found = analysed(program, command, base, adapter, tmp_path / command)
        turned = [e for e in found["heads"] if command == "rope" or e["circuit"] == "QK"]
        assert turned and all(set(entry["approx"]) == flags for entry in turned)


NAMES = {
    "bert-second": ("encoder.layer.{}.attention.self.value", "encoder.layer.{}.attention.output.dense",
                    "encoder.layer.{}.attention.output.LayerNorm"),
    "gemma2-full": ("layers.{}.self_attn.v_proj", "layers.{}.self_attn.o_proj",
                    "layers.{}.post_attention_layernorm"),
}


def messages(folder, name):
    """V O of every layer and head, the norms before and behind them multiplied out."""
    stored = {key.removeprefix("model."): value.astype(float)
              for key, value in load_file(folder / "model.safetensors").items()}
    config = json.loads((folder / "config.json").read_text())
    heads = config["num_attention_heads"]
    groups = config.get("num_key_value_heads", heads)
    out = []
    for layer in range(config["num_hidden_layers"]):
        value, output, behind = (stored[key.format(layer) + ".weight"] for key in NAMES[name])
        if name.startswith("bert"):
            before = f"encoder.layer.{layer - 1}.output.LayerNorm" if layer else "embeddings.LayerNorm"
            gamma, centre = stored[before + ".weight"], np.eye(len(behind)) - 1 / len(behind)
        else:
            gamma, centre = 1 + stored[f"layers.{layer}.input_layernorm.weight"], np.eye(len(behind))
            behind = 1 + behind
        v = np.split(centre @ np.diag(gamma) @ value.T, groups, axis=1)
        o = np.split(output.T @ centre @ np.diag(behind), heads, axis=0)
        out.append([v[i * groups // heads] @ o[i] for i in range(heads)])
    return out


@pytest.mark.parametrize("name", NAMES)
def test_the_norm_behind_attention_is_part_of_what_is_written(name, program, tmp_path):
    base, adapter, merged = adapt(name, tmp_path)
    before, after = messages(base, name), messages(merged, name)
    found = analysed(program, "heads", base, adapter, tmp_path / "heads", "--fold-norm")
    entries = [entry for entry in found["heads"] if entry["circuit"] == "VO"]
    assert len(entries) == sum(map(len, before))
    for entry in entries:
        m0, m1 = (which[entry["layer"]][entry["head"]] for which in (before, after))
        wanted = [np.linalg.norm(m) for m in (m0, m1, m1 - m0)]
        assert np.abs(np.array(entry["fro"]) - wanted).max() <= 1e-6 * wanted[0]
        assert "post_norm" in entry["approx"]
    result = run(program, "--quiet", "lora", "compose", "--base", base, "--adapter", adapter, "--out",
                 tmp_path / "compose", "--between", "0-1")
    assert result.returncode == 0, result.stderr
    composed = json.loads((tmp_path / "compose" / "compose.json").read_text())
    assert "post_norm" in composed["approx"]
    pairs = [pair for pair in composed["pairs"] if pair["mode"] == "V"]
    assert len(pairs) == len(before[0]) * len(before[1])
    for pair in pairs:
        (_, i), (_, j) = pair["w"], pair["r"]
        scale = np.linalg.norm(before[0][i]) * np.linalg.norm(before[1][j])
        change = after[0][i] @ after[1][j] - before[0][i] @ before[1][j]
        assert pair["S"] == pytest.approx(np.linalg.norm(before[0][i] @ before[1][j]) / scale, rel=1e-6)
        assert pair["rho"] == pytest.approx(np.linalg.norm(change) / scale, rel=1e-6)
    screens = [s for s in composed["screens"] if s["mode"] == "V"]
    by_reader = sorted(pairs, key=lambda pair: (pair["w"][1], pair["r"][1]))
    table = np.array([pair["rho_interface"] for pair in by_reader]).reshape(len(before[0]), -1)
    assert np.abs(np.array(screens[0]["rho_heads"]) - table).max() <= 1e-9
