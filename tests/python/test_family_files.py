"""Files as they are found in the wild: models with heads on top, older configurations, and files
that are wrong, each of which must be refused by name."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from oracle.cases import CASES, LINEAR, YARN
from oracle.models import tiny_model
from oracle.program import export, run

WITH_A_HEAD = [
    ("llama-gqa", transformers.AutoModelForCausalLM, {"tie_word_embeddings": False}),
    ("llama-gqa", transformers.AutoModelForCausalLM, {"tie_word_embeddings": True}),
    ("gemma3-global", transformers.AutoModelForCausalLM, {}),
    ("gpt2", transformers.AutoModelForCausalLM, {}),
    ("deepseek_v3", transformers.AutoModelForCausalLM, {}),
    ("bert-second", transformers.AutoModelForMaskedLM, {}),
    ("roberta", transformers.AutoModelForMaskedLM, {}),
    ("distilbert", transformers.AutoModelForMaskedLM, {}),
    ("vit", transformers.AutoModelForImageClassification, {}),
]


def assert_same_views(found, expected):
    assert found["meta"] == expected["meta"]
    assert found.keys() == expected.keys()
    for name in found:
        assert name == "meta" or torch.equal(found[name], expected[name]), name


@pytest.mark.parametrize(("name", "auto_class", "more"), WITH_A_HEAD)
def test_a_head_on_top_changes_no_view(name, auto_class, more, tmp_path, program):
    model = tiny_model(name, auto_class, **more)
    model.save_pretrained(tmp_path / "whole")
    model.base_model.save_pretrained(tmp_path / "bare")
    layer = CASES[name][2]
    whole, bare = (
        export(program, tmp_path / kind, layer, tmp_path / f"{kind}.safetensors")
        for kind in ("whole", "bare")
    )
    assert_same_views(whole, bare)


@pytest.mark.parametrize(
    ("name", "scaling"), [("deepseek_v3-yarn", YARN), ("llama-linear-rope", LINEAR)]
)
def test_the_older_spelling_of_the_rotary_embedding_is_read(name, scaling, tmp_path, program):
    """rope_theta and rope_scaling {"type": ...}, as in released config.json files."""
    tiny_model(name).save_pretrained(tmp_path)
    layer = CASES[name][2]
    expected = export(program, tmp_path, layer, tmp_path / "expected")
    config = json.loads((tmp_path / "config.json").read_text())
    del config["rope_parameters"]
    old = dict(scaling)
    config["rope_theta"] = old.pop("rope_theta")
    old["type"] = old.pop("rope_type")
    config["rope_scaling"] = old
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert_same_views(export(program, tmp_path, layer, tmp_path / "found"), expected)


def test_an_unknown_family_is_refused_with_the_known_ones(tmp_path, program):
    tiny_model("llama-mha").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["model_type"] = "novel_model"
    (tmp_path / "config.json").write_text(json.dumps(config))
    result = run(program, "inspect", tmp_path)
    assert result.returncode == 1
    assert "novel_model" in result.stderr
    for known in ("bert", "llama", "deepseek_v3"):
        assert known in result.stderr


def refused(program, folder, change):
    """Standard error of `export` on layer 1 after `change` had its way with the tensors."""
    tiny_model("deepseek_v3").save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    out = folder / "views.safetensors"
    result = run(program, "export", folder, "--layer", 1, "--out", out)
    assert result.returncode == 1
    assert not out.exists()
    return result.stderr


KV_B = "layers.1.self_attn.kv_b_proj.weight"


def test_a_wrong_shape_is_refused_by_name(tmp_path, program):
    def transpose(tensors):
        tensors[KV_B] = tensors[KV_B].T.contiguous()

    message = refused(program, tmp_path, transpose)
    # 3 heads of 10 + 7 rows, rank 14.
    assert KV_B in message
    assert "[14, 51]" in message
    assert "[51, 14]" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_named_with_its_position(value, tmp_path, program):
    def spoil(tensors):
        tensors[KV_B][7, 3] = value

    message = refused(program, tmp_path, spoil)
    assert KV_B in message
    assert "7, 3" in message


def test_a_missing_tensor_is_refused_by_name(tmp_path, program):
    message = refused(program, tmp_path, lambda tensors: tensors.pop(KV_B))
    assert KV_B in message
