"""Runs that go on after something went wrong: damaged checkpoints, other settings, no memory."""

import json
import resource
import shutil
import subprocess

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_training import DECODER, losses, prepare, train


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("going_on")
    (folder / "config.json").write_text(json.dumps(DECODER))
    return folder / "config.json", prepare(folder / "text", "decoder")


@pytest.fixture(scope="module")
def whole(lab, tmp_path_factory, program):
    out = tmp_path_factory.mktemp("whole") / "run"
    result = train(program, *lab, out)
    assert result.returncode == 0, result.stderr
    return out


def test_progress_says_what_is_achieved(lab, tmp_path, program):
    result = train(program, *lab, tmp_path / "run", "--steps", 2)
    assert result.returncode == 0 and "FLOP/s" in result.stderr
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    logged = [json.loads(line) for line in lines]
    assert all(x["flops_per_second"] > 0 and "flops_share" not in x for x in logged if "loss" in x)


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


def test_a_checkpoint_without_its_state_is_made_anew(lab, whole, copy, program):
    (copy / "checkpoints" / "30" / "state.json").unlink()
    result = train(program, *lab, copy, "--resume")
    assert result.returncode == 0, result.stderr
    assert "behind step 25" in result.stderr
    assert losses(copy) == losses(whole)
    assert (copy / "checkpoints" / "30" / "state.json").exists()
    assert not list((copy / "checkpoints").glob(".partial*"))
    assert train(program, *lab, copy, "--resume").returncode == 0


@pytest.mark.parametrize("name", ["optimizer.safetensors", "model.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_named_with_the_whole_one_before_it(name, lab, whole, copy, program):
    path = copy / "checkpoints" / "30" / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    result = train(program, *lab, copy, "--resume")
    assert result.returncode == 1
    assert f"{path.parent}: the checkpoint is damaged" in result.stderr and name in result.stderr
    assert f"{copy / 'checkpoints' / '25'} before it is whole" in result.stderr
    assert f"remove {path.parent}" in result.stderr and "fetch" not in result.stderr
    shutil.rmtree(path.parent)
    result = train(program, *lab, copy, "--resume")
    assert result.returncode == 0, result.stderr
    assert (copy / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_with_all_checkpoints_damaged_none_is_called_whole(lab, copy, program):
    for path in (copy / "checkpoints").glob("*/optimizer.safetensors"):
        path.write_bytes(b"")
    result = train(program, *lab, copy, "--resume")
    assert result.returncode == 1 and "No other is whole" in result.stderr


def test_a_run_begins_with_the_weights_of_another(lab, whole, tmp_path, program):
    """Of a run, or of a checkpoint: the first loss is that of these weights, whatever the settings."""
    still = ("--set", "learning_rate=0", "--steps", 2, "--set", "seed=3")
    for name, source in (("run", whole), ("checkpoint", whole / "checkpoints" / "25")):
        out = tmp_path / name
        result = train(program, *lab, out, "--from", source, *still)
        assert result.returncode == 0, result.stderr
        assert [x[0] for x in losses(out)] == [1, 2]
        said = json.loads((out / "run.json").read_text())
        assert said["base"] == str(source) and len(said["base_sha256"]) == 64
        before = load_file(source / "model.safetensors")
        for key, tensor in load_file(out / "model.safetensors").items():
            assert torch.equal(tensor, before[key]), key
        optimizer = load_file(out / "checkpoints" / "2" / "optimizer.safetensors")
        assert any("exp_avg" in key for key in optimizer)


def test_such_a_run_is_resumed_with_its_weights_alone(lab, whole, tmp_path, program):
    source = shutil.copytree(whole, tmp_path / "source")
    settings = ("--steps", 10)
    assert train(program, *lab, tmp_path / "undisturbed", "--from", source, *settings).returncode == 0
    out = shutil.copytree(tmp_path / "undisturbed", tmp_path / "run")
    shutil.rmtree(out / "checkpoints" / "10")
    # Neither the words nor the weights are needed again.
    shutil.move(source, tmp_path / "moved")
    result = train(program, *lab, out, "--resume", *settings)
    assert result.returncode == 0, result.stderr
    assert losses(out) == losses(tmp_path / "undisturbed")
    assert (out / "model.safetensors").read_bytes() == (
        tmp_path / "undisturbed" / "model.safetensors").read_bytes()
    assert train(program, *lab, out, "--resume", "--from", tmp_path / "moved", *settings).returncode == 0
    path = tmp_path / "moved" / "model.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(path).items()}, path)
    result = train(program, *lab, out, "--resume", "--from", tmp_path / "moved", *settings)
    assert result.returncode == 1 and "weights that it began with" in result.stderr
    result = train(program, *lab, tmp_path / "plain", *settings)
    result = train(program, *lab, tmp_path / "plain", "--resume", "--from", tmp_path / "moved", *settings)
    assert result.returncode == 1 and "weights that it began with" in result.stderr


def test_weights_of_another_model_are_refused(lab, whole, tmp_path, program):
    result = train(program, *lab, tmp_path / "run", "--from", whole, "--set", "o_lora_rank=5")
    assert result.returncode == 1 and "o_lora_rank was 6 and is now 5" in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_says_how_to_go_on(lab, tmp_path, program):
    result = train(program, *lab, tmp_path / "run", "--set", "learning_rate=1e38", "--set", "max_grad_norm=0",
                   "--set", "checkpoint_every=1", "--set", "warmup=0.5")
    assert result.returncode == 1 and "-nan" not in result.stderr
    assert "--from" in result.stderr and "learning_rate" in result.stderr


def little_memory():
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))


@pytest.mark.parametrize("rows", [3_000_000, 30_000_000])
def test_no_memory_says_how_many_rows_did_not_fit(rows, lab, tmp_path, program):
    words = [program, "--device", "cpu", "--threads", "1", "train", lab[0], "--data", lab[1], "--out",
             tmp_path / "run", "--set", f"batch_size={rows}"]
    result = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=300,
                            preexec_fn=little_memory)
    assert result.returncode == 1
    assert f"step 1: out of memory of cpu with {rows} rows a pass" in result.stderr
    assert "accumulate" in result.stderr and "enforce" not in result.stderr
