"""Checkpoints that hold more or less than their family's plain form: wrappers around a language
model, prediction layers, quantised experts, the maker's names, fields left to the class."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from oracle.cases import CASES
from oracle.models import change_config, save, tiny_model
from oracle.program import export, run
from test_family_files import assert_same_views


def inspect(program, folder):
    done = run(program, "--json", "inspect", folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def refusal(program, folder):
    done = run(program, "inspect", folder)
    assert done.returncode == 1, done.stdout
    return done.stderr


def change_tensors(folder, change):
    """Rewrites model.safetensors: change(name, tensor) gives the new tensors by name."""
    new = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        new.update(change(name, tensor))
    save_file(new, folder / "model.safetensors")


def renamed(old, new):
    return lambda name, tensor: {name.replace(old, new): tensor}


def written(name, folder):
    save(tiny_model(name), name, folder)
    return folder


def note(found, *words):
    assert [n for n in found["notes"] if all(word in n for word in words)], found["notes"]


# Wrappers.


@pytest.mark.parametrize("name", ["gemma3", "mistral3", "kimi_k25"])
def test_a_wrapper_s_head_changes_no_view(name, tmp_path, program):
    model = tiny_model(name, transformers.AutoModelForImageTextToText)
    model.save_pretrained(tmp_path / "whole", save_original_format=False)
    model.base_model.save_pretrained(tmp_path / "bare", save_original_format=False)
    whole, bare = (
        export(program, tmp_path / kind, 1, tmp_path / f"{kind}.views") for kind in ("whole", "bare")
    )
    assert_same_views(whole, bare)
    found = inspect(program, tmp_path / "whole")
    assert found["model_type"] == name
    note(found, "language model", name)
    assert all(
        tensor["name"].startswith("model.language_model.layers.") for tensor in found["tensors"]
    )


def test_kimi_k25_is_read_under_its_released_names(tmp_path, program):
    """language_model.model.layers..., and a text_config that calls itself kimi_k2."""
    folder = written("kimi_k25", tmp_path)
    expected = export(program, folder, 1, tmp_path / "expected")
    change_tensors(folder, renamed("language_model.", "language_model.model."))
    change_config(folder, lambda config: config["text_config"].update(model_type="kimi_k2"))
    assert_same_views(export(program, folder, 1, tmp_path / "found"), expected)


def test_a_text_config_without_model_type_is_the_wrapper_s_usual_one(tmp_path, program):
    folder = written("gemma3", tmp_path)
    expected = export(program, folder, 1, tmp_path / "expected")
    change_config(folder, lambda config: config["text_config"].pop("model_type"))
    assert_same_views(export(program, folder, 1, tmp_path / "found"), expected)


def test_a_wrapper_around_an_unknown_model_is_refused(tmp_path, program):
    folder = written("mistral3", tmp_path)
    change_config(folder, lambda config: config["text_config"].update(model_type="novel_text"))
    message = refusal(program, folder)
    assert "novel_text" in message and "text_config" in message and "mistral4" in message


def test_a_wrapper_without_a_text_config_is_refused(tmp_path, program):
    folder = written("mistral3", tmp_path)
    change_config(folder, lambda config: config.pop("text_config"))
    assert "text_config" in refusal(program, folder)


def test_gemma3_s_released_configurations_leave_fields_to_the_class(tmp_path, program):
    """As gemma-3-4b: no heads, no groups, no head_dim, no scalar; one rotary base by kind."""
    # Its own check wants a width that is a multiple of the 8 heads.
    arguments = dict(CASES["gemma3"][1]["text_config"], hidden_size=48)
    for field in ("num_attention_heads", "num_key_value_heads", "head_dim", "model_type"):
        del arguments[field]
    model = transformers.Gemma3TextModel(transformers.Gemma3TextConfig(**arguments)).double()
    model.save_pretrained(tmp_path)
    expected = export(program, tmp_path, 1, tmp_path / "expected")
    assert expected["q"].shape == (8, 48, 256)

    def leave_out(config):
        for field in ("num_attention_heads", "num_key_value_heads", "head_dim",
                      "query_pre_attn_scalar", "rope_parameters"):
            del config[field]

    change_config(tmp_path, leave_out)
    assert_same_views(export(program, tmp_path, 1, tmp_path / "found"), expected)


# Prediction layers.


@pytest.mark.parametrize("name", ["deepseek_v3", "deepseek_v32", "glm4_moe_lite"])
def test_prediction_layers_are_listed_and_analysed_on_request(name, tmp_path, program):
    folder = written(name, tmp_path)
    expected = export(program, folder, 1, tmp_path / "expected")
    found = inspect(program, folder)
    assert (found["layers"], found["extra_layers"]) == (2, 0)
    # The same file, whose last layer now stands behind the model's own.
    change_config(folder, lambda config: config.update(num_hidden_layers=1))
    found = inspect(program, folder)
    assert (found["layers"], found["extra_layers"]) == (1, 1)
    note(found, "1 multi-token-prediction layer", "--layers 1")
    assert {tensor["layer"] for tensor in found["tensors"]} == {0, 1}
    assert_same_views(export(program, folder, 1, tmp_path / "found"), expected)
    own, asked = tmp_path / "own", tmp_path / "asked"
    assert run(program, "spectra", folder, "--out", own).returncode == 0
    assert run(program, "spectra", folder, "--out", asked, "--layers", "1").returncode == 0
    layers = [
        [layer["layer"] for layer in json.loads((out / "summary.json").read_text())["layers"]]
        for out in (own, asked)
    ]
    assert layers == [[0], [1]]


def test_prediction_layers_that_a_conversion_dropped_are_said_to_be_missing(tmp_path, program):
    folder = written("deepseek_v3", tmp_path)
    change_config(folder, lambda config: config.update(num_nextn_predict_layers=3))
    note(inspect(program, folder), "3 multi-token-prediction", "none")


def test_deepseek_v4_s_prediction_layers_carry_names_of_their_own(tmp_path, program):
    folder = written("deepseek_v4-makers-names", tmp_path)
    expected = export(program, folder, 2, tmp_path / "expected")
    change_tensors(folder, renamed("layers.2.", "mtp.0."))
    change_config(folder, lambda config: config.update(
        num_hidden_layers=2, layer_types=config["layer_types"][:2]))
    assert inspect(program, folder)["extra_layers"] == 1
    found = export(program, folder, 2, tmp_path / "found")
    # Where a layer has no entry it slides, so that only rotation differs from the layer it was.
    for view in ("q", "k", "v", "o", "ob", "qa", "sinks", "input.weight"):
        assert torch.equal(found[view], expected[view]), view


# DeepSeek-V4.


def test_deepseek_v4_s_released_norm_name_is_read(tmp_path, program):
    """attn.kv_norm, where transformers writes attn.norm back."""
    folder = written("deepseek_v4-makers-names", tmp_path)
    expected = export(program, folder, 1, tmp_path / "expected")
    change_tensors(folder, renamed(".attn.norm.", ".attn.kv_norm."))
    assert_same_views(export(program, folder, 1, tmp_path / "found"), expected)


def test_deepseek_v4_in_fp8_with_the_maker_s_scales(tmp_path, program):
    folder = written("deepseek_v4-makers-names", tmp_path)
    before = export(program, folder, 1, tmp_path / "before")

    def narrow(name, tensor):
        if ".attn.w" not in name:
            return {name: tensor}
        # Largest values of 256 to 448, as an exponent of two allows.
        exponent = torch.floor(torch.log2(448 / tensor.abs().max())).item()
        # One scale a block of 128 x 128; the 132 rows of wq_b are two.
        blocks = [-(-size // 128) for size in tensor.shape]
        stem = name.removesuffix(".weight")
        return {
            name: (tensor * 2**exponent).to(torch.float8_e4m3fn),
            stem + ".scale": torch.full(blocks, 2.0**-exponent).to(torch.float8_e8m0fnu),
        }

    change_tensors(folder, narrow)
    found = export(program, folder, 1, tmp_path / "found")
    stored = load_file(folder / "model.safetensors")
    scale = stored["layers.1.attn.wkv.scale"].double()
    exact = (stored["layers.1.attn.wkv.weight"].double() * scale).T
    assert torch.equal(found["k"][0], exact)
    for view in ("q", "k", "v", "o", "ob", "qa"):
        assert 0 < (found[view] - before[view]).abs().max() <= before[view].abs().max() / 16, view


def test_deepseek_v4_s_older_configuration_names_layers_by_ratio(tmp_path, program):
    folder = written("deepseek_v4-makers-names", tmp_path)
    expected = [export(program, folder, layer, tmp_path / f"expected{layer}") for layer in range(3)]

    def as_released(config):
        compress = config.pop("rope_parameters")["compress"]
        del config["layer_types"], config["partial_rotary_factor"]
        config["compress_ratios"] = [128, 0, 4, 0]
        config["rope_scaling"] = {
            name: compress[name]
            for name in ("type", "factor", "original_max_position_embeddings", "beta_fast",
                         "beta_slow")
        }

    change_config(folder, as_released)
    for layer in range(3):
        found = export(program, folder, layer, tmp_path / f"found{layer}")
        assert_same_views(found, expected[layer])
    found = inspect(program, folder)
    assert found["attention"] == "grouped output latent"
    note(found, "2 of 3 layers", "compressor")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_key_value_heads": 2}, ["num_key_value_heads", "2", "expected 1"]),
        ({"o_groups": 4}, ["6", "o_groups 4"]),
        ({"layer_types": ["sliding_attention"] * 2}, ["layer_types", "2", "3"]),
        ({"layer_types": ["novel_attention"] * 3}, ["novel_attention", "sliding_attention"]),
        ({"qk_rope_head_dim": 24}, ["qk_rope_head_dim", "24"]),
    ],
)
def test_deepseek_v4_configurations_that_cannot_be_are_refused(change, words, tmp_path, program):
    folder = written("deepseek_v4", tmp_path)
    change_config(folder, lambda config: config.update(change))
    message = refusal(program, folder)
    for word in words:
        assert word in message


# What is not analysed is said.


def test_a_sparse_indexer_is_noted(tmp_path, program):
    note(inspect(program, written("deepseek_v32", tmp_path)), "indexer", "16", "not analysed")


def test_longcat_s_layers_are_attentions(tmp_path, program):
    folder = written("longcat_flash-first", tmp_path)
    found = inspect(program, folder)
    assert found["layers"] == 4
    note(found, "2 L + 1", "decoder layer L of 2")
    first = {t["name"] for t in found["tensors"] if t["layer"] == 3}
    assert all(".1." in name and "layers.1." in name for name in first)


def test_query_scaling_beyond_the_trained_length_is_noted(tmp_path, program):
    note(inspect(program, written("mistral4", tmp_path)), "0.1", "32", "queries grow")


# Part of a head rotated.


@pytest.mark.parametrize("name", ["llama-gqa", "gemma", "gemma3-global", "deepseek_v3", "minicpm3"])
def test_a_partial_rotary_factor_is_refused_where_heads_rotate_whole(name, tmp_path, program):
    folder = written(name, tmp_path)
    change_config(folder, lambda config: config.pop("rope_parameters"))
    change_config(folder, lambda config: config.update(partial_rotary_factor=1.0))
    assert run(program, "inspect", folder).returncode == 0
    change_config(folder, lambda config: config.update(partial_rotary_factor=0.5))
    message = refusal(program, folder)
    assert "partial_rotary_factor" in message and "0.5" in message


def test_mistral4_s_partial_rotary_factor_must_be_that_of_its_widths(tmp_path, program):
    folder = written("mistral4", tmp_path)
    change_config(
        folder, lambda config: config["rope_parameters"].update(partial_rotary_factor=0.8))
    message = refusal(program, folder)
    assert "partial_rotary_factor 0.8" in message and "qk_rope_head_dim" in message
    change_config(folder, lambda config: config.pop("rope_parameters"))
    assert "rope_parameters" in refusal(program, folder)


# INT4.


def kimi_thinking(folder):
    """Kimi-K2 Thinking's form: BF16 attention, routed experts packed by compressed-tensors."""
    model = tiny_model("kimi_k2").to(torch.bfloat16)
    save(model, "kimi_k2", folder)
    change_config(folder, lambda config: config.update(quantization_config={
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": {
            "num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}}},
        "ignore": ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*"],
    }))
    tensors = load_file(folder / "model.safetensors")
    expert = "layers.1.mlp.experts.0.up_proj."
    tensors[expert + "weight_packed"] = torch.zeros(12, 6, dtype=torch.int32)
    tensors[expert + "weight_scale"] = torch.ones(12, 2, dtype=torch.bfloat16)
    tensors[expert + "weight_shape"] = torch.tensor([12, 42], dtype=torch.int32)
    save_file(tensors, folder / "model.safetensors")
    return tensors


