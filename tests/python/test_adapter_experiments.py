"""`python -m subspace.adapter_experiments`: its arithmetic against plain NumPy, its own training against
the program's forward pass, and a run of a few steps, interrupted and done again."""

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from oracle.program import run
from subspace import known_answers
from subspace.adapter_experiments import factors, tables, training
from subspace.adapter_experiments.__main__ import write_record
from subspace.adapter_experiments.experiments import law_error
from subspace.adapter_experiments.lab import cross_entropy
from subspace.adapter_experiments.rows import rows

ROOT = Path(__file__).resolve().parents[2]
CONFIG = json.loads((ROOT / "configs" / "known-answer-base.json").read_text())
WIDTH, HEADS, GROUPS, HEAD, RANK = 64, 4, 2, 16, 3


@pytest.fixture(scope="module")
def base(program, tmp_path_factory):
    """Random weights, norms that are not one, two key/value heads of four."""
    folder = tmp_path_factory.mktemp("experiments")
    config = {key: value for key, value in CONFIG.items() if key != "train"}
    (folder / "config.json").write_text(json.dumps(config | {"num_key_value_heads": GROUPS}))
    result = run(program, "--quiet", "init", folder / "config.json", "--out", folder / "base")
    assert result.returncode == 0, result.stderr
    weights, random = load_file(folder / "base" / "model.safetensors"), np.random.default_rng(0)
    for name, value in weights.items():
        if "norm" in name:
            weights[name] = (value * random.uniform(0.5, 2, value.shape)).astype(np.float32)
    save_file(weights, folder / "base" / "model.safetensors")
    return folder / "base"


@pytest.fixture(scope="module")
def adapter(base):
    random = np.random.default_rng(1)
    out = {}
    for layer in range(2):
        for part in "qkvo":
            rows = HEAD * (GROUPS if part in "kv" else HEADS)
            out[f"model.layers.{layer}.self_attn.{part}_proj"] = (
                random.normal(size=(RANK, WIDTH)) / 8, random.normal(size=(rows, RANK)) / 8)
    return out


def circuits(base, change):
    """Row vectors, the norm folded: {(layer, head): (W_Q, dW_Q, W_K, dW_K, W_V, dW_V, W_O, dW_O)},
    cut by hand."""
    weights = {k: v.astype(float) for k, v in load_file(base / "model.safetensors").items()}
    out = {}
    for layer in range(2):
        block = f"model.layers.{layer}."
        gamma = weights[block + "input_layernorm.weight"]
        for head in range(HEADS):
            found = []
            for part in "qkv":
                module = f"{block}self_attn.{part}_proj"
                at = (head * GROUPS // HEADS if part in "kv" else head) * HEAD
                for matrix in (weights[module + ".weight"], change[module]):
                    found.append((matrix[at:at + HEAD] * gamma).T)
            module = f"{block}self_attn.o_proj"
            for matrix in (weights[module + ".weight"], change[module]):
                found.append(matrix[:, head * HEAD:(head + 1) * HEAD].T)
            out[layer, head] = found
    return out


def dense(factors_of):
    return {module: b @ a for module, (a, b) in factors_of.items()}


def term_matrices(cut):
    q, dq, k, dk, v, dv, o, do = cut
    return {"q": dq @ k.T, "k": q @ dk.T, "qk": dq @ dk.T, "v": dv @ o, "o": v @ do, "vo": dv @ do}


def test_what_is_written_is_what_is_read_and_scales(tmp_path, base, adapter):
    for scale in (1.0, 0.25):
        found = factors.read_adapter(factors.write_adapter(tmp_path / str(scale), adapter, base, scale))
        for module, change in dense(adapter).items():
            assert np.allclose(dense(found)[module], scale * change, rtol=0, atol=1e-6)
    model = factors.Model(base)
    weights = factors.merged(model, adapter, scale=0.5)
    name = "model.layers.1.self_attn.o_proj"
    wanted = load_file(base / "model.safetensors")[name + ".weight"] + 0.5 * dense(adapter)[name]
    assert np.allclose(weights[name + ".weight"], wanted, rtol=0, atol=1e-12)
    assert np.array_equal(weights["lm_head.weight"], model.weights["lm_head.weight"])


def test_rslora_is_read_with_its_own_scale(tmp_path, base, adapter):
    folder = factors.write_adapter(tmp_path, adapter, base)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"use_rslora": True}))
    module, (_, b) = next(iter(adapter.items()))
    assert np.allclose(factors.read_adapter(folder)[module][1], b * np.sqrt(RANK), rtol=1e-6)
    (folder / "adapter_config.json").write_text(json.dumps(config | {"alpha_pattern": {"q_proj": 3}}))
    with pytest.raises(ValueError, match="alpha_pattern"):
        factors.read_adapter(folder)


