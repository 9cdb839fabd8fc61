"""Our own architectures: their logits, twice over, and what `spectra` reads of their checkpoints.

The oracles are in oracle/own_models.py. Every norm, bias, router and latent is random, so that none
can be left out unnoticed.
"""

import json

import pytest
from safetensors import safe_open

from oracle.attention import relative
from oracle.networks import forward
from oracle.own_models import OWN, inputs, make, transformers_answer, views_answer
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
