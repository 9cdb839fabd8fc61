"""The trainer as its users meet it: a falling loss, the same bits after a kill, refusals by name."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from oracle.program import run

ROOT = Path(__file__).resolve().parents[2]
WORDS = [f"w{i}" for i in range(40)]

MODEL = dict(
    vocab_size=45, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
    num_attention_heads=2, max_position_embeddings=16,
)
LATENT = dict(q_lora_rank=8, kv_lora_rank=6, qk_nope_head_dim=4, qk_rope_head_dim=4, v_head_dim=8,
              o_lora_rank=6)
TRAIN = dict(batch_size=32, steps=30, learning_rate=2e-2, log_every=1, evaluate_every=10,
             checkpoint_every=5)
ENCODER = dict(MODEL, model_type="subspace_encoder", train=TRAIN, **LATENT)
DECODER = dict(MODEL, model_type="subspace_decoder", o_latent_norm="rms", train=TRAIN, **LATENT)


def prepare(folder, style, seed=1):
    """Text in which every word has the same successor nine times of ten."""
    draw = random.Random(seed)
    lines = []
    for _ in range(400):
        word = draw.randrange(40)
        line = []
        for _ in range(12):
            line.append(WORDS[word])
            word = (word * 7 + 3) % 40 if draw.random() < 0.9 else draw.randrange(40)
        lines.append(" ".join(line))
    folder.mkdir()
    (folder / "train.txt").write_text("\n".join(lines[:360]))
    (folder / "valid.txt").write_text("\n".join(lines[360:]))
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (folder / "vocab.txt").write_text("\n".join(special + WORDS))
    out = folder / "data"
    result = subprocess.run(
        [sys.executable, "-m", "subspace.prepare", "text", "--input", folder / "train.txt",
         "--valid", folder / "valid.txt", "--tokenizer", folder / "vocab.txt", "--length", "16",
         "--documents", "line", "--special", "eos=[SEP]", "--style", style, "--out", out],
        capture_output=True, text=True, timeout=300,
        env=dict(os.environ, PYTHONPATH=str(ROOT / "python")),
    )
    assert result.returncode == 0, result.stderr
    return out


@pytest.fixture(scope="module", params=["encoder", "decoder"])
def lab(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    config = folder / "config.json"
    config.write_text(json.dumps(ENCODER if request.param == "encoder" else DECODER))
    return config, prepare(folder / "text", request.param)


def train(program, config, data, out, *more):
    return run(program, "--device", "cpu", "--threads", 1, "train", config, "--data", data, "--out",
               out, *more)


def lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def losses(out):
    return [(x["step"], x["loss"], x["grad_norm"], x["tokens"]) for x in lines(out) if "loss" in x]


@pytest.fixture(scope="module")
def undisturbed(lab, tmp_path_factory, program):
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    result = train(program, *lab, out)
    assert result.returncode == 0, result.stderr
    return out


def test_the_loss_falls_and_metrics_are_complete(undisturbed):
    found = losses(undisturbed)
    assert [x[0] for x in found] == list(range(1, 31))
    assert found[-1][1] < 0.92 * found[0][1]
    logged = [x for x in lines(undisturbed) if "loss" in x][-1]
    for name in ("step", "loss", "lr", "grad_norm", "tokens", "tokens_per_second", "seconds"):
        assert name in logged
    held_out = [x for x in lines(undisturbed) if "eval" in x]
    assert [x["step"] for x in held_out] == [10, 20, 30]
    assert held_out[-1]["eval"]["loss"] < held_out[0]["eval"]["loss"]


def test_padding_is_no_token(lab, undisturbed):
    config, data = lab
    meta = json.loads((data / "meta.json").read_text())["splits"]["train"]
    rows = 30 * TRAIN["batch_size"]
    mean = meta["tokens"] / meta["rows"]
    assert meta["padding"] > 0
    assert losses(undisturbed)[-1][3] == pytest.approx(rows * mean, rel=0.05)
    assert losses(undisturbed)[-1][3] < rows * 16


def test_the_same_command_gives_the_same_bits(lab, undisturbed, tmp_path, program):
    assert train(program, *lab, tmp_path / "again").returncode == 0
    assert losses(tmp_path / "again") == losses(undisturbed)
    again = (tmp_path / "again" / "model.safetensors").read_bytes()
    assert again == (undisturbed / "model.safetensors").read_bytes()


def test_another_seed_gives_others(lab, undisturbed, tmp_path, program):
    assert train(program, *lab, tmp_path / "run", "--seed", 1, "--steps", 3).returncode == 0
    assert losses(tmp_path / "run")[0][1] != losses(undisturbed)[0][1]


def test_killed_and_resumed_ends_with_the_same_bits(lab, undisturbed, tmp_path, program):
    config, data = lab
    out = tmp_path / "run"
    command = [program, "--device", "cpu", "--threads", "1", "train", config, "--data", data,
               "--out", out]
    process = subprocess.Popen(list(map(str, command)), stderr=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL)
    deadline = time.time() + 120
    while not list(out.glob("checkpoints/[0-9]*/state.json")) and time.time() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    # A kill in the middle of writing leaves these behind.
    (out / "checkpoints" / ".partial.99").mkdir()
    with open(out / "metrics.jsonl", "a") as file:
        file.write('{"step": 7, "lo')
    steps = sorted(int(p.parent.name) for p in out.glob("checkpoints/[0-9]*/state.json"))
    assert steps and steps[-1] <= 30
    result = train(program, config, data, out, "--resume")
    assert result.returncode == 0, result.stderr
    assert f"behind step {steps[-1]}" in result.stderr
    assert losses(out) == losses(undisturbed)
    assert (out / "model.safetensors").read_bytes() == (
        undisturbed / "model.safetensors").read_bytes()


def test_a_run_is_not_overwritten_and_not_resumed_otherwise(lab, undisturbed, tmp_path, program):
    config, data = lab
    out = tmp_path / "run"
    shutil.copytree(undisturbed, out)
    result = train(program, config, data, out)
    assert result.returncode == 1 and "--resume" in result.stderr
    result = train(program, config, data, out, "--resume", "--set", "learning_rate=0.5")
    assert result.returncode == 1
    assert "train.learning_rate was 0.02 and is now 0.5" in result.stderr
    result = train(program, config, data, out, "--resume", "--set", "o_lora_rank=5")
    assert result.returncode == 1 and "model.o_lora_rank was 6 and is now 5" in result.stderr


def flip_a_byte(path):
    """Of the data behind a header of npy: another token, in the vocabulary still."""
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)


def test_data_that_changed_since_is_refused(lab, undisturbed, tmp_path, program):
    """meta.json, and with it the data's name, is as it was."""
    config, data = lab
    shutil.copytree(undisturbed, tmp_path / "run")
    shutil.copytree(data, tmp_path / "data")
    same = train(program, config, tmp_path / "data", tmp_path / "run", "--resume")
    assert same.returncode == 0, same.stderr
    flip_a_byte(tmp_path / "data" / "train.tokens.npy")
    result = train(program, config, tmp_path / "data", tmp_path / "run", "--resume")
    assert result.returncode == 1
    assert "train.tokens.npy" in result.stderr and "SHA-256" in result.stderr
    assert "the file was changed" in result.stderr