@pytest.mark.parametrize("rank", [1, 3, 24])
def test_truncation_is_the_best_of_its_rank(rank):
    change = np.random.default_rng(2).normal(size=(24, 40))
    a, b = factors.truncated(change, rank)
    assert a.shape == (rank, 40) and b.shape == (24, rank)
    left = np.linalg.svd(change, compute_uv=False)[rank:]
    assert np.linalg.norm(change - b @ a) == pytest.approx(np.sqrt(np.sum(left**2)), abs=1e-10)
    differences = factors.differences({"m.weight": change}, {"m.weight": 3 * change}, ["m"], rank)
    assert np.allclose(differences["m"][1] @ differences["m"][0], 2 * b @ a, atol=1e-10)


def test_a_turned_adapter_keeps_every_terms_singular_values(base, adapter):
    model = factors.Model(base)
    new = factors.turned(model, adapter, np.random.default_rng(3))
    old_cuts, new_cuts = circuits(base, dense(adapter)), circuits(base, dense(new))
    for key, cut in old_cuts.items():
        for name, term in term_matrices(cut).items():
            other = term_matrices(new_cuts[key])[name]
            values = np.linalg.svd(term, compute_uv=False)
            assert np.abs(np.linalg.svd(other, compute_uv=False) - values).max() <= 1e-10 * values[0]
            # It lies elsewhere.
            assert np.abs(other - term).max() > 0.1 * np.abs(term).max()


def test_a_drawn_adapter_keeps_the_norm_of_every_heads_change(base, adapter):
    new = factors.drawn(factors.Model(base), adapter, np.random.default_rng(4))
    old_cuts, new_cuts = circuits(base, dense(adapter)), circuits(base, dense(new))
    for key, cut in old_cuts.items():
        for i in (1, 3, 5, 7):
            assert np.linalg.norm(new_cuts[key][i]) == pytest.approx(np.linalg.norm(cut[i]), rel=1e-10)
    for a, b in new.values():
        assert a.shape[0] == RANK and b.shape[1] == RANK


def test_rotations_are_orthogonal_and_have_no_preferred_direction():
    random = np.random.default_rng(5)
    every = np.array([factors.rotation(4, random) for _ in range(4000)])
    assert np.abs(every @ every.transpose(0, 2, 1) - np.eye(4)).max() <= 1e-12
    # Mean 0 and variance 1/4 of each element; QR alone has a diagonal of one sign.
    assert np.abs(every.mean(0)).max() < 5 * 0.5 / np.sqrt(4000)
    assert np.abs((every**2).mean(0) - 0.25).max() < 0.02


