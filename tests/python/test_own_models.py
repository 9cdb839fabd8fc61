"""Our own architectures: their logits, twice over, and what `spectra` reads of their checkpoints.

The oracles are in oracle/own_models.py. Every norm, bias, router and latent is random, so that none
can be left out unnoticed.
"""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from oracle.attention import relative
from oracle.networks import forward
from oracle.own_models import OWN, feed_forward, inputs, make, transformers_answer, views_answer
from oracle.program import run

TOLERANCE = 1e-10

# What a Llama or DeepSeek-V3 of transformers can be made to compute.
BY_TRANSFORMERS = [
    "encoder-mha", "encoder-mha-o", "encoder-mla", "encoder-mla-o", "encoder-mla-o-groups",
    "decoder-gqa-o", "decoder-mla-all-rotated", "decoder-mla-o-moe",
]


@pytest.mark.parametrize("name", OWN)
def test_logits_equal_the_views_recomputed(name, tmp_path, program):
    folder = make(name, program, tmp_path)
    given = inputs(name)
    found = forward(program, folder, given, tmp_path)["logits"]
    expected = views_answer(program, folder, given)
    assert found.shape == expected.shape
    assert relative(found, expected) <= TOLERANCE


@pytest.mark.parametrize("name", BY_TRANSFORMERS)
def test_logits_equal_transformers_with_deepseek_v4s_output(name, tmp_path, program):
    folder = make(name, program, tmp_path)
    given = inputs(name)
    found = forward(program, folder, given, tmp_path)["logits"]
    assert relative(found, transformers_answer(folder, given)) <= TOLERANCE


@pytest.mark.parametrize(
    ("name", "maps"),
    [
        ("encoder-mla-o", {"Q", "Qpe", "K", "V", "O", "QA", "KVA", "Kpe", "OB", "VO", "QK"}),
        ("decoder-mla-o-heads-groups", {"OB", "VO", "QK"}),
        ("decoder-mla-all-rotated", {"Qpe", "Kpe", "V", "OB", "VO"}),
        ("vit-mla-o", {"Q", "K", "V", "QA", "KVA", "OB", "VO", "QK"}),
        ("encoder-mha", {"Q", "K", "V", "O", "VO", "QK"}),
        ("decoder-mla-ethos", {"Q", "Qpe", "K", "V", "O", "QA", "KVA", "Kpe", "VO", "QK"}),
    ],
)
def test_spectra_reads_our_models(name, maps, tmp_path, program):
    folder = make(name, program, tmp_path)
    result = run(program, "spectra", folder, "--out", tmp_path / "spectra")
    assert result.returncode == 0, result.stderr
    with safe_open(tmp_path / "spectra" / "spectra.safetensors", "pt") as file:
        found = {key.split(".")[2] for key in file.keys()}
    assert maps <= found
    if name == "decoder-mla-all-rotated":
        assert not found & {"Q", "K", "QK"}
    if name == "encoder-mla-o":
        config = json.loads((folder / "config.json").read_text())
        with safe_open(tmp_path / "spectra" / "spectra.safetensors", "pt") as file:
            assert file.get_tensor("layers.0.OB.stack").shape == (config["o_lora_rank"],)


def python_layer(config, tensors, base):
    """subspace.nn's layer with the weights of a checkpoint's."""
    from subspace import nn

    arguments = dict(dim=config["hidden_size"], experts=config["num_experts"],
                     heads=config["num_expert_heads"], k=config["num_experts_per_head"],
                     query_dim=config["query_dim"])
    if config["feed_forward"] == "ethos":
        layer = nn.Ethos(**arguments, latent_dim=config["expert_latent_dim"],
                         hidden_dim=config["expert_hidden_dim"])
        names = {"z": "expert_latents", "w1": "w1.T", "w_u": "w_u.T", "w_v": "w_v.T"}
    else:
        layer = nn.PEER(**arguments)
        names = {"down": "expert_down", "up": "expert_up"}
    state = {ours: tensors[base + name.removesuffix(".T") + ".weight"] for ours, name in names.items()}
    state = {ours: state[ours].T if names[ours].endswith(".T") else state[ours] for ours in names}
    for part in ("weight", "bias"):
        state["router.query." + part] = tensors[f"{base}query.{part}"]
    for part in ("weight", "bias", "running_mean", "running_var"):
        state["router.norm." + part] = tensors[f"{base}query_norm.{part}"]
    state["router.keys"] = torch.stack([tensors[f"{base}keys.{side}.weight"] for side in (0, 1)])
    missing, unexpected = layer.load_state_dict(state, strict=False)
    # PyTorch itself counts a batch norm without its number of batches as complete or not.
    assert set(missing) <= {"router.norm.num_batches_tracked"} and not unexpected
    return layer.eval()


@pytest.mark.parametrize("name", ["decoder-mla-ethos", "encoder-peer"])
def test_the_layers_for_pytorch_are_those_of_the_models(name, tmp_path, program):
    folder = make(name, program, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    x = torch.randn(40, config["hidden_size"], generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        found = python_layer(config, tensors, "model.layers.1.mlp.")(x)
        expected = feed_forward(config, tensors, 1, x.double())
    # Float32 sums of some dozens of numbers; a choice that float32 makes otherwise would show.
    assert relative(found.double(), expected) <= 1e-5
