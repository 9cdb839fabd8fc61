"""One attention, stored fused (GPT-2's c_attn) and split (BERT's query, key, value), and one change
of it, written both ways: `lora heads` says the same of every head."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from oracle.program import run

D, HEADS, LAYERS, RANK, SCALE = 24, 3, 2, 2, 2.5
PARTS = ("query", "key", "value")


def base_matrices(random):
    """W [in, out] of q, k, v side by side and of o, with their biases, layer by layer."""
    shapes = {"qkv": (D, 3 * D), "qkv_bias": (3 * D,), "o": (D, D), "o_bias": (D,)}
    return [{name: random.normal(size=shape) for name, shape in shapes.items()}
            for _ in range(LAYERS)]


def write(folder, config, tensors, name):
    folder.mkdir(parents=True)
    kind = "adapter_config.json" if name.startswith("adapter") else "config.json"
    (folder / kind).write_text(json.dumps(config))
    save_file({key: np.ascontiguousarray(x) for key, x in tensors.items()}, folder / name)
    return folder


def fused_base(folder, layers):
    tensors = {}
    for i, layer in enumerate(layers):
        block = f"h.{i}."
        tensors |= {block + "attn.c_attn.weight": layer["qkv"], block + "attn.c_attn.bias": layer["qkv_bias"],
                    block + "attn.c_proj.weight": layer["o"], block + "attn.c_proj.bias": layer["o_bias"],
                    block + "ln_1.weight": np.ones(D), block + "ln_1.bias": np.zeros(D)}
    config = {"model_type": "gpt2", "n_embd": D, "n_layer": LAYERS, "n_head": HEADS}
    return write(folder, config, tensors, "model.safetensors")


def split_base(folder, layers):
    tensors = {"embeddings.LayerNorm.weight": np.ones(D), "embeddings.LayerNorm.bias": np.zeros(D)}
    for i, layer in enumerate(layers):
        block = f"encoder.layer.{i}."
        for p, part in enumerate(PARTS):
            cut = slice(p * D, (p + 1) * D)
            tensors[f"{block}attention.self.{part}.weight"] = layer["qkv"][:, cut].T
            tensors[f"{block}attention.self.{part}.bias"] = layer["qkv_bias"][cut]
        tensors |= {block + "attention.output.dense.weight": layer["o"].T,
                    block + "attention.output.dense.bias": layer["o_bias"],
                    block + "attention.output.LayerNorm.weight": np.ones(D),
                    block + "attention.output.LayerNorm.bias": np.zeros(D),
                    block + "output.LayerNorm.weight": np.ones(D), block + "output.LayerNorm.bias": np.zeros(D)}
    config = {"model_type": "bert", "hidden_size": D, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    return write(folder, config, tensors, "model.safetensors")


def adapter(folder, factors, targets, rank, transposed):
    """`factors`: path of a module -> (A [r, in], B [out, r])."""
    tensors = {}
    for path, (a, b) in factors.items():
        tensors[f"base_model.model.{path}.lora_A.weight"] = a
        tensors[f"base_model.model.{path}.lora_B.weight"] = b
    config = {"peft_type": "LORA", "r": RANK, "rank_pattern": rank, "bias": "none",
              "alpha_pattern": {key: SCALE / RANK * r for key, r in rank.items()},
              "lora_alpha": SCALE, "target_modules": targets, "fan_in_fan_out": transposed}
    return write(folder, config, tensors, "adapter_model.safetensors")


def output_factors(random):
    return [(random.normal(size=(RANK, D)), random.normal(size=(D, RANK))) for _ in range(LAYERS)]


def split_paths(i):
    return [f"encoder.layer.{i}.attention.self.{part}" for part in PARTS]


def heads(program, base, adapted, out):
    result = run(program, "--quiet", "lora", "heads", "--base", base, "--adapter", adapted, "--out", out)
    assert result.returncode == 0, result.stderr
    return json.loads((out / "heads.json").read_text())


def assert_alike(found, wanted, where, scale=1.0):
    """Everything in two results, numbers to rounding relative to the largest near them."""
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys(), where
        for key in wanted:
            assert_alike(found[key], wanted[key], f"{where}.{key}", scale)
    elif isinstance(wanted, list):
        assert len(found) == len(wanted), where
        numbers = [abs(x) for x in wanted if isinstance(x, float)]
        for i, (a, b) in enumerate(zip(found, wanted)):
            assert_alike(a, b, f"{where}[{i}]", max([scale, *numbers]))
    elif isinstance(wanted, float):
        assert abs(found - wanted) <= 1e-10 * max(scale, abs(wanted)), f"{where}: {found} {wanted}"
    else:
        assert found == wanted, where


def compare(program, tmp_path, fused, split, bases):
    ours = heads(program, bases[0], fused, tmp_path / "fused-out")
    theirs = heads(program, bases[1], split, tmp_path / "split-out")
    for head in theirs["heads"]:  # BERT has a norm behind its heads, GPT-2 has none
        if head["circuit"] == "VO":
            head["approx"].remove("post_norm")
    assert len(theirs["heads"]) == 2 * HEADS * LAYERS
    assert_alike(ours["heads"], theirs["heads"], "heads")
    return ours, theirs


@pytest.fixture
def bases(tmp_path):
    layers = base_matrices(np.random.default_rng(1))
    return fused_base(tmp_path / "fused", layers), split_base(tmp_path / "split", layers)


def test_a_fused_adapter_is_three_split_ones_with_one_a(program, tmp_path, bases):
    """A fused matrix has one A; split, each of q, k and v gets a copy of it and its rows of B."""
    random = np.random.default_rng(2)
    fused, split = {}, {}
    for i, output in enumerate(output_factors(random)):
        a, b = random.normal(size=(RANK, D)), random.normal(size=(3 * D, RANK))
        fused[f"transformer.h.{i}.attn.c_attn"] = a, b
        fused[f"transformer.h.{i}.attn.c_proj"] = output
        for p, path in enumerate(split_paths(i)):
            split[path] = a, b[p * D : (p + 1) * D]
        split[f"encoder.layer.{i}.attention.output.dense"] = output
    ours, _ = compare(
        program, tmp_path,
        adapter(tmp_path / "a", fused, ["c_attn", "c_proj"], {}, True),
        adapter(tmp_path / "b", split, [*PARTS, "attention.output.dense"], {}, False), bases)
    assert {head["rank_bound"] for head in ours["heads"]} == {2 * RANK}


def test_split_adapters_stored_fused_are_the_split_ones(program, tmp_path, bases):
    """PEFT's other way: the three A on top of one another, B block-diagonal, rank 3 r. The heads'
    terms are the same; what depends on how wide span(A) is (angles, bounds of ranks) is not."""
    random = np.random.default_rng(3)
    fused, split = {}, {}
    for i, output in enumerate(output_factors(random)):
        a, b = random.normal(size=(3, RANK, D)), random.normal(size=(3, D, RANK))
        blocks = np.zeros((3 * D, 3 * RANK))
        for p, path in enumerate(split_paths(i)):
            split[path] = a[p], b[p]
            blocks[p * D : (p + 1) * D, p * RANK : (p + 1) * RANK] = b[p]
        fused[f"transformer.h.{i}.attn.c_attn"] = a.reshape(3 * RANK, D), blocks
        fused[f"transformer.h.{i}.attn.c_proj"] = output
        split[f"encoder.layer.{i}.attention.output.dense"] = output
    ours = heads(program, bases[0], adapter(tmp_path / "a", fused, ["c_attn", "c_proj"], {"c_attn": 3 * RANK}, True),
                 tmp_path / "fused-out")
    theirs = heads(program, bases[1], adapter(tmp_path / "b", split, [*PARTS, "attention.output.dense"], {}, False),
                   tmp_path / "split-out")
    same = ("layer", "head", "circuit", "fro", "rel_fro", "rel_spec", "cos", "gain", "terms", "gram",
            "split", "align_lift", "rank_num", "erank99", "stable_rank")
    for one, other in zip(ours["heads"], theirs["heads"], strict=True):
        assert_alike({name: one[name] for name in same}, {name: other[name] for name in same},
                     f"{other['circuit']} {other['layer']}.{other['head']}")