def test_new_new_is_the_cross_term_behind_the_split(program, base, adapter, tmp_path):
    """(I - P_L) dM (I - P_R) of the whole is qk (vo) of the new part, and the program says the same."""
    model = factors.Model(base)
    parts = factors.without_old(model, adapter)
    whole = circuits(base, dense(adapter))
    new = circuits(base, {module: part for module, (_, part) in parts.items()})
    for key, (q, dq, k, dk, v, dv, o, do) in whole.items():
        outside = lambda columns: np.eye(WIDTH) - columns @ np.linalg.pinv(columns)
        change = (q + dq) @ (k + dk).T - q @ k.T
        wanted = outside(q) @ change @ outside(k)
        assert np.abs(term_matrices(new[key])["qk"] - wanted).max() <= 1e-10 * np.abs(change).max()
        change = (v + dv) @ (o + do) - v @ o
        wanted = outside(v) @ change @ outside(o.T)
        assert np.abs(term_matrices(new[key])["vo"] - wanted).max() <= 1e-10 * np.abs(change).max()
    for module, (old, fresh) in parts.items():
        assert np.allclose(old + fresh, dense(adapter)[module], atol=1e-12)

    split_base, split_adapter = factors.split_at_new(model, adapter, tmp_path / "split")
    given = factors.write_adapter(tmp_path / "given", adapter, base)
    heads = {}
    for name, on, what in (("whole", base, given), ("split", split_base, split_adapter)):
        result = run(program, "--quiet", "lora", "heads", "--base", on, "--adapter", what, "--fold-norm",
                     "--offsets", "0:5", "--out", tmp_path / name)
        assert result.returncode == 0, result.stderr
        heads[name] = json.loads((tmp_path / name / "heads.json").read_text())["heads"]
    assert len(heads["whole"]) == len(heads["split"]) == 2 * 2 * HEADS
    for one, other in zip(heads["whole"], heads["split"]):
        term = other["terms"]["qk" if one["circuit"] == "QK" else "vo"]["fro"]
        assert np.sqrt(one["split"]["new_new"]) * one["fro"][2] == pytest.approx(term, rel=1e-4)


def test_gates_of_one_on_the_split_are_the_whole_adapter(program, base, adapter, tmp_path):
    tokens, _ = rows({}, 4, np.random.default_rng(6))
    save_file({"input_ids": tokens}, tmp_path / "in.safetensors")
    given = factors.write_adapter(tmp_path / "given", adapter, base)
    split = factors.split_at_new(factors.Model(base), adapter, tmp_path / "split")
    logits = []
    for on, what in ((base, given), split):
        result = run(program, "lora", "forward", "--base", on, "--adapter", what, "--input",
                     tmp_path / "in.safetensors", "--out", tmp_path / "out.safetensors")
        assert result.returncode == 0, result.stderr
        logits.append(load_file(tmp_path / "out.safetensors")["logits"])
    assert np.abs(logits[0] - logits[1]).max() <= 1e-4 * np.abs(logits[0]).max()

    # The forward pass of the training here is the program's too.
    merged = factors.write_model(tmp_path / "merged", base, factors.merged(factors.Model(base), adapter))
    decoder = training.Decoder(factors.Model(merged), torch.float64)
    found = decoder.logits(torch.tensor(tokens), lambda m: decoder.weights[m + ".weight"], tokens.shape[1])
    assert np.abs(found.numpy() - logits[0]).max() <= 1e-5 * np.abs(logits[0]).max()


def test_renamed_symbols_are_the_same_model(base):
    model = factors.Model(base)
    weights = factors.relabelled(model)
    tokens, _ = rows({"symbols": 16}, 3, np.random.default_rng(7))
    other = np.where(tokens > 0, tokens + 16, 0)
    logits = []
    for seen, given in ((model.weights, other), (weights, tokens)):
        decoder = training.Decoder(model, torch.float64)
        decoder.weights = {name: torch.tensor(value) for name, value in seen.items()}
        weight = lambda m, d=decoder: d.weights[m + ".weight"]
        logits.append(decoder.logits(torch.tensor(given), weight, 8).numpy())
    order = [0, *range(17, 33), *range(1, 17)]
    assert np.abs(logits[0][..., order] - logits[1]).max() <= 1e-12 * np.abs(logits[0]).max()


@pytest.mark.parametrize("answer, shift", [("base", 1), ("skip", 2), ("rev", -1)])
def test_rows_are_the_tasks(answer, shift):
    tokens, wanted = rows({"answer": answer}, 200, np.random.default_rng(8))
    starts = set()
    for row, says in zip(tokens, wanted):
        p = row[1:17].tolist()
        assert row[0] == 0 and len(set(p)) == 16 and min(p) >= 1 and max(p) <= 32
        a = p.index(row[17])
        starts.add(a)
        assert row[17:].tolist() == p[a:a + 8] and says.tolist() == p[a + shift:a + shift + 8]
    assert starts == set(range(2, 7))
    if answer == "base":
        _, other = rows({"answer": "ov"}, 200, np.random.default_rng(8))
        swap = {i: i + 1 if i % 2 else i - 1 for i in range(1, 13)}
        assert other.tolist() == [[swap.get(x, x) for x in line] for line in wanted.tolist()]


