"""Small Llamas of transformers with adapters of peft on them, and their weights as NumPy arrays in
row vectors: what the tests of `subspace lora` compare with."""

import json

import numpy as np
import peft
import torch
import transformers
from safetensors.numpy import load_file

from oracle.models import Double

ALL = ("q_proj", "k_proj", "v_proj", "o_proj")


def make(folder, heads=4, groups=2, head=6, width=24, layers=3, targets=ALL, r=3, size=0.3, seed=0):
    """A base and an adapter on disk, float64, every number random. -> (base, adapter)"""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=41, hidden_size=width, intermediate_size=20, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=groups, head_dim=head,
        max_position_embeddings=32, tie_word_embeddings=False, initializer_range=0.3,
        attention_dropout=0.0,
    )
    model = transformers.LlamaForCausalLM(config).double()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(folder / "base")
    tuned = peft.get_peft_model(model, peft.LoraConfig(
        r=r, lora_alpha=2 * r, target_modules=list(targets), lora_dropout=0.0))
    tuned = tuned.double()
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            parameter.data = size * torch.randn_like(parameter)
    tuned.save_pretrained(folder / "adapter")
    return folder / "base", folder / "adapter"


def merged(base, adapter, change=None):
    """transformers' model with peft's adapter merged; `change(name, tensor)` alters the adapter's
    tensors first."""
    with Double():
        model = transformers.LlamaForCausalLM.from_pretrained(
            base, dtype=torch.float64, attn_implementation="eager")
    # Outside: reading float32 tensors from bytes must not become reading them as float64.
    tuned = peft.PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=False).double()
    if change is not None:
        for name, parameter in tuned.named_parameters():
            if "lora_" in name:
                change(name, parameter.data)
    return tuned.merge_and_unload().eval()


def logits(model, tokens):
    """In float64 throughout, which transformers' norms and softmax are not by themselves."""
    with torch.no_grad(), Double():
        return model(input_ids=torch.tensor(tokens)).logits.numpy()


class Weights:
    """Q, K, V, O of every layer in row vectors, [heads or groups, ..], base and adapted, before
    norms are folded; `layers[i]["q"]` is (W, W' - W)."""

    def __init__(self, base, adapter):
        self.config = json.loads((base / "config.json").read_text())
        stored = load_file(base / "model.safetensors")
        low_rank = load_file(adapter / "adapter_model.safetensors")
        lora = json.loads((adapter / "adapter_config.json").read_text())
        scale = lora["lora_alpha"] / lora["r"]
        self.heads = self.config["num_attention_heads"]
        self.groups = self.config["num_key_value_heads"]
        self.stored = {name: value.astype(np.float64) for name, value in stored.items()}
        self.layers = []
        for layer in range(self.config["num_hidden_layers"]):
            found = {"norm": self.stored[f"model.layers.{layer}.input_layernorm.weight"]}
            for part in "qkvo":
                name = f"model.layers.{layer}.self_attn.{part}_proj"
                w = self.stored[name + ".weight"]
                a = low_rank.get(f"base_model.model.{name}.lora_A.weight")
                b = low_rank.get(f"base_model.model.{name}.lora_B.weight")
                change = np.zeros_like(w)
                if a is not None:
                    change = scale * b.astype(np.float64) @ a.astype(np.float64)
                found[part] = tuple(self.split(part, m) for m in (w, change))
            self.layers.append(found)

    def split(self, part, matrix):
        if part == "o":
            return matrix.T.reshape(self.heads, -1, matrix.shape[0])
        heads = self.heads if part == "q" else self.groups
        return matrix.reshape(heads, -1, matrix.shape[1]).transpose(0, 2, 1)

    def group(self, head):
        return head // (self.heads // self.groups)

    def rotation(self, delta):
        """R(delta): x R is x turned, half layout."""
        width = self.layers[0]["q"][0].shape[2]
        half = width // 2
        theta = self.config.get("rope_theta") or self.config["rope_parameters"]["rope_theta"]
        angle = delta * float(theta) ** (-np.arange(half) / half)
        turn = np.zeros((width, width))
        i = np.arange(half)
        turn[i, i] = turn[i + half, i + half] = np.cos(angle)
        turn[i, i + half], turn[i + half, i] = np.sin(angle), -np.sin(angle)
        return turn
