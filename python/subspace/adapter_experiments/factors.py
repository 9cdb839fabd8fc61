"""Adapters as arrays: what the experiments do to one between training it and measuring it.

An adapter is {module: (A [r, in], B [out, r])} in the orientation of storage, scale folded into B:
the change of module's weight [out, in] is B A. Only attention's q, k, v and o of models that store
them apart; those of MLA can be read, merged and scaled, not turned or split.
"""

import json
import re
import shutil

import numpy as np
from safetensors.numpy import load_file, save_file

PREFIX = "base_model.model."
PART = re.compile(r"(model\.layers\.\d+\.)self_attn\.([qkvo])_proj$")


class Model:
    """A base's weights in float64, by name, and the head's size of each of its attention's parts."""

    def __init__(self, folder):
        self.folder = folder
        self.config = json.loads((folder / "config.json").read_text())
        stored = load_file(folder / "model.safetensors")
        self.weights = {name: value.astype(np.float64) for name, value in stored.items()}

    def weight(self, module):
        return self.weights[module + ".weight"]

    def gamma(self, module):
        """The input norm's weight, a factor of every column of what reads behind it."""
        return self.weights[PART.match(module)[1] + "input_layernorm.weight"]

    def heads(self, module):
        """(part, [(first, last)]): where each head (key/value group) stands in the rows of q, k and
        v, in the columns of o."""
        part = PART.match(module)
        if part is None:
            raise ValueError(f"{module}: no q, k, v or o projection; these have no heads of their own here")
        count = self.config["num_attention_heads"]
        if part[2] in "kv":
            count = self.config.get("num_key_value_heads", count)
        width = self.weight(module).shape[1 if part[2] == "o" else 0] // count
        return part[2], [(i * width, (i + 1) * width) for i in range(count)]


def read_adapter(folder):
    config = json.loads((folder / "adapter_config.json").read_text())
    for field in ("rank_pattern", "alpha_pattern", "use_dora", "fan_in_fan_out"):
        if config.get(field):
            raise ValueError(f"{folder}: {field} is {config[field]!r}; expected an adapter of one rank and "
                             "scale, as `subspace train --base` writes them")
    scale = config["lora_alpha"] / (config["r"] ** 0.5 if config.get("use_rslora") else config["r"])
    stored = load_file(folder / "adapter_model.safetensors")
    out = {}
    for name, a in stored.items():
        if name.endswith(".lora_A.weight"):
            b = stored[name.replace("lora_A", "lora_B")]
            module = name.removeprefix(PREFIX).removesuffix(".lora_A.weight")
            out[module] = a.astype(np.float64), scale * b.astype(np.float64)
    return out


def write_adapter(folder, factors, base, scale=1.0):
    """As PEFT writes it, all of one rank: those of fewer are filled with zeros."""
    rank = max(a.shape[0] for a, _ in factors.values())
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for module, (a, b) in factors.items():
        more = rank - a.shape[0]
        tensors[f"{PREFIX}{module}.lora_A.weight"] = np.pad(a, ((0, more), (0, 0))).astype(np.float32)
        tensors[f"{PREFIX}{module}.lora_B.weight"] = np.pad(b, ((0, 0), (0, more))).astype(np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(base), "r": rank,
              "lora_alpha": scale * rank, "use_rslora": False, "bias": "none", "lora_dropout": 0.0,
              "target_modules": sorted({module.rsplit(".", 1)[-1] for module in factors}),
              "fan_in_fan_out": False, "init_lora_weights": True, "modules_to_save": None,
              "inference_mode": True}
    # Last: the folder counts as finished when it has this.
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return folder


def write_model(folder, base, weights):
    """The base with other weights."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: np.ascontiguousarray(value, np.float32) for name, value in weights.items()},
              folder / "model.safetensors")
    shutil.copyfile(base / "config.json", folder / "config.json")
    return folder


def merged(model, *adapters, scale=1.0):
    """The base's weights with the adapters added."""
    weights = dict(model.weights)
    for factors in adapters:
        for module, (a, b) in factors.items():
            weights[module + ".weight"] = weights[module + ".weight"] + scale * b @ a
    return weights


