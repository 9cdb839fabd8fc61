"""Intruder dimensions of whole modules: adapters as PEFT makes and merges them, decomposed by NumPy."""

import csv
import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from oracle.adapters import adapt
from oracle.program import run

THRESHOLDS = [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
SAME = 1e-6
# Where the files have a module's matrix, and whether they have it as [in, out].
STORED = {
    "llama-gqa": ("self_attn", False), "gpt2": ("attn.c_", True),
    "bert-second": ("attention", False), "deepseek_v3": ("self_attn", False),
}


def heads(program, base, adapter, out, *more):
    result = run(program, "--quiet", "lora", "heads", "--base", base, "--adapter", adapter,
                 "--out", out, *more)
    assert result.returncode == 0, result.stderr
    return out / "modules.json"


def matrices(folder, name):
    """Of every module of attention, by its path: W [out, in]."""
    word, transposed = STORED[name]
    tensors = load_file(folder / "model.safetensors")
    return {key.removesuffix(".weight"): (x.T if transposed else x).astype(np.float64)
            for key, x in tensors.items() if word in key and key.endswith(".weight") and x.ndim == 2}


def similarity(base, values, own):
    """For each column of `own` the largest cosine with one column of `base`, or with the space of
    several whose values are the same."""
    groups = np.cumsum(np.r_[0, values[:-1] - values[1:] > SAME * values[:-1]])
    squares = (base.T @ own) ** 2
    return np.sqrt(max_over(groups, squares))


def max_over(groups, squares):
    return np.max([squares[groups == g].sum(0) for g in range(groups[-1] + 1)], axis=0)


def check_side(found, base, values, own):
    wanted = similarity(base, values, own)
    assert found["similarity"] == pytest.approx(wanted, abs=1e-8)
    assert found["intruders"] == [int((wanted < eps).sum()) for eps in THRESHOLDS]


def check_module(found, before, after):
    u, s, vt = np.linalg.svd(before, full_matrices=False)
    u1, s1, vt1 = np.linalg.svd(after, full_matrices=False)
    n = int((s > max(before.shape) * np.finfo(float).eps * s[0]).sum())
    k = min(10, int((s1 > max(before.shape) * np.finfo(float).eps * s1[0]).sum()))
    assert (found["out"], found["in"], found["base_rank"]) == (*before.shape, n)
    assert found["singular"]["base"] == pytest.approx(s[: min(10, n)], rel=1e-10)
    assert found["singular"]["adapted"] == pytest.approx(s1[:k], rel=1e-10)
    change = after - before
    assert found["rel_fro"] == pytest.approx(np.linalg.norm(change) / np.linalg.norm(s), rel=1e-8)
    check_side(found["output"], u[:, :n], s[:n], u1[:, :k])
    check_side(found["input"], vt[:n].T, s[:n], vt1[:k].T)
    if found["kind"] == "lora":
        strengths = np.linalg.svd(change, compute_uv=False)
        assert found["rel_spec"] == pytest.approx(strengths[0] / s[0], rel=1e-8)
        assert found["singular"]["delta"] == pytest.approx(
            strengths[: len(found["singular"]["delta"])], rel=1e-8, abs=1e-10)
        assert len(found["output"]["null"]["similarity"]) > 0
    else:
        assert found["rel_spec"] is None and found["output"]["null"] is None


def check_all(program, name, folder, **options):
    base, adapter, merged = adapt(name, folder, **options)
    found = json.loads(heads(program, base, adapter, folder / "out").read_text())["modules"]
    before, after = matrices(base, name), matrices(merged, name)
    changed = {key for key in before if not np.array_equal(before[key], after[key])}
    assert len(found) == len(changed) > 0
    for entry in found:
        # The shortest unambiguous end of the canonical path, and what was cut from the module.
        keys = [key for key in changed if key.endswith(tail_of(entry, name))]
        assert len(keys) == 1, (entry["module"], keys)
        check_module(entry, before[keys[0]], after[keys[0]])
    return found


def tail_of(entry, name):
    """BERT calls its output by another name in its files."""
    path = entry["module"].split("layers.", 1)[-1]
    if name == "bert-second" and entry["matrices"] == ["o"]:
        return f"{entry['layer']}.attention.output.dense"
    return path


@pytest.mark.parametrize("kind", [{}, {"use_rslora": True}, {"use_dora": True}],
                         ids=["lora", "rslora", "dora"])
@pytest.mark.parametrize("name", STORED)
def test_as_two_decompositions_of_what_peft_merges(name, kind, program, tmp_path):
    found = check_all(program, name, tmp_path, **kind)
    assert {entry["kind"] for entry in found} == {"dora" if "use_dora" in kind else "lora"}


def test_a_fused_module_is_one(program, tmp_path):
    found = check_all(program, "gpt2", tmp_path)
    assert [entry["matrices"] for entry in found] == [["q", "k", "v"], ["o"]] * 2
    assert found[0]["out"] == 3 * found[0]["in"]


def test_a_module_saved_whole(program, tmp_path):
    found = check_all(program, "llama-gqa", tmp_path, modules_to_save=["v_proj"],
                      target_modules=["q_proj", "o_proj"])
    assert [entry["kind"] for entry in found] == ["lora", "whole", "lora"] * 2


def test_the_table_says_what_the_file_says(program, tmp_path):
    base, adapter, _ = adapt("llama-gqa", tmp_path)
    path = heads(program, base, adapter, tmp_path / "out")
    file = json.loads(path.read_text())
    with open(path.with_suffix(".csv"), newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert file["options"]["thresholds"] == THRESHOLDS
    assert len(rows) == 2 * len(file["modules"])
    for row, (entry, side) in zip(
            rows, [(entry, side) for entry in file["modules"] for side in ("output", "input")]):
        assert (row["module"], row["side"]) == (entry["module"], side)
        for eps, count in zip(THRESHOLDS, entry[side]["intruders"]):
            assert int(row[f"intruders_{eps:g}"]) == count
        for j, cosine in enumerate(entry[side]["similarity"], 1):
            assert float(row[f"similarity_{j}"]) == pytest.approx(cosine, rel=1e-8)


def test_the_same_numbers_whatever_layers_are_asked_for(program, tmp_path):
    base, adapter, _ = adapt("llama-gqa", tmp_path)
    both = json.loads(heads(program, base, adapter, tmp_path / "both").read_text())
    one = json.loads(heads(program, base, adapter, tmp_path / "one", "--layers", "1").read_text())
    assert one["modules"] == [entry for entry in both["modules"] if entry["layer"] == 1]


def test_not_unless_asked(program, tmp_path):
    base, adapter, _ = adapt("llama-gqa", tmp_path)
    assert not heads(program, base, adapter, tmp_path / "out", "--modules", "no").exists()
    result = run(program, "lora", "heads", "--adapter", adapter, "--base", base, "--out",
                 tmp_path / "out", "--modules", "perhaps")
    assert result.returncode == 2 and "perhaps" in result.stderr
