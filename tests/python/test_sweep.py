"""Sweeps as their users meet them: one table, the same numbers after a stop, refusals."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from oracle.program import run
from safetensors.torch import load_file
from test_training import DECODER, flip_a_byte, prepare


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("sweep") / "text", "decoder")


def write(folder, **more):
    model = dict(DECODER, num_hidden_layers=3)
    model["train"] = dict(DECODER["train"], steps=6, batch_size=8, evaluate_every=0)
    (folder / "model.json").write_text(json.dumps(model))
    sweep = dict(config="model.json", grid={"o_lora_rank": [4, 6]}, seeds=[0, 1], alignment=True)
    (folder / "sweep.json").write_text(json.dumps(dict(sweep, **more)))
    return folder / "sweep.json"


def table(out):
    with (out / "table.csv").open() as file:
        return {row["arm"]: row for row in csv.DictReader(file)}


def overlaps(run_folder, rank):
    """Alignment from the saved tensors alone, through singular vectors instead of Gram matrices."""
    tensors = {k: v.double() for k, v in load_file(run_folder / "model.safetensors").items()}
    spaces = []
    for layer in range(3):
        base = f"model.layers.{layer}.self_attn."
        whole = tensors[base + "o_b_proj.weight"] @ tensors[base + "o_a_proj.weight"]  # [d, H d_v]
        spaces.append(torch.linalg.svd(whole)[0][:, :rank])
    embedding = torch.linalg.svd(tensors["model.embed_tokens.weight"], full_matrices=False)[2]
    embedding = embedding[:rank].T

    def overlap(a, b):
        return float((a.T @ b).square().sum() / rank)

    pairs = [overlap(spaces[i], spaces[j]) for i in range(3) for j in range(i + 1, 3)]
    return np.mean(pairs), np.mean([overlap(space, embedding) for space in spaces])


def test_a_sweep_trains_all_and_goes_on(program, data, tmp_path):
    out = tmp_path / "out"
    arguments = ("sweep", write(tmp_path), "--data", data, "--out", out, "--threads", "1")
    done = run(program, *arguments)
    assert done.returncode == 0, done.stderr
    rows = table(out)
    assert list(rows) == ["o_lora_rank 4", "o_lora_rank 6"]
    first = json.loads((out / "sweep.json").read_text())
    assert len(first["runs"]) == 4
    for arm in first["arms"]:
        losses = [
            r["numbers"]["held_out_loss"] for r in first["runs"] if r["arm"] == arm["arm"]
        ]
        found = arm["numbers"]["held_out_loss"]
        assert found["mean"] == pytest.approx(np.mean(losses), rel=1e-12)
        assert found["half_width_95"] == pytest.approx(
            12.7062 * np.std(losses, ddof=1) / np.sqrt(2), rel=1e-4
        )
    numbers = first["runs"][0]["numbers"]
    layers, embedding = overlaps(out / "runs" / "o_lora_rank_4_seed_0", numbers["output_rank"])
    assert numbers["overlap_of_layers"] == pytest.approx(layers, rel=1e-9)
    assert numbers["overlap_with_embedding"] == pytest.approx(embedding, rel=1e-9)
    assert numbers["overlap_by_chance"] == numbers["output_rank"] / 16

    # One run is lost and another stands half way: the same command makes both whole again.
    shutil.rmtree(out / "runs" / "o_lora_rank_6_seed_1")
    (out / "runs" / "o_lora_rank_4_seed_1" / "result.json").unlink()
    assert run(program, *arguments).returncode == 0
    again = json.loads((out / "sweep.json").read_text())
    for a, b in zip(first["runs"], again["runs"]):
        assert a["numbers"]["held_out_loss"] == b["numbers"]["held_out_loss"]


def test_finished_runs_of_other_settings_are_refused(program, data, tmp_path):
    out = tmp_path / "out"
    file = write(tmp_path, grid={}, seeds=[0])
    assert run(program, "sweep", file, "--data", data, "--out", out).returncode == 0
    write(tmp_path, grid={}, seeds=[0], set={"steps": 7})
    done = run(program, "sweep", file, "--data", data, "--out", out)
    assert done.returncode == 1 and "other settings" in done.stderr
    assert "train.steps was 6 and is now 7" in done.stderr and len(done.stderr) < 600


def change_request(folder, name, value):
    """What a finished run says it was asked for, with one field otherwise or (None) not there."""
    result = json.loads((folder / "result.json").read_text())
    if value is None:
        del result["asked_for"][name]
    else:
        result["asked_for"][name] = value
    (folder / "result.json").write_text(json.dumps(result))


def test_finished_runs_of_other_data_are_refused(program, data, tmp_path):
    out = tmp_path / "out"
    file = write(tmp_path, grid={}, seeds=[0])
    assert run(program, "sweep", file, "--data", data, "--out", out).returncode == 0
    other = prepare(tmp_path / "text", "decoder", seed=2)
    ids = [json.loads((folder / "meta.json").read_text())["id"] for folder in (data, other)]
    done = run(program, "sweep", file, "--data", other, "--out", out)
    assert done.returncode == 1
    assert f'data was "{ids[0]}" and is now "{ids[1]}"' in done.stderr
    shutil.copytree(data, tmp_path / "damaged")
    flip_a_byte(tmp_path / "damaged" / "train.tokens.npy")
    done = run(program, "sweep", file, "--data", tmp_path / "damaged", "--out", out)
    assert done.returncode == 1 and "train.tokens.npy" in done.stderr
    write(tmp_path, grid={}, seeds=[0], alignment=False)
    done = run(program, "sweep", file, "--data", data, "--out", out)
    assert done.returncode == 1 and "alignment was true and is now false" in done.stderr
    change_request(next((out / "runs").iterdir()), "data", None)
    done = run(program, "sweep", file, "--data", data, "--out", out)
    assert done.returncode == 1 and "'data'" in done.stderr and "older version" in done.stderr


def test_data_is_asked_for(program, tmp_path):
    done = run(program, "sweep", write(tmp_path), "--out", tmp_path / "out")
    assert done.returncode == 2 and "--data" in done.stderr


def test_times_of_layers_need_no_data(program, tmp_path):
    file = write(tmp_path, measure="layer_time", alignment=False, seeds=[0])
    done = run(program, "--json", "sweep", file, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    for row in json.loads(done.stdout)["runs"]:
        numbers = row["numbers"]
        assert 0 < numbers["milliseconds_low"] <= numbers["milliseconds"]
        assert numbers["passes"] >= 5


def test_times_of_another_device_are_refused(program, tmp_path):
    file = write(tmp_path, measure="layer_time", alignment=False, seeds=[0], grid={})
    command = ("--device", "cpu", "sweep", file, "--out", tmp_path / "out")
    assert run(program, *command).returncode == 0
    assert run(program, *command).returncode == 0
    folder = next((tmp_path / "out" / "runs").iterdir())
    change_request(folder, "device", "NVIDIA H200")
    done = run(program, *command)
    assert done.returncode == 1 and 'device was "NVIDIA H200" and is now "cpu"' in done.stderr
    change_request(folder, "device", "cpu")
    change_request(folder, "dtype", "bfloat16")
    done = run(program, *command)
    assert done.returncode == 1 and 'dtype was "bfloat16" and is now "float32"' in done.stderr


def shipped():
    return sorted((Path(__file__).resolve().parents[2] / "configs" / "sweeps").glob("*.json"))


def test_shipped_sweeps_can_be_read(program, tmp_path):
    """Every shipped file is a plan whose configurations are accepted: with no data to train on,
    or with times alone."""
    assert len(shipped()) >= 7
    for file in shipped():
        if json.loads(file.read_text()).get("measure") == "layer_time":
            continue
        done = run(program, "sweep", file, "--out", tmp_path / file.stem)
        assert done.returncode == 2 and "--data" in done.stderr, done.stderr


@pytest.mark.parametrize("file", shipped(), ids=lambda file: file.stem)
def test_the_models_of_shipped_sweeps_can_be_built(program, file):
    """A plan is read without its models: those of every arm, at both ends of the grid."""
    sweep = json.loads(file.read_text())
    for arm in sweep.get("arms", [{"config": sweep.get("config")}]):
        for end in (0, -1):
            point = {name: values[end] for name, values in sweep.get("grid", {}).items()}
            sets = {**sweep.get("set", {}), **arm.get("set", {}), **point}
            words = [word for name, value in sets.items() for word in ("--set", f"{name}={json.dumps(value)}")]
            done = run(program, "match", file.parent / arm.get("config", sweep.get("config")), *words)
            assert done.returncode == 0 and "parameters" in done.stdout, (arm, point, done.stderr)
            if not point:
                break
