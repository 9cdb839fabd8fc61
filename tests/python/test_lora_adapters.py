"""Adapters made by PEFT, merged by PEFT and by us: every matrix, bias and norm of every layer of
every family is the same."""

import json

import pytest
import torch

from oracle.adapters import adapt, attention_modules, layers_of
from oracle.cases import CASES
from oracle.models import tiny_model
from oracle.program import export, run
from oracle.shared import shared

TOLERANCE = 1e-12

# One case of each architecture in storage; what differs in rotation alone is left to its own tests.
FAMILIES = [
    "llama-mha", "llama-gqa", "llama-mqa", "llama-biases", "mistral-window", "qwen2", "qwen3",
    "gemma", "gemma2-full", "gemma3-local", "gpt2", "bert-second", "roberta", "distilbert", "vit",
    "deepseek_v2", "deepseek_v2-no-q-latent", "deepseek_v3", "deepseek_v3-biases", "deepseek_v32",
    "glm4_moe_lite", "glm_moe_dsa", "minicpm3", "mistral4", "ministral3", "longcat_flash-first",
    "deepseek_v4", "deepseek_v4-makers-names", "kimi_k2", "gemma3", "gemma3-makers-names",
    "mistral3", "kimi_k25",
]

# What PEFT can do to a matrix, and a bias.
KINDS = {
    "rslora": dict(use_rslora=True),
    # In the order of the alphabet, in which PEFT saves the keys: where two match, a reader of the
    # file sees that order, whatever the one in training was.
    "patterns": dict(
        rank_pattern={"c_proj": 4, "k_proj": 5, "key": 5, r"layers?\.0\..*": 2},
        alpha_pattern={"c_attn": 11, "q_proj": 3, "query": 3},
    ),
    "dora": dict(use_dora=True),
    "dora-rslora": dict(use_dora=True, use_rslora=True),
}
BIASED = {
    "lora_bias": dict(lora_bias=True),
    "bias-lora_only": dict(bias="lora_only"),
    "bias-all": dict(bias="all"),
}


def assert_merged_alike(program, name, folder, base, adapter, merged):
    for layer in layers_of(name):
        ours = export(program, base, layer, folder / "ours", "--adapter", adapter)
        theirs = export(program, merged, layer, folder / "theirs")
        plain = export(program, base, layer, folder / "plain")
        assert ours.keys() == theirs.keys()
        changed = 0
        for key in theirs:
            if key == "meta":
                assert ours[key] == theirs[key]
                continue
            scale = theirs[key].abs().max()
            worst = (ours[key] - theirs[key]).abs().max()
            assert worst <= TOLERANCE * scale, (layer, key, float(worst))
            changed += not torch.equal(plain[key], theirs[key])
        assert changed >= 4, f"layer {layer}: the adapter changed next to nothing"


@pytest.mark.parametrize("name", FAMILIES)
def test_merged_as_peft_merges(name, program, tmp_path):
    paths = adapt(name, tmp_path)
    assert_merged_alike(program, name, tmp_path, *paths)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["llama-gqa", "gpt2", "bert-second", "deepseek_v3"])
def test_kinds_of_lora(name, kind, program, tmp_path):
    paths = adapt(name, tmp_path, **KINDS[kind])
    assert_merged_alike(program, name, tmp_path, *paths)


@pytest.mark.parametrize("kind", BIASED)
@pytest.mark.parametrize("name", ["llama-biases", "gpt2", "bert-second"])
def test_biases(name, kind, program, tmp_path):
    paths = adapt(name, tmp_path, **BIASED[kind])
    assert_merged_alike(program, name, tmp_path, *paths)


@pytest.mark.parametrize(
    "name, saved, targets",
    [
        ("llama-gqa", ["input_layernorm", "v_proj"], ["q_proj", "o_proj"]),
        ("gemma", ["input_layernorm"], ["q_proj", "k_proj", "v_proj"]),
        ("qwen3", ["q_norm", "k_norm", "o_proj"], ["q_proj", "k_proj"]),
        ("gpt2", ["ln_1", "c_proj"], ["c_attn"]),
        ("bert-second", ["LayerNorm", "value"], ["query", "key"]),
        ("deepseek_v3", ["kv_a_layernorm", "kv_b_proj"], ["q_b_proj", "o_proj"]),
    ],
)
def test_modules_saved_whole(name, saved, targets, program, tmp_path):
    paths = adapt(name, tmp_path, modules_to_save=saved, target_modules=targets)
    assert_merged_alike(program, name, tmp_path, *paths)


def test_a_fused_matrix_has_one_a(program, tmp_path):
    """In fused storage q, k and v read what one A reads; in split storage each its own."""
    base, adapter, _ = adapt("gpt2", tmp_path)
    facts = inspect(program, adapter, "--base", base)
    assert facts["modules"][0]["matrices"] == ["q", "k", "v"]
    assert [module["layer"] for module in facts["modules"]] == [0, 0, 1, 1]


def inspect(program, adapter, *more):
    result = run(program, "--json", "lora", "inspect", "--adapter", adapter, *more)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_inspect_says_what_peft_was_told(program, tmp_path):
    base, adapter, _ = adapt("llama-gqa", tmp_path, r=4, lora_alpha=10, use_rslora=True)
    facts = inspect(program, adapter, "--base", base)
    assert facts["type"] == "rsLoRA"
    assert (facts["rank"], facts["alpha"], facts["scale"]) == (4, 10, 5)
    assert facts["layers"] == [0, 1]
    assert len(facts["modules"]) == 8
    module = next(m for m in facts["modules"] if m["module"] == "layers.1.self_attn.o_proj")
    assert (module["matrices"], module["in"], module["out"]) == (["o"], 60, 42)
    from safetensors.torch import load_file

    tensors = load_file(adapter / "adapter_model.safetensors")
    stem = "base_model.model.layers.1.self_attn.o_proj."
    a, b = (tensors[stem + f"lora_{x}.weight"].double() for x in "AB")
    assert module["norms"]["update"] == pytest.approx(5 * float((b @ a).norm()), rel=1e-12)
    assert module["norms"]["raw_gauge_dependent"]["a"] == pytest.approx(float(a.norm()), rel=1e-12)
    assert facts["parameters"] == sum(t.numel() for t in tensors.values())


