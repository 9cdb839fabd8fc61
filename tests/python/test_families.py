"""Every model family, functionally: attention rebuilt from our views alone equals transformers'.

A tiny random model of each family (all widths different, so that a transposition cannot hide) is
written by transformers and read by `subspace export`. Attention's output is then computed in plain
float64 from the exported heads and latents, and compared with what transformers' own attention
module returned inside a full forward pass (so that rotary embedding and masks are its own).
"""

import json
import subprocess

import pytest
import torch
import transformers
from torch.overrides import TorchFunctionMode
from oracle.attention import attention_output, fused_logits_error, load_views

TOLERANCE = 1e-10
TOKENS = 11

DECODER = dict(
    hidden_size=42, intermediate_size=20, num_hidden_layers=2, vocab_size=64, max_position_embeddings=64
)
MLA = dict(
    hidden_size=42,
    intermediate_size=20,
    moe_intermediate_size=12,
    num_hidden_layers=2,
    vocab_size=64,
    max_position_embeddings=128,
    num_attention_heads=3,
    num_key_value_heads=3,
    q_lora_rank=17,
    kv_lora_rank=14,
    qk_nope_head_dim=10,
    qk_rope_head_dim=8,
    v_head_dim=7,
    n_routed_experts=4,
    n_shared_experts=1,
    num_experts_per_tok=2,
    n_group=1,
    topk_group=1,
    first_k_dense_replace=2,
)
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "mscale": 1.0,
    "mscale_all_dim": 0.8,
    "beta_fast": 32,
    "beta_slow": 1,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}


def grouped(heads, groups, head_dim=10, **more):
    return dict(
        DECODER, num_attention_heads=heads, num_key_value_heads=groups, head_dim=head_dim, **more
    )


# name -> (configuration class, its arguments, layer, model_type to write instead)
CASES = {
    "llama-mha": ("LlamaConfig", grouped(3, 3), 1),
    "llama-gqa": ("LlamaConfig", grouped(6, 2), 0),
    "llama-mqa-tied": ("LlamaConfig", grouped(3, 1, tie_word_embeddings=True), 0),
    "llama-biases": ("LlamaConfig", grouped(6, 3, attention_bias=True), 1),
    "llama-llama3-rope": ("LlamaConfig", grouped(6, 2, rope_parameters=LLAMA3), 0),
    "llama-linear-rope": ("LlamaConfig", grouped(6, 2, rope_parameters=LINEAR), 0),
    "llama-yarn-rope": ("LlamaConfig", grouped(6, 2, rope_parameters=YARN), 0),
    "mistral-window": ("MistralConfig", grouped(6, 2, sliding_window=4), 1),
    # Without head_dim: width / heads, which must be even to be rotated.
    "qwen2": (
        "Qwen2Config",
        dict(DECODER, hidden_size=36, num_attention_heads=6, num_key_value_heads=2),
        1,
    ),
    "qwen3": ("Qwen3Config", grouped(6, 2), 1),
    "gemma": ("GemmaConfig", grouped(6, 2), 1),
    "gemma2-sliding": ("Gemma2Config", grouped(6, 2, sliding_window=4, query_pre_attn_scalar=9), 0),
    "gemma2-full": ("Gemma2Config", grouped(6, 2, sliding_window=4, query_pre_attn_scalar=9), 1),
    "gemma3-local": (
        "Gemma3TextConfig",
        grouped(6, 2, sliding_window=4, layer_types=["sliding_attention", "full_attention"]),
        0,
    ),
    "gemma3-global": (
        "Gemma3TextConfig",
        grouped(6, 2, sliding_window=4, layer_types=["sliding_attention", "full_attention"]),
        1,
    ),
    "gpt2": ("GPT2Config", dict(n_embd=42, n_head=3, n_layer=2, vocab_size=64, n_positions=32), 1),
    "bert-first": (
        "BertConfig",
        dict(DECODER, num_attention_heads=3),
        0,
    ),
    "bert-second": ("BertConfig", dict(DECODER, num_attention_heads=3), 1),
    "roberta": ("RobertaConfig", dict(DECODER, num_attention_heads=3), 1),
    "distilbert": (
        "DistilBertConfig",
        dict(dim=42, hidden_dim=20, n_heads=3, n_layers=2, vocab_size=64),
        1,
    ),
    "vit": (
        "ViTConfig",
        dict(hidden_size=42, intermediate_size=20, num_hidden_layers=2, num_attention_heads=3,
             image_size=12, patch_size=4),
        1,
    ),
    "deepseek_v2": ("DeepseekV2Config", MLA, 1),
    "deepseek_v2-no-q-latent": ("DeepseekV2Config", dict(MLA, q_lora_rank=None), 0),
    "deepseek_v3": ("DeepseekV3Config", MLA, 1),
    "deepseek_v3-yarn": ("DeepseekV3Config", dict(MLA, rope_parameters=YARN), 1),
    "deepseek_v3-biases": ("DeepseekV3Config", dict(MLA, attention_bias=True), 1),
    "deepseek_v3-half-rope": ("DeepseekV3Config", dict(MLA, rope_interleave=False), 1),
    "deepseek_v3-no-q-latent": ("DeepseekV3Config", dict(MLA, q_lora_rank=None), 0),
    "kimi_k2": ("DeepseekV3Config", MLA, 0, "kimi_k2"),
}


