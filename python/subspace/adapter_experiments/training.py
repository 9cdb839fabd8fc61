"""What `subspace train --base` does not train: A frozen, one A for q, k and v, all of the matrices.

The model is that of configs/known-answer-base.json, in PyTorch; rows are those of rows.py,
optimiser and schedule the program's. "split" is what the program trains too: the others' own control.
"""

import numpy as np
import torch

from .factors import Model, truncated, write_adapter
from .rows import rows

ARMS = ("split", "frozen", "fused", "whole")
PARTS = "qkvo"


class Decoder:
    """Attention alone, RMSNorm, rotary positions (half layout), grouped keys and values."""

    def __init__(self, model, dtype=torch.float32):
        c = model.config
        if c.get("hidden_act") != "none" or "kv_lora_rank" in c:
            raise ValueError(f"{model.folder}: trained here are decoders of attention alone without latents")
        self.weights = {name: torch.tensor(value, dtype=dtype) for name, value in model.weights.items()}
        self.layers, self.heads = c["num_hidden_layers"], c["num_attention_heads"]
        self.groups = c.get("num_key_value_heads", self.heads)
        self.eps, self.theta = c["rms_norm_eps"], c["rope_theta"]

    def norm(self, x, name):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weights[name]

    def turn(self, x):
        """Positions 0, 1, .. of [.., tokens, width]."""
        half = x.shape[-1] // 2
        frequency = self.theta ** (-torch.arange(half, dtype=x.dtype) / half)
        angle = torch.arange(x.shape[-2], dtype=x.dtype)[:, None] * frequency
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)

    def logits(self, tokens, matrix, last):
        """Of the last tokens of each row. matrix(module) is its weight [out, in], changed or not."""
        x = self.weights["model.embed_tokens.weight"][tokens]
        for layer in range(self.layers):
            block = f"model.layers.{layer}."
            read = self.norm(x, block + "input_layernorm.weight")
            w = {part: matrix(f"{block}self_attn.{part}_proj") for part in PARTS}
            split = lambda part, n: (read @ w[part].T).unflatten(-1, (n, -1)).transpose(1, 2)
            q, k, v = split("q", self.heads), split("k", self.groups), split("v", self.groups)
            mixed = torch.nn.functional.scaled_dot_product_attention(
                self.turn(q), self.turn(k), v, is_causal=True, enable_gqa=self.groups != self.heads)
            x = x + mixed.transpose(1, 2).flatten(2) @ w["o"].T
        return self.norm(x[:, -last:], "model.norm.weight") @ self.weights["lm_head.weight"].T


class Adapter:
    """What an arm trains: matrix(module) with it, parameters, and the result as (A, B)."""

    def __init__(self, decoder, arm, rank, seed):
        if arm not in ARMS:
            raise ValueError(f"arm '{arm}'; there are {', '.join(ARMS)}")
        self.decoder, self.arm, self.rank = decoder, arm, rank
        self.a, self.b, self.whole = {}, {}, {}
        random = torch.Generator().manual_seed(seed)
        for layer in range(decoder.layers):
            shared = None
            for part in PARTS:
                module = f"model.layers.{layer}.self_attn.{part}_proj"
                weight = decoder.weights[module + ".weight"]
                if arm == "whole":
                    self.whole[module] = weight.clone().requires_grad_()
                    continue
                bound = weight.shape[1] ** -0.5
                a = (torch.rand(rank, weight.shape[1], generator=random) * 2 - 1).to(weight.dtype) * bound
                if arm == "fused" and part in "qkv":
                    a = shared = a if shared is None else shared
                self.a[module] = a.requires_grad_(arm != "frozen")
                self.b[module] = torch.zeros(weight.shape[0], rank, dtype=weight.dtype, requires_grad=True)

    def parameters(self):
        # A shared A is listed once.
        every = [*self.a.values(), *self.b.values(), *self.whole.values()]
        return list({id(p): p for p in every if p.requires_grad}.values())

    def matrix(self, module):
        if self.whole:
            return self.whole[module]
        return self.decoder.weights[module + ".weight"] + self.b[module] @ self.a[module]

    def factors(self):
        array = lambda x: x.detach().numpy().astype(np.float64)
        if not self.whole:
            return {m: (array(self.a[m]), array(self.b[m])) for m in self.a}
        return {m: truncated(array(w) - array(self.decoder.weights[m + ".weight"]), min(w.shape))
                for m, w in self.whole.items()}


def train(base, task, out, arm, rank, settings, seed, rate=None, threads=1):
    """Trains an arm on the base and writes it to `out` as an adapter (of full rank, if whole).
    settings: `train` of configs/known-answer-adapter.json, of which its linear decay is built in."""
    if settings.get("decay") != "linear" or settings.get("warmup") or settings.get("weight_decay"):
        raise ValueError("settings: expected linear decay without warm-up and weight decay")
    torch.set_num_threads(threads)
    decoder = Decoder(Model(base))
    adapter = Adapter(decoder, arm, rank, seed)
    rate, steps = rate or settings["learning_rate"], settings["steps"]
    optimizer = torch.optim.Adam(adapter.parameters(), lr=rate)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * (steps - step) / steps
        tokens, wanted = rows(task, settings["batch_size"], np.random.default_rng([seed, step]))
        logits = decoder.logits(torch.tensor(tokens), adapter.matrix, wanted.shape[1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(wanted).flatten())
        if not torch.isfinite(loss):
            raise FloatingPointError(f"{out}: the loss is {loss.item()} at step {step}; a lower rate may help")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(adapter.parameters(), 1.0)
        optimizer.step()
    return write_adapter(out, adapter.factors(), base)
