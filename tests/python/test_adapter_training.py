"""Adapters that `subspace train --base` makes: peft loads them, the base stays, a resumed run ends with
the same bits, and what cannot be is refused."""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from oracle.lora_models import logits, merged
from oracle.program import run

MODEL = {
    "model_type": "llama", "vocab_size": 33, "hidden_size": 24, "intermediate_size": 20,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6,
    "max_position_embeddings": 32, "tie_word_embeddings": False, "initializer_range": 0.3,
}
TRAIN = {"batch_size": 8, "steps": 6, "learning_rate": 0.02, "warmup": 0.0, "decay": "none",
         "weight_decay": 0.0, "checkpoint_every": 3, "log_every": 1}


@pytest.fixture(scope="module")
def base(program, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    (folder / "config.json").write_text(json.dumps(MODEL))
    result = run(program, "--quiet", "init", folder / "config.json", "--out", folder / "model")
    assert result.returncode == 0, result.stderr
    return folder / "model"


def write(folder, adapter, **more):
    (folder / "data").mkdir(exist_ok=True)
    (folder / "data" / "task.json").write_text(json.dumps({"kind": "induction", "answer": "skip"}))
    (folder / "adapter.json").write_text(json.dumps({"adapter": adapter, "train": TRAIN, **more}))


def train(program, folder, base, *more):
    return run(program, "--quiet", "--device", "cpu", "--threads", "1", "train", folder / "adapter.json",
               "--base", base, "--data", folder / "data", "--out", folder / "out", *more)


def test_the_loss_falls(program, base, tmp_path):
    """From that of a random model to nearly that of guessing one of 32 symbols, ln 32 = 3.47, and
    below what a step's 64 targets scatter by."""
    write(tmp_path, {"r": 4, "target_modules": ["q_proj", "v_proj", "o_proj", "down_proj"]},
          train=dict(TRAIN, steps=60, checkpoint_every=0))
    assert train(program, tmp_path, base).returncode == 0
    lines = [json.loads(line) for line in open(tmp_path / "out" / "metrics.jsonl")]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert np.mean(losses[-10:]) < np.mean(losses[:10]) - 0.3


@pytest.mark.parametrize("adapter", [
    {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]},
    {"r": 4, "lora_alpha": 2, "use_rslora": True, "target_modules": ["v_proj", "down_proj"]},
], ids=["qkvo", "rslora"])
def test_peft_loads_what_was_trained(program, base, tmp_path, adapter):
    write(tmp_path, adapter)
    result = train(program, tmp_path, base)
    assert result.returncode == 0, result.stderr
    out = tmp_path / "out"
    before = load_file(base / "model.safetensors")
    last = load_file(out / "checkpoints" / "6" / "model.safetensors")
    for name, value in before.items():
        assert np.array_equal(value, last[name]), name
    tensors = load_file(out / "adapter_model.safetensors")
    assert len(tensors) == 2 * 2 * len(adapter["target_modules"])
    assert all(np.abs(value).max() > 0 for value in tensors.values())

    # The loss that the trainer's own forward pass has with the adapter is that of peft's model.
    tokens = np.random.default_rng(0).integers(0, 33, (4, 25))
    wanted = logits(merged(base, out), tokens)
    plain = transformers.LlamaForCausalLM.from_pretrained(base, dtype=torch.float64)
    assert np.abs(logits(plain, tokens) - wanted).max() > 1e-3
    if "down_proj" in adapter["target_modules"]:
        return
    save_file({"input_ids": tokens}, tmp_path / "in.safetensors")
    result = run(program, "lora", "forward", "--base", base, "--adapter", out, "--input",
                 tmp_path / "in.safetensors", "--out", tmp_path / "out.safetensors")
    assert result.returncode == 0, result.stderr
    found = load_file(tmp_path / "out.safetensors")["logits"]
    assert np.abs(found - wanted).max() <= 1e-10 * np.abs(wanted).max()


def test_a_resumed_run_has_the_same_bits(program, base, tmp_path):
    write(tmp_path, {"r": 2, "target_modules": ["q_proj", "o_proj"]})
    assert train(program, tmp_path, base).returncode == 0
    out = tmp_path / "out"
    whole = (out / "adapter_model.safetensors").read_bytes()
    (out / "adapter_model.safetensors").unlink()
    shutil.rmtree(out / "checkpoints" / "6")
    result = train(program, tmp_path, base, "--resume")
    assert result.returncode == 0, result.stderr
    assert (out / "adapter_model.safetensors").read_bytes() == whole


@pytest.mark.parametrize("adapter, more, words", [
    ({"r": 2, "target_modules": ["query"]}, {}, "called 'query'"),
    ({"r": 0, "target_modules": ["q_proj"]}, {}, "r"),
    ({"r": 2, "rank": 3, "target_modules": ["q_proj"]}, {}, "rank"),
    ({"r": 2}, {}, "target_modules"),
    ({"r": 2, "target_modules": ["q_proj"]}, {"hidden_size": 4}, "hidden_size"),
])
def test_what_cannot_be_is_refused(program, base, tmp_path, adapter, more, words):
    write(tmp_path, adapter, **more)
    result = train(program, tmp_path, base)
    assert result.returncode == 1 and words in result.stderr
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()


def test_an_adapter_needs_a_base_and_a_model_has_none(program, base, tmp_path):
    write(tmp_path, {"r": 2, "target_modules": ["q_proj"]})
    result = run(program, "train", tmp_path / "adapter.json", "--data", tmp_path / "data", "--out",
                 tmp_path / "out")
    assert result.returncode == 1 and "--base" in result.stderr
    (tmp_path / "adapter.json").write_text(json.dumps({**MODEL, "train": TRAIN}))
    result = train(program, tmp_path, base)
    assert result.returncode == 1 and "adapter" in result.stderr
