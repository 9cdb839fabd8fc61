"""`subspace lora heads` without the base's weights: what an adapter says by itself, against dense
products in NumPy of PEFT's own files."""

import csv
import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from oracle.adapters import adapt
from oracle.program import run
from oracle.shared import shared

ALPHA, RANK = 7, 3


def alone(program, adapter, out, *more):
    result = run(program, "lora", "heads", "--adapter", adapter, "--out", out, *more)
    assert result.returncode == 0, result.stderr
    assert "missing" in result.stdout.lower()
    assert not (out / "heads.json").exists()
    return json.loads((out / "adapter.json").read_text())


def close(found, wanted, where):
    wanted = np.asarray(wanted)
    assert np.abs(np.asarray(found) - wanted).max() <= 1e-11 * wanted.max(), where


def factors(adapter):
    """path -> (A [r, in], s B [out, r])"""
    tensors = load_file(adapter / "adapter_model.safetensors")
    stem, found = "base_model.model.", {}
    for key in tensors:
        if key.endswith(".lora_A.weight"):
            path = key[len(stem) : -len(".lora_A.weight")]
            b = tensors[key.replace("lora_A", "lora_B")].astype(float)
            found[path] = tensors[key].astype(float), ALPHA / RANK * b
    return found


def test_spectra_of_modules_need_the_adapter_alone(program, tmp_path):
    base, adapter, _ = adapt("llama-gqa", tmp_path)
    for file in base.iterdir():
        file.unlink()
    base.rmdir()
    result = alone(program, adapter, tmp_path / "out")
    assert "crossed" not in result and len(result["modules"]) == 8
    assert result["approx"] == ["data_unweighted"]
    for module in result["modules"]:
        a, b = factors(adapter)[module["module"]]
        values = np.linalg.svd(b @ a, compute_uv=False)[:RANK]
        close(module["singular"], values, module["module"])
        assert module["fro_raw"] == pytest.approx(np.linalg.norm(b @ a), rel=1e-12)
        assert module["stable_rank"] == pytest.approx((values**2).sum() / values[0] ** 2, rel=1e-10)
    rows = list(csv.DictReader((tmp_path / "out" / "adapter.csv").open()))
    assert [row["module"] for row in rows] == [module["module"] for module in result["modules"]]


def test_heads_and_wiring_need_its_configuration_alone(program, tmp_path):
    base, adapter, _ = adapt("llama-gqa", tmp_path)
    config = json.loads((base / "config.json").read_text())
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    (base / "model.safetensors").unlink()
    result = alone(program, adapter, tmp_path / "out", "--base", base)
    found = factors(adapter)
    part = lambda layer, x: found[f"model.layers.{layer}.self_attn.{x}_proj"] if (
        f"model.layers.{layer}.self_attn.q_proj" in found) else found[f"layers.{layer}.self_attn.{x}_proj"]
    assert len(result["crossed"]) == 2 * 2 * heads
    assert result["approx"] == ["data_unweighted", "norms_left_out", "offset_0"]
    for term in result["crossed"]:
        layer, head, group = term["layer"], term["head"], term["head"] * groups // heads
        cut = lambda x, i, n: np.split(x, n, axis=0)[i]
        if term["term"] == "qk":
            (a1, b1), (a2, b2) = part(layer, "q"), part(layer, "k")
            dense = a1.T @ cut(b1, head, heads).T @ cut(b2, group, groups) @ a2
        else:
            (a1, b1), (a2, b2) = part(layer, "v"), part(layer, "o")
            dense = a1.T @ cut(b1, group, groups).T @ np.split(a2, heads, axis=1)[head].T @ b2.T
        close(term["singular"], np.linalg.svd(dense, compute_uv=False)[:RANK], str(term))
        assert term["fro"] == pytest.approx(np.linalg.norm(dense), rel=1e-11)
    assert [(w["w"], w["r"], w["mode"]) for w in result["wiring"]] == [(0, 1, m) for m in "QKV"]
    writes = np.linalg.qr(part(0, "o")[1])[0]
    for wire, x in zip(result["wiring"], "qkv"):
        reads = np.linalg.qr(part(1, x)[0].T)[0]
        close(wire["cosines"], np.linalg.svd(writes.T @ reads, compute_uv=False), x)
        assert wire["kernel_null"]["mean"] == pytest.approx(RANK * RANK / config["hidden_size"])


def test_latents_and_dora_leave_out_what_needs_the_base(program, tmp_path):
    base, adapter, _ = adapt("deepseek_v3", tmp_path)
    (base / "model.safetensors").unlink()
    result = alone(program, adapter, tmp_path / "out", "--base", base)
    assert result["crossed"] == [] and result["modules"]
    base, adapter, _ = adapt("llama-gqa", tmp_path / "dora", use_dora=True)
    (base / "model.safetensors").unlink()
    result = alone(program, adapter, tmp_path / "dora-out", "--base", base)
    assert result["crossed"] == [] and result["wiring"] == []


def test_a_public_adapter_whose_base_is_not_there(program, tmp_path):
    adapter = shared("data/weights/lora_gpt2")
    result = alone(program, adapter, tmp_path / "out")
    assert len(result["modules"]) == 12 and {m["rank"] for m in result["modules"]} == {8}
    assert any("gpt2" in words for words in result["missing"])
    base = tmp_path / "base"
    base.mkdir()
    config = {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12}
    (base / "config.json").write_text(json.dumps(config))
    result = alone(program, adapter, tmp_path / "with-config", "--base", base)
    assert {term["circuit"] for term in result["crossed"]} == {"QK"}  # o is not adapted
    assert len(result["crossed"]) == 144 and result["wiring"] == []