def test_cross_entropy_is_torchs():
    random = np.random.default_rng(9)
    logits, wanted = 5 * random.normal(size=(3, 7, 11)), random.integers(0, 11, (3, 4))
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(logits[:, -4:]).flatten(0, 1), torch.tensor(wanted).flatten()).item()
    assert cross_entropy(logits, wanted) == pytest.approx(expected, abs=1e-12)


def test_the_law_of_scale():
    at_one = {(0, "QK", 0, "q"): 2.0, (0, "QK", 0, "qk"): 0.5, (0, "VO", 1, "o"): 1.0}
    half = {(0, "QK", 0, "q"): 1.0, (0, "QK", 0, "qk"): 0.125, (0, "VO", 1, "o"): 0.5}
    assert law_error(half, at_one, 0.5) <= 1e-15
    assert law_error(half | {(0, "QK", 0, "qk"): 0.25}, at_one, 0.5) == pytest.approx(1)


def arms(base, arm, tmp_path, steps=2):
    settings = {"learning_rate": 0.01, "steps": steps, "batch_size": 4, "decay": "linear"}
    folder = training.train(base, {"answer": "skip"}, tmp_path / arm, arm, 2, settings, seed=3)
    return factors.read_adapter(folder)


def test_what_each_arm_trains(base, tmp_path):
    begin = training.Adapter(training.Decoder(factors.Model(base)), "frozen", 2, 3).factors()
    frozen, split, fused = (arms(base, arm, tmp_path) for arm in ("frozen", "split", "fused"))
    for module, (a, b) in frozen.items():
        assert np.array_equal(a, begin[module][0]) and np.abs(b).max() > 0
        assert np.abs(split[module][0] - begin[module][0]).max() > 0
    block = "model.layers.0.self_attn."
    assert np.array_equal(fused[block + "q_proj"][0], fused[block + "v_proj"][0])
    assert np.array_equal(fused[block + "q_proj"][0], fused[block + "k_proj"][0])
    assert not np.array_equal(split[block + "q_proj"][0], split[block + "k_proj"][0])
    whole = arms(base, "whole", tmp_path)
    assert np.linalg.matrix_rank(dense(whole)[block + "q_proj"]) > 8
    with pytest.raises(ValueError, match="arm 'lora'"):
        arms(base, "lora", tmp_path)


def test_training_here_lowers_the_loss(base, tmp_path):
    tokens, wanted = rows({"answer": "skip"}, 64, np.random.default_rng(10))
    losses = []
    for steps in (1, 40):
        adapter = arms(base, "split", tmp_path / f"a{steps}", steps)
        factors.write_model(tmp_path / str(steps), base, factors.merged(factors.Model(base), adapter))
        decoder = training.Decoder(factors.Model(tmp_path / str(steps)))
        logits = decoder.logits(torch.tensor(tokens), lambda m, d=decoder: d.weights[m + ".weight"], 8)
        losses.append(cross_entropy(logits.numpy(), wanted))
    assert losses[1] < losses[0] - 0.1


def test_summaries_have_means_and_ranges():
    found = [{"seed": s, "task": "ov", "arm": "x", "loss": float(s), "heads": {"QK": {"rel_fro": 2.0 * s}},
             "causal": None} for s in (1, 2, 6)]
    found = tables.summary(found)
    assert found == [{"task": "ov", "arm": "x", "values": {
        "loss": {"mean": 3, "low": 1, "high": 6, "n": 3},
        "heads.QK.rel_fro": {"mean": 6, "low": 2, "high": 12, "n": 3}}}]
    assert tables.experiment_table("rank", found).split("\n") == [
        "| task |  | loss | rel_fro QK |", "|---|---|---|---|", "| ov | x | 3 [1, 6] | 6 [2, 12] |"]


def experiments(program, out, *more):
    environment = os.environ | {"SUBSPACE_PROGRAM": program, "PYTHONPATH": str(ROOT / "python"),
                                "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "subspace.adapter_experiments", "--out", out, "--seeds", "0", "--tasks", "skip",
         "--steps", "2", "--base-steps", "2", "--latent-steps", "2", "--passes", "1", *more],
        capture_output=True, text=True, env=environment, timeout=300)


