"""stories260K, a real trained Llama: the greedy continuation of a reference run comes out exactly."""

import json
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from oracle.networks import forward
from oracle.shared import shared


def read_llama2c(path):
    """config and tensors, Hugging Face's names, of a file in llama2.c's format: seven int32, then
    float32 matrices [out, in], layer after layer. Its rotation turns neighbours (2j, 2j + 1), so
    rows of q and k are put where Llama's rotation of halves finds them."""
    data = path.read_bytes()
    width, inner, layers, heads, groups, vocab, length = struct.unpack("7i", data[:28])
    values = np.frombuffer(data, "<f4", offset=28)
    at = 0

    def take(*shape):
        nonlocal at
        count = int(np.prod(shape))
        at += count
        return torch.from_numpy(values[at - count : at].reshape(shape).copy())

    def halves(weight, count):
        rows = weight.unflatten(1, (count, -1, 2))  # [layers, heads, pairs, 2, in]
        return rows.transpose(2, 3).flatten(1, 3)

    head = width // heads
    stacked = {"embed_tokens": take(vocab, width), "input_layernorm": take(layers, width)}
    stacked["self_attn.q_proj"] = halves(take(layers, width, width), heads)
    stacked["self_attn.k_proj"] = halves(take(layers, groups * head, width), groups)
    stacked["self_attn.v_proj"] = take(layers, groups * head, width)
    stacked["self_attn.o_proj"] = take(layers, width, width)
    stacked["post_attention_layernorm"] = take(layers, width)
    stacked["mlp.gate_proj"] = take(layers, inner, width)
    stacked["mlp.down_proj"] = take(layers, width, inner)
    stacked["mlp.up_proj"] = take(layers, inner, width)
    tensors = {"model.norm.weight": take(width)}
    tensors["model.embed_tokens.weight"] = stacked.pop("embed_tokens")
    for name, all_layers in stacked.items():
        for layer in range(layers):
            tensors[f"model.layers.{layer}.{name}.weight"] = all_layers[layer].contiguous()
    config = dict(
        model_type="llama", vocab_size=abs(vocab), hidden_size=width, intermediate_size=inner,
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=groups,
        max_position_embeddings=length, rms_norm_eps=1e-5, tie_word_embeddings=vocab > 0,
    )
    return config, tensors


def test_greedy_tokens_are_those_of_the_reference_run(tmp_path, program):
    folder = shared("data/weights/stories260K")
    config, tensors = read_llama2c(folder / "stories260K.recovered.bin")
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "model.safetensors")
    reference = json.loads((folder / "greedy_ids_reference.json").read_text())
    ids = torch.tensor([reference["bos"], *reference["ids"]])
    # Greedy decoding gives these ids if, and only if, each is the likeliest behind those before it.
    length = min(len(ids), config["max_position_embeddings"])
    logits = forward(program, tmp_path, {"input_ids": ids[None, :length]}, tmp_path)["logits"]
    found = logits[0].argmax(-1)[: len(ids) - 1]
    expected = ids[1 : length + 1]
    assert len(expected) >= 200
    assert torch.equal(found[: len(expected)], expected)
