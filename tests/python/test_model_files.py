"""Checkpoints both ways: transformers loads what we write, and says the same as we do."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from oracle.attention import relative
from oracle.models import Double
from oracle.networks import LATENT, MOE, NETWORKS, answer, forward, inputs
from oracle.program import run

ROOT = Path(__file__).resolve().parents[2]
MEBI = 1 << 20


def init(program, config, folder, *more):
    result = run(program, "--json", "init", config, "--out", folder, *more)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)["parameters"]


@pytest.mark.parametrize(
    "name", ["llama-gqa", "llama-mqa-tied", "deepseek-dense", "deepseek-moe", "bert", "vit"]
)
def test_transformers_loads_what_we_write(name, tmp_path, program):
    model_class, config_class, arguments = NETWORKS[name]
    config = getattr(transformers, config_class)(**arguments).to_dict()
    (tmp_path / "given.json").write_text(json.dumps(config))
    ours = tmp_path / "ours"
    init(program, tmp_path / "given.json", ours, "--dtype", "float64", "--seed", 3)
    with Double():
        model, info = getattr(transformers, model_class).from_pretrained(
            ours, attn_implementation="eager", dtype=torch.float64, output_loading_info=True
        )
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    model = model.double().eval()
    given = inputs(name)
    found = forward(program, ours, given, tmp_path)["logits"]
    assert relative(found, answer(model, given)) <= 1e-10


@pytest.mark.parametrize("arguments", [LATENT, MOE])
def test_no_tensor_differs_in_name_or_shape_from_transformers(arguments, tmp_path, program):
    config = transformers.DeepseekV3Config(**arguments)
    transformers.DeepseekV3ForCausalLM(config).save_pretrained(tmp_path / "theirs")
    init(program, tmp_path / "theirs" / "config.json", tmp_path / "ours")
    theirs = load_file(tmp_path / "theirs" / "model.safetensors")
    ours = load_file(tmp_path / "ours" / "model.safetensors")
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


def changed(name, folder, **fields):
    """A shipped configuration with some fields changed; None removes one."""
    config = json.loads((ROOT / "configs" / f"{name}.json").read_text())
    config.update(fields)
    file = folder / "changed.json"
    file.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return file


# The published counts are in units of 2^20, to two digits. That of MHA is with BERT's learned
# positions; with rotation, as its better run had it, there are 128 x 256 numbers less.
@pytest.mark.parametrize(
    ("name", "fields", "published"),
    [
        ("encoder-mha", dict(position_embedding_type="absolute", qk_rope_head_dim=None), 13.50),
        ("encoder-mha", {}, 13.47),
        ("encoder-mla", {}, 12.67),
        ("encoder-mla-o", {}, 12.48),
        ("decoder-mla-as-run", {}, 16.26),
        ("decoder-mla-o-as-run", {}, 16.17),
    ],
)
def test_parameter_counts_are_the_published_ones(name, fields, published, tmp_path, program):
    count = init(program, changed(name, tmp_path, **fields), tmp_path / "model")
    assert round(count / MEBI, 2) == published


# Those of adapters have no model of their own; `train --base` reads them (test_lora_causal.py).
# Gigabytes of experts are counted, not made (`match` makes shapes alone).
LARGE = ["ethos-paper", "molae-small", "peer-small"]
SHIPPED = [p for p in sorted((ROOT / "configs").glob("*.json")) if "adapter" not in json.loads(p.read_text())]


@pytest.mark.parametrize("config", SHIPPED, ids=lambda p: p.stem)
def test_every_shipped_configuration_is_a_model(config, tmp_path, program):
    counted = run(program, "--json", "match", config)
    assert counted.returncode == 0, counted.stderr
    count = json.loads(counted.stdout)["parameters"]
    if config.stem in LARGE:
        assert count > 1e8
        return
    assert count == init(program, config, tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    buffers = ("e_score_correction_bias", "running_mean", "running_var")
    trained = [t for k, t in tensors.items() if not k.endswith(buffers)]
    assert count == sum(t.numel() for t in trained)
    if config.stem.startswith("tiny-"):
        assert count < 5e6