def test_int4_experts_leave_attention_as_it_was(tmp_path, program):
    tensors = kimi_thinking(tmp_path)
    found = inspect(program, tmp_path)
    assert list(found["dtypes"]) == ["BF16"]
    note(found, "compressed-tensors", "int4", "attention is not", "BF16")
    views = export(program, tmp_path, 1, tmp_path / "views")
    assert torch.equal(views["qa"], tensors["layers.1.self_attn.q_a_proj.weight"].double().T)


@pytest.mark.parametrize("command", ["inspect", "export", "spectra"])
def test_int4_attention_is_refused_by_name(command, tmp_path, program):
    kimi_thinking(tmp_path)
    weight = "layers.1.self_attn.kv_b_proj.weight"

    def pack(name, tensor):
        if name != weight:
            return {name: tensor}
        return {
            name + "_packed": torch.zeros(tensor.shape[0], 2, dtype=torch.int32),
            name + "_scale": torch.ones(tensor.shape[0], 1, dtype=torch.bfloat16),
            name + "_shape": torch.tensor(tensor.shape, dtype=torch.int32),
        }

    change_tensors(tmp_path, pack)
    more = {"inspect": [], "export": ["--layer", 1, "--out", tmp_path / "views"],
            "spectra": ["--out", tmp_path / "out"]}
    done = run(program, command, tmp_path, *more[command])
    assert done.returncode == 1
    assert f"'{weight}'" in done.stderr and "INT4" in done.stderr