def test_inspect_works_without_the_base_and_with_its_configuration_alone(program, tmp_path):
    base, adapter, _ = adapt("deepseek_v3", tmp_path)
    facts = inspect(program, adapter)
    assert facts["base"] is None and facts["base_missing"]
    assert facts["layers"] == [0, 1]
    (base / "model.safetensors").unlink()
    facts = inspect(program, adapter, "--base", base)
    assert facts["base"]["weights"] is False and facts["base"]["heads"] == 3
    matrices = {m["module"].split(".")[-1]: m["matrices"] for m in facts["modules"]}
    assert matrices["kv_b_proj"] == ["k", "v"]
    assert matrices["kv_a_proj_with_mqa"] == ["kva", "kpe"]
    assert any("not at hand" in note for note in facts["notes"])


def test_the_base_is_found_by_its_name(program, tmp_path, monkeypatch):
    base, adapter, _ = adapt("llama-gqa", tmp_path)
    config = json.loads((adapter / "adapter_config.json").read_text())
    for named in (str(base), "gpt2-of-mine", "some/base"):
        config["base_model_name_or_path"] = named
        (adapter / "adapter_config.json").write_text(json.dumps(config))
        if "/" not in str(named) or named == "some/base":
            cached = tmp_path / "hub" / ("models--" + named.replace("/", "--"))
            (cached / "refs").mkdir(parents=True)
            (cached / "refs" / "main").write_text("abcd")
            (cached / "snapshots").mkdir()
            (cached / "snapshots" / "abcd").symlink_to(base)
            monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
        assert inspect(program, adapter)["base"]["model_type"] == "llama"


def test_real_adapter_of_gpt2_without_its_base(program, tmp_path):
    adapter = shared("data/weights/lora_gpt2")
    facts = inspect(program, adapter)
    assert (facts["type"], facts["rank"], facts["scale"]) == ("LoRA", 8, 1)
    assert facts["base_model_name_or_path"] == "gpt2"
    assert facts["layers"] == list(range(12)) and len(facts["modules"]) == 12
    assert facts["saved_whole"] == ["base_model.model.score.weight"]
    config = dict(model_type="gpt2", n_embd=768, n_head=12, n_layer=12)
    (tmp_path / "config.json").write_text(json.dumps(config))
    facts = inspect(program, adapter, "--base", tmp_path)
    assert facts["base"]["heads"] == 12
    assert all(module["matrices"] == ["q", "k", "v"] for module in facts["modules"])


def change_config(adapter, **fields):
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(dict(json.loads(path.read_text()), **fields)))


def test_bad_input_ends_with_what_where_and_what_to_do(program, tmp_path):
    base, adapter, _ = adapt("llama-gqa", tmp_path / "one")
    other, _, _ = adapt("llama-mha", tmp_path / "two")

    def refused(*more, words, code=1):
        result = run(program, "lora", "inspect", "--adapter", adapter, *more)
        assert result.returncode == code and result.stdout == ""
        assert result.stderr.startswith("error: ") and "Traceback" not in result.stderr
        for word in words:
            assert word in result.stderr

    refused("--base", other, words=["layer 0", "60 outputs", "has 42 and 30", "another model"])
    refused("--base", tmp_path / "none", words=["no such folder"])
    change_config(adapter, brand_new_field={"x": 1})
    assert run(program, "lora", "inspect", "--adapter", adapter).returncode == 0
    refused("--strict", words=["brand_new_field"])
    change_config(adapter, brand_new_field=None, r=9)
    refused(words=["rank 3", "says 9"])
    change_config(adapter, r=3, init_lora_weights="pissa")
    refused(words=["pissa", "--base-is-residual"])
    assert run(
        program, "lora", "inspect", "--adapter", adapter, "--base-is-residual"
    ).returncode == 0


def test_converted_pissa_adapters_are_plain_lora(program, tmp_path):
    """PEFT's own conversion doubles the rank and leaves the published base as the base."""
    import copy

    import peft

    base = tiny_model("llama-gqa")
    base.save_pretrained(tmp_path / "base")
    options = dict(r=3, lora_alpha=3, target_modules=attention_modules(base))
    model = peft.get_peft_model(
        copy.deepcopy(base).float(), peft.LoraConfig(init_lora_weights="pissa", **options)
    ).double()
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "start")
    model.peft_config["default"].init_lora_weights = "pissa"
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.1)
    model.save_pretrained(
        tmp_path / "adapter", path_initial_model_for_weight_conversion=str(tmp_path / "start")
    )
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    ours = export(program, tmp_path / "base", 0, tmp_path / "o", "--adapter", tmp_path / "adapter")
    theirs = export(program, tmp_path / "merged", 0, tmp_path / "t")
    for key in ("q", "k", "v", "o"):
        # PiSSA's own arithmetic is float32.
        assert (ours[key] - theirs[key]).abs().max() <= 1e-5


def test_every_family_is_covered():
    stored = {CASES[name][0] for name in FAMILIES}
    assert stored == {case[0] for case in CASES.values()}