def test_eval_refuses_data_that_changed(lab, undisturbed, tmp_path, program):
    shutil.copytree(lab[1], tmp_path / "data")
    flip_a_byte(tmp_path / "data" / "valid.tokens.npy")
    result = run(program, "--device", "cpu", "eval", undisturbed, "--data", tmp_path / "data")
    assert result.returncode == 1 and "valid.tokens.npy" in result.stderr


def test_eval_refuses_data_of_another_tokenizer(lab, undisturbed, tmp_path, program):
    """The same number of tokens, in another order: nothing else would tell them apart."""
    shutil.copytree(lab[1], tmp_path / "data")
    path = tmp_path / "data" / "meta.json"
    meta = json.loads(path.read_text())
    before = meta["tokenizer"]["sha256"]
    meta["tokenizer"].update(sha256="5" * 64, name="another.json")
    path.write_text(json.dumps(meta))
    for model in (undisturbed, undisturbed / "checkpoints" / "30"):
        result = run(program, "--device", "cpu", "eval", model, "--data", tmp_path / "data")
        assert result.returncode == 1
        for word in ("run.json", "another.json", before[:8], "55555555"):
            assert word in result.stderr


def test_eval_repeats_the_last_held_out_loss(lab, undisturbed, program):
    result = run(program, "--json", "--device", "cpu", "--threads", 1, "eval", undisturbed, "--data",
                 lab[1])
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    expected = [x["eval"] for x in lines(undisturbed) if "eval" in x][-1]
    assert found["tokens"] == expected["tokens"]
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-6)


def test_checkpoints_are_models_and_few(undisturbed):
    kept = sorted(int(p.name) for p in (undisturbed / "checkpoints").iterdir())
    assert kept == [25, 30]
    last = load_file(undisturbed / "checkpoints" / "30" / "model.safetensors")
    for name, tensor in load_file(undisturbed / "model.safetensors").items():
        assert tensor.equal(last[name]), name


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (["vocab_size=44"], ["vocab_size", "44", "45"]),
        (["max_position_embeddings=8"], ["16", "max_position_embeddings", "8"]),
        (["learning_rat=0.1"], ["learning_rat"]),
        (["hidden_dropout_prob=0.1"], ["dropout", "0.1"]),
        (["batch_size=0"], ["batch_size"]),
        (["decay=stairs"], ["decay", "stairs", "cosine"]),
    ],
)
def test_what_does_not_fit_is_refused_by_name(sets, words, lab, tmp_path, program):
    more = [x for text in sets for x in ("--set", text)]
    result = train(program, *lab, tmp_path / "run", *more)
    assert result.returncode == 1
    for word in words:
        assert word in result.stderr
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_loss_that_is_not_finite_stops_with_step_layer_and_checkpoint(lab, tmp_path, program):
    result = train(program, *lab, tmp_path / "run", "--set", "learning_rate=1e38", "--set",
                   "max_grad_norm=0", "--set", "checkpoint_every=1", "--set", "warmup=0.5")
    assert result.returncode == 1
    assert "step " in result.stderr and "loss" in result.stderr
    assert "layer" in result.stderr or "head" in result.stderr or "gradient" in result.stderr
    good = sorted(int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir())
    if good:
        assert f"checkpoints/{good[-1]}" in result.stderr


def test_an_interrupt_keeps_what_is_done(lab, tmp_path, program):
    config, data = lab
    out = tmp_path / "run"
    process = subprocess.Popen(
        list(map(str, [program, "--device", "cpu", "train", config, "--data", data, "--out", out,
                       "--steps", 100000])),
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    deadline = time.time() + 120
    while not (out / "metrics.jsonl").exists() and time.time() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert list(out.glob("checkpoints/[0-9]*/state.json"))