def test_a_run_of_few_steps_and_what_is_left_of_it(program, tmp_path):
    """rslora alone: the usual adapter and three others. What is there is not made again; what is
    missing is, and the record is the same but for nothing."""
    result = experiments(program, tmp_path, "--only", "rslora")
    assert result.returncode == 0, result.stderr
    record = json.loads((tmp_path / "lora_experiments.json").read_text())
    found = record["experiments"]["rslora"]
    assert [row["arm"] for row in found["runs"]] == [
        "r 4, alpha / r", "r 4, alpha / sqrt(r)", "r 16, alpha / r", "r 16, alpha / sqrt(r)"]
    assert [row["scale"] for row in found["runs"]] == [1, 2, 0.25, 1]
    assert found["settings"]["steps"] == 2 and found["commit"] and found["seeds"] == [0]
    assert "| skip | r 4, alpha / r |" in result.stdout

    stamp = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("adapter_model.safetensors")}
    assert len(stamp) >= 4
    lost = tmp_path / "seed0" / "skip-rs16"
    (lost / "adapter_config.json").unlink()
    result = experiments(program, tmp_path, "--only", "rslora")
    assert result.returncode == 0, result.stderr
    assert "skip-rs16" in result.stderr and "skip-rs4" not in result.stderr
    for path, time in stamp.items():
        assert (path.stat().st_mtime_ns == time) == (path.parent != lost), path
    assert json.loads((tmp_path / "lora_experiments.json").read_text()) == record


def test_experiments_are_recorded_one_by_one(tmp_path):
    write_record(tmp_path / "r.json", {"scale": {"seeds": [0]}, "rank": {"seeds": [0]}})
    write_record(tmp_path / "r.json", {"scale": {"seeds": [0, 1]}})
    found = json.loads((tmp_path / "r.json").read_text())["experiments"]
    assert found == {"rank": {"seeds": [0]}, "scale": {"seeds": [0, 1]}} and list(found) == ["rank", "scale"]


@pytest.mark.parametrize("more, words", [
    (["--only", "ranks"], "--only 'ranks'"),
    (["--tasks", "copy"], "--tasks 'copy'"),
    (["--seeds", "a"], "--seeds a"),
])
def test_what_cannot_be_is_refused(program, tmp_path, more, words):
    result = experiments(program, tmp_path, *more)
    assert result.returncode != 0 and words in result.stderr
    assert not (tmp_path / "lora_experiments.json").exists()


def test_runs_of_other_lengths_are_not_mixed(program, tmp_path):
    (tmp_path / "settings.json").write_text(json.dumps({"steps": 400}))
    result = experiments(program, tmp_path)
    assert result.returncode == 1 and "steps is 400, now 2" in result.stderr


def test_the_programs_error_is_passed_on(tmp_path):
    fake = tmp_path / "subspace"
    fake.write_text("#!/bin/sh\necho 'error: no room' >&2\nexit 1\n")
    fake.chmod(0o755)
    result = experiments(str(fake), tmp_path / "out", "--only", "rank")
    assert result.returncode == 1 and "error: no room" in result.stderr and "rank, seed 0" in result.stderr


def test_tasks_are_those_of_the_suite():
    assert set(known_answers.TASKS) == {"ov", "skip", "rev"}


def test_the_picture_has_a_curve_for_each_task_and_kind():
    sys.path.insert(0, str(ROOT / "bench" / "common"))
    import lora_figure

    rows = [{"task": task, "arm": f"r {r}", "values": {"loss": {"mean": 1 / r, "low": 0.5 / r, "high": 2 / r}}}
            for task in ("ov", "rev") for r in (1, 2, 4)]
    picture = ElementTree.fromstring(lora_figure.draw({"experiments": {"rank": {"summary": rows}}}))
    name = "{http://www.w3.org/2000/svg}"
    assert len(picture.findall(f"{name}polyline")) == 2 and len(picture.findall(f"{name}circle")) == 6
    # Of each curve x grows with rank, and y grows downward, with the falling loss.
    for line in picture.findall(f"{name}polyline"):
        points = [tuple(map(float, point.split(","))) for point in line.get("points").split()]
        assert points == sorted(points) and [y for _, y in points] == sorted(y for _, y in points)