class Double(TorchFunctionMode):
    """float64 wherever transformers asks for float32 (norms, softmax, rotary angles), so that its
    modules can be compared to more than seven digits."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        def wide(value):
            return torch.float64 if value is torch.float32 else value

        if function is torch.Tensor.float:
            function = torch.Tensor.double
        args = tuple(wide(value) for value in args)
        kwargs = {key: wide(value) for key, value in (kwargs or {}).items()}
        return function(*args, **kwargs)


def tiny_model(name):
    config_class, arguments = CASES[name][:2]
    config = getattr(transformers, config_class)(**arguments)
    torch.manual_seed(len(name))
    with Double():
        model = transformers.AutoModel.from_config(
            config, attn_implementation="eager", dtype=torch.float64
        )
        model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Norm weights too: a norm that is all ones would hide that it is missing.
            spread = 0.3 if parameter.dim() > 1 else 0.2
            parameter.normal_(0.0 if parameter.dim() > 1 else 0.5, spread)
    return model


def attention_module(model, layer):
    """transformers' attention module of that layer, by shape of its name."""
    found = []
    for path, module in model.named_modules():
        last = path.split(".")[-1]
        if last in ("self_attn", "attention", "attn") and f".{layer}." in f".{path}.":
            found.append((path, module))
    return min(found, key=lambda item: len(item[0]))[1]


def run_with_hook(model, layer):
    """(what attention read, what it returned) inside a full forward pass."""
    seen = {}

    def hook(module, args, kwargs, output):
        seen["input"] = args[0] if args else kwargs["hidden_states"]
        seen["output"] = output[0] if isinstance(output, tuple) else output

    def before_residual(module, args, output):
        seen["output"] = output

    attention = attention_module(model, layer)
    handle = attention.register_forward_hook(hook, with_kwargs=True)
    dense = getattr(getattr(attention, "output", None), "dense", None)
    if dense is not None:
        # BERT's module goes on to add the residual and norm it; attention ends at its last Linear.
        # A module's own hook runs after its children's, so it must not overwrite theirs.
        handle.remove()
        handle = attention.register_forward_pre_hook(
            lambda module, args, kwargs: seen.update(
                input=args[0] if args else kwargs["hidden_states"]
            ),
            with_kwargs=True,
        )
        dense.register_forward_hook(before_residual)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad(), Double():
        if model.config.model_type == "vit":
            model(pixel_values=torch.randn(1, 3, 12, 12, dtype=torch.float64, generator=generator))
        else:
            model(input_ids=torch.randint(3, 60, (1, TOKENS), generator=generator))
    handle.remove()
    return seen["input"][0], seen["output"][0]


def export(program, folder, layer, out, *more):
    subprocess.run(
        [program, "export", str(folder), "--layer", str(layer), "--out", str(out), *more],
        check=True,
        capture_output=True,
    )
    return load_views(out)


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory, program):
    name = request.param
    model = tiny_model(name)
    folder = tmp_path_factory.mktemp(name.replace("-", "_"))
    model.save_pretrained(folder)
    if len(CASES[name]) > 3:
        config = json.loads((folder / "config.json").read_text())
        config["model_type"] = CASES[name][3]
        (folder / "config.json").write_text(json.dumps(config))
    layer = CASES[name][2]
    read, written = run_with_hook(model, layer)
    views = export(program, folder, layer, folder / "views.safetensors", "--offset", "3")
    return name, folder, layer, read, written, views


def error_of(found, expected):
    """Largest error, relative to the largest value expected."""
    assert found.shape == expected.shape
    assert expected.dtype == torch.float64
    return ((found - expected).abs().max() / expected.abs().max()).item()


def test_attention_output_equals_transformers(case):
    name, _, _, read, written, views = case
    error = error_of(attention_output(views, read), written)
    assert error <= TOLERANCE, name


def test_fused_maps_give_the_same_logits_and_messages(case):
    """x_m (Q_i R(m-n) K_g^T) x_n and x (V_g O_i), through the exported factors."""
    _, _, _, read, _, views = case
    assert fused_logits_error(views, read) <= TOLERANCE


@pytest.mark.parametrize("name", ["deepseek_v3", "llama-gqa"])
def test_the_oracle_notices_classic_faults(name, tmp_path, program):
    """kv_b_proj cut in two halves, and rotation of the wrong pairs, must not pass unnoticed."""
    model = tiny_model(name)
    model.save_pretrained(tmp_path)
    layer = CASES[name][2]
    read, written = run_with_hook(model, layer)
    views = export(program, tmp_path, layer, tmp_path / "views.safetensors")
    wrong = dict(views)
    wrong["meta"] = dict(views["meta"])
    other = {"half": "interleaved", "interleaved": "half"}
    wrong["meta"]["rotary.layout"] = other[views["meta"]["rotary.layout"]]
    assert error_of(attention_output(wrong, read), written) > 1e-3
    if "kva" in views:
        both = torch.cat([views["k"], views["v"]], 2).permute(0, 2, 1).flatten(0, 1)
        heads, _, width = views["k"].shape
        wrong = dict(views)
        wrong["k"] = both[: heads * width].unflatten(0, (heads, width)).transpose(1, 2)
        wrong["v"] = both[heads * width :].unflatten(0, (heads, -1)).transpose(1, 2)
        assert error_of(attention_output(wrong, read), written) > 1e-3


def test_an_unknown_family_is_refused_with_the_known_ones(tmp_path, program):
    tiny_model("llama-mha").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["model_type"] = "novel_model"
    (tmp_path / "config.json").write_text(json.dumps(config))
    result = subprocess.run([program, "inspect", str(tmp_path)], capture_output=True, text=True)
    assert result.returncode == 1
    assert "novel_model" in result.stderr
    for known in ("bert", "llama", "deepseek_v3"):
        assert known in result.stderr