def truncated(change, rank):
    """A and B of the best approximation of a change of that rank."""
    u, s, v = np.linalg.svd(change, full_matrices=False)
    root = np.sqrt(s[:rank])
    return root[:, None] * v[:rank], u[:, :rank] * root


def differences(before, after, modules, rank):
    """What was trained whole, as an adapter of that rank."""
    return {m: truncated(after[m + ".weight"] - before[m + ".weight"], rank) for m in modules}


def rotation(size, random):
    """An orthogonal matrix without a preferred direction (Haar)."""
    q, r = np.linalg.qr(random.normal(size=(size, size)))
    return q * np.sign(np.diag(r))


def turned(model, factors, random):
    """Everything as it was learned but for where it lies in the residual stream: what A of q, k and v
    reads and what B of o writes is rotated, for each matrix by a rotation of its own. Every term of
    every head's circuits keeps its norm and its singular values (behind the input norm's weight)."""
    out = {}
    for module, (a, b) in factors.items():
        if model.heads(module)[0] == "o":
            out[module] = a, rotation(b.shape[0], random) @ b
        else:
            gamma = model.gamma(module)
            out[module] = (a * gamma) @ rotation(a.shape[1], random) / gamma, b
    return out


def drawn(model, factors, random):
    """Normal A and B, each head's part of B A scaled to the norm that was learned."""
    out = {}
    for module, (a, b) in factors.items():
        part, spans = model.heads(module)
        new_a, new_b = random.normal(size=a.shape), random.normal(size=b.shape)
        gamma = 1.0 if part == "o" else model.gamma(module)
        for first, last in spans:
            if part == "o":
                size = np.linalg.norm(b @ a[:, first:last]) / np.linalg.norm(new_b @ new_a[:, first:last])
                new_a[:, first:last] *= size
            else:
                size = (np.linalg.norm(b[first:last] @ (a * gamma))
                        / np.linalg.norm(new_b[first:last] @ (new_a * gamma)))
                new_b[first:last] *= size
        out[module] = new_a, new_b
    return out


def projector(columns):
    """Onto the span of columns [d, k]."""
    u, s, _ = np.linalg.svd(columns, full_matrices=False)
    basis = u[:, s > max(columns.shape) * np.finfo(float).eps * s[0]]
    return basis @ basis.T


def without_old(model, factors):
    """Splits every head's change at the spans of its base: {module: (old, new)}, changes of weights.

    With N_q = (I - P) dW_Q, P onto the base's W_Q (behind the input norm's weight), and so for k, v
    and o, N_q N_k^T is new_new of docs/lora.md: (I - P_L) dM (I - P_R). So with `old` added to the
    base and `new` as the adapter, the terms qk and vo are new_new, and gates can scale it alone."""
    out = {}
    for module, (a, b) in factors.items():
        part, spans = model.heads(module)
        change, new = b @ a, np.empty((b.shape[0], a.shape[1]))
        weight = model.weight(module)
        for first, last in spans:
            if part == "o":
                p = projector(weight[:, first:last])
                new[:, first:last] = change[:, first:last] - p @ change[:, first:last]
            else:
                gamma = model.gamma(module)
                p = projector((weight[first:last] * gamma).T)
                folded = change[first:last] * gamma
                new[first:last] = (folded - folded @ p) / gamma
        out[module] = change - new, new
    return out


def split_at_new(model, factors, folder):
    """The model with the old part added, and an adapter of the new part, in two folders."""
    parts = without_old(model, factors)
    weights = dict(model.weights)
    for module, (old, _) in parts.items():
        weights[module + ".weight"] = weights[module + ".weight"] + old
    base = write_model(folder / "base", model.folder, weights)
    rank = max(np.linalg.matrix_rank(new) for _, new in parts.values())
    new = {module: truncated(new, rank) for module, (_, new) in parts.items()}
    return base, write_adapter(folder / "adapter", new, base)


def relabelled(model):
    """The model with the first half of its symbols called what the second is, and the reverse: the
    task's rows of the first half are then rows of the second. Token 0 begins every row and stays."""
    symbols = model.config["vocab_size"] - 1
    order = np.concatenate([[0], np.arange(symbols // 2 + 1, symbols + 1), np.arange(1, symbols // 2 + 1)])
    weights = dict(model.weights)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = weights[name][order]
    return weights
