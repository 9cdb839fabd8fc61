"""Our own architectures, two ways that share no code with src/nn.

`views_answer` recomputes a whole model in plain float64 from the views that `subspace export` gives
of each layer and from the checkpoint's other tensors. `transformers_answer` takes a DeepSeek-V3 or
Llama of transformers, puts DeepSeek-V4's grouped output (its own module) in the place of o_proj, and
lets encoders see both sides.
"""

import json

import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4GroupedLinear

from oracle.attention import attention_output
from oracle.models import Double
from oracle.networks import answer
from oracle.program import export, run

TEXT = dict(
    vocab_size=71,
    hidden_size=36,
    intermediate_size=20,
    num_hidden_layers=2,
    num_attention_heads=6,
    max_position_embeddings=32,
)
MLA = dict(
    TEXT, q_lora_rank=17, kv_lora_rank=14, qk_nope_head_dim=10, qk_rope_head_dim=8, v_head_dim=7
)
IMAGE = dict(
    hidden_size=36, intermediate_size=20, num_hidden_layers=2, num_attention_heads=6,
    image_size=12, patch_size=4, num_channels=2, num_labels=5,
)
MLA_IMAGE = dict(
    IMAGE, q_lora_rank=17, kv_lora_rank=14, qk_nope_head_dim=10, qk_rope_head_dim=0, v_head_dim=7
)
MOE = dict(
    moe_intermediate_size=12, n_routed_experts=5, n_shared_experts=1, num_experts_per_tok=2,
    first_k_dense_replace=1,
)
NEURONS = dict(num_experts=49, num_expert_heads=2, num_experts_per_head=4, query_dim=10,
               first_k_dense_replace=1)


def own(kind, base, **more):
    return dict(base, model_type="subspace_" + kind, **more)


OWN = {
    "encoder-mha": own("encoder", TEXT),
    "encoder-mha-biases": own("encoder", TEXT, attention_bias=True, mlp_bias=True),
    "encoder-mha-o": own("encoder", TEXT, o_lora_rank=11),
    "encoder-mha-partly-rotated": own("encoder", TEXT, head_dim=10, qk_rope_head_dim=4),
    "encoder-mha-interleaved": own("encoder", TEXT, rope_interleave=True),
    "encoder-positions": own("encoder", TEXT, position_embedding_type="absolute"),
    "encoder-gelu-untied": own("encoder", TEXT, hidden_act="gelu", tie_word_embeddings=False),
    "encoder-mla": own("encoder", MLA),
    "encoder-mla-o": own("encoder", MLA, o_lora_rank=11),
    "encoder-mla-o-groups": own("encoder", MLA, o_lora_rank=5, o_groups=3),
    "encoder-mla-o-own-rotary-keys": own("encoder", MLA, o_lora_rank=11, qk_rope_keys="per_head"),
    "encoder-mla-all-rotated-own": own(
        "encoder", dict(MLA, qk_nope_head_dim=0), qk_rope_keys="per_head"
    ),
    "decoder-gqa-o": own("decoder", TEXT, num_key_value_heads=2, o_lora_rank=11, o_groups=2),
    "decoder-mla-o-rms": own("decoder", MLA, o_lora_rank=11, o_latent_norm="rms"),
    "decoder-mla-o-rms-groups": own(
        "decoder", MLA, o_lora_rank=5, o_groups=2, o_latent_norm="rms"
    ),
    "decoder-mla-o-heads": own("decoder", MLA, o_lora_rank=11, o_latent_norm="rms_per_head"),
    "decoder-mla-o-heads-groups": own(
        "decoder", MLA, o_lora_rank=5, o_groups=2, o_latent_norm="rms_per_head"
    ),
    "decoder-mla-o-no-q-latent": own(
        "decoder", dict(MLA, q_lora_rank=None), o_lora_rank=11, attention_bias=True
    ),
    "decoder-mla-all-rotated": own("decoder", dict(MLA, qk_nope_head_dim=0), o_lora_rank=11),
    "decoder-mla-o-moe": own("decoder", MLA, o_lora_rank=11, **MOE),
    "decoder-mla-o-moe-softmax": own(
        "decoder", MLA, o_lora_rank=11, scoring_func="softmax", **MOE
    ),
    "decoder-mla-ethos": own("decoder", MLA, feed_forward="ethos", expert_latent_dim=6,
                             expert_hidden_dim=32, **NEURONS),
    "encoder-peer": own("encoder", dict(TEXT, hidden_size=32, head_dim=6), feed_forward="peer",
                        **NEURONS),
    "decoder-mla-molae": own("decoder", MLA, feed_forward="molae", expert_latent_dim=32,
                             query_norm="none", **NEURONS),
    "vit-mha": own("vit", IMAGE),
    "vit-mla": own("vit", MLA_IMAGE),
    "vit-mla-o": own("vit", MLA_IMAGE, o_lora_rank=11),
    "vit-mla-o-rotated": own(
        "vit", dict(MLA_IMAGE, qk_rope_head_dim=8), o_lora_rank=11, position_embedding_type="rope"
    ),
}


def make(name, program, folder):
    """The model of that name with random weights throughout, made by `subspace init`."""
    config = folder / "given.json"
    config.write_text(json.dumps(dict(OWN[name], rms_norm_eps=3e-3)))
    model = folder / "model"
    result = run(program, "init", config, "--out", model, "--dtype", "float64")
    assert result.returncode == 0, result.stderr
    generator = torch.Generator().manual_seed(len(name))
    tensors = load_file(model / "model.safetensors")
    for key, tensor in sorted(tensors.items()):
        spread, mean = (0.3, 0.0) if tensor.dim() > 1 else (0.2, 0.5)
        if key.endswith("o_a_layernorm.weight"):
            mean = 0.5
        tensor.copy_(mean + spread * torch.randn(tensor.shape, dtype=torch.float64,
                                                 generator=generator))
        if key.endswith("running_var"):
            tensor.abs_()
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    return model


def inputs(name):
    generator = torch.Generator().manual_seed(7)
    if name.startswith("vit"):
        return {"pixel_values": torch.randn(3, 2, 12, 12, dtype=torch.float64, generator=generator)}
    return {"input_ids": torch.randint(0, 71, (3, 13), generator=generator)}


def rms(x, weight, eps):
    return x / torch.sqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def linear(tensors, name, x):
    return F.linear(x, tensors[name + ".weight"], tensors.get(name + ".bias"))


def gated(tensors, base, x):
    inner = F.silu(linear(tensors, base + "gate_proj", x)) * linear(tensors, base + "up_proj", x)
    return linear(tensors, base + "down_proj", inner)


def neuron_experts(config, tensors, base, x):
    """Tokens one at a time, all n^2 pairs of keys sorted, both vectors of an expert formed."""
    def matrix(name):
        return tensors[f"{base}{name}.weight"]

    heads, k = config["num_expert_heads"], config["num_experts_per_head"]
    q = linear(tensors, base + "query", x)
    if config.get("query_norm", "batch") == "batch":
        norm = {part: tensors[f"{base}query_norm.{part}"]
                for part in ("weight", "bias", "running_mean", "running_var")}
        q = (q - norm["running_mean"]) / torch.sqrt(norm["running_var"] + 1e-5)
        q = q * norm["weight"] + norm["bias"]
    kind = config["feed_forward"]
    if kind == "ethos":
        hidden = F.gelu(matrix("expert_latents") @ matrix("w1").T)
        down, up = hidden @ matrix("w_u"), hidden @ matrix("w_v").T / heads
    elif kind == "molae":
        down, up = matrix("expert_down") @ matrix("w_u"), matrix("expert_up") @ matrix("w_v").T
    else:
        down, up = matrix("expert_down"), matrix("expert_up")
    out = torch.zeros_like(x)
    for token in range(x.shape[0]):
        for query in q[token].unflatten(0, (heads, 2, -1)):
            sums = (matrix("keys.0") @ query[0])[:, None] + (matrix("keys.1") @ query[1])[None]
            best = sums.flatten().sort(descending=True)
            weights = best.values[:k].softmax(0)
            for weight, expert in zip(weights, best.indices[:k].tolist()):
                out[token] += F.gelu(down[expert] @ x[token]) * weight * up[expert]
    return out


def feed_forward(config, tensors, layer, x):
    base = f"model.layers.{layer}.mlp."
    if base + "query.weight" in tensors:
        return neuron_experts(config, tensors, base, x)
    if base + "gate.weight" not in tensors:
        if config.get("hidden_act") == "gelu":
            inner = F.gelu(linear(tensors, base + "up_proj", x))
            return linear(tensors, base + "down_proj", inner)
        return gated(tensors, base, x)
    logits = x @ tensors[base + "gate.weight"].T
    soft = config.get("scoring_func") == "softmax"
    scores = logits.softmax(-1) if soft else logits.sigmoid()
    ranked = scores + tensors[base + "gate.e_score_correction_bias"]
    out = gated(tensors, base + "shared_experts.", x)
    for token in range(x.shape[0]):  # one at a time: nothing to get wrong
        chosen = ranked[token].sort(descending=True).indices[: config["num_experts_per_tok"]]
        total = scores[token, chosen].sum()
        for expert in chosen.tolist():
            own_output = gated(tensors, f"{base}experts.{expert}.", x[token])
            out[token] += scores[token, expert] / total * own_output
    return out


def latent_norm(views, tensors, config, layer):
    """`written` of the views oracle, with the norm that stands between OA and OB."""
    kind = config.get("o_latent_norm", "none")
    if kind == "none":
        return None
    weight = tensors[f"model.layers.{layer}.self_attn.o_a_layernorm.weight"]
    eps = config["rms_norm_eps"]

    def through(heads):  # [H, T, d_v]
        latents = (heads @ views["o"]).unflatten(0, (views["ob"].shape[0], -1))  # [G, H/G, T, r]
        if kind == "rms":
            summed = rms(latents.sum(1), weight.unflatten(0, (latents.shape[0], 1, -1)), eps)
        else:
            normed = rms(latents, weight.unflatten(0, latents.shape[:2]).unsqueeze(2), eps)
            summed = normed.sum(1) / latents.shape[1] ** 0.5
        return (summed @ views["ob"]).sum(0)

    return through


def embed(config, tensors, given):
    if "pixel_values" in given:
        base = "model.embeddings."
        weight = tensors[base + "patch_embeddings.projection.weight"]
        bias = tensors[base + "patch_embeddings.projection.bias"]
        patches = F.conv2d(given["pixel_values"], weight, bias, stride=config["patch_size"])
        patches = patches.flatten(2).transpose(1, 2)
        first = tensors[base + "cls_token"].expand(patches.shape[0], -1, -1)
        x = torch.cat([first, patches], 1)
        return x + tensors.get(base + "position_embeddings", 0)
    x = F.embedding(given["input_ids"], tensors["model.embed_tokens.weight"])
    if "model.position_embeddings.weight" in tensors:
        x = x + tensors["model.position_embeddings.weight"][: x.shape[1]]
    return x


def views_answer(program, folder, given):
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    eps = config["rms_norm_eps"]
    x = embed(config, tensors, given)
    for layer in range(config["num_hidden_layers"]):
        views = export(program, folder, layer, folder / "views")
        through = latent_norm(views, tensors, config, layer)
        norms = [f"model.layers.{layer}.{n}.weight"
                 for n in ("input_layernorm", "post_attention_layernorm")]
        rows = []
        for row in x:
            row = row + attention_output(views, rms(row, tensors[norms[0]], eps), through)
            read = rms(row, tensors[norms[1]], eps)
            rows.append(row + feed_forward(config, tensors, layer, read))
        x = torch.stack(rows)
    x = rms(x, tensors["model.norm.weight"], eps)
    if "classifier.weight" in tensors:
        return linear(tensors, "classifier", x[:, 0])
    return x @ tensors.get("lm_head.weight", tensors["model.embed_tokens.weight"]).T


class GroupedOutput(torch.nn.Module):
    """DeepSeek-V4's output path in the place of o_proj."""

    def __init__(self, tensors, base, groups):
        super().__init__()
        down, up = tensors[base + "o_a_proj.weight"], tensors[base + "o_b_proj.weight"]
        self.groups = groups
        self.o_a_proj = DeepseekV4GroupedLinear(down.shape[1], down.shape[0], groups)
        self.o_b_proj = torch.nn.Linear(up.shape[1], up.shape[0], bias=False)
        self.o_a_proj.weight.data, self.o_b_proj.weight.data = down, up

    def forward(self, x):
        grouped = self.o_a_proj(x.reshape(*x.shape[:-1], self.groups, -1)).flatten(2)
        return self.o_b_proj(grouped)


def stack_experts(state, config):
    """transformers holds the experts of a layer as two tensors."""
    for layer in range(config["num_hidden_layers"]):
        base = f"model.layers.{layer}.mlp.experts."
        parts = {kind: [state.pop(f"{base}{e}.{kind}_proj.weight")
                        for e in range(config.get("n_routed_experts", 0))
                        if f"{base}{e}.{kind}_proj.weight" in state]
                 for kind in ("gate", "up", "down")}
        if parts["gate"]:
            pairs = zip(parts["gate"], parts["up"])
            state[base + "gate_up_proj"] = torch.stack([torch.cat(pair) for pair in pairs])
            state[base + "down_proj"] = torch.stack(parts["down"])


def transformers_answer(folder, given):
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    encoder = config["model_type"] == "subspace_encoder"
    latent = "kv_lora_rank" in config
    arguments = {key: value for key, value in config.items()
                 if key not in ("model_type", "architectures", "hidden_act", "dtype")
                 and not key.startswith("o_")}
    if latent:
        arguments = dict(
            dict(first_k_dense_replace=config["num_hidden_layers"], num_key_value_heads=6,
                 n_group=1, topk_group=1, routed_scaling_factor=1.0), **arguments)
    cls = transformers.DeepseekV3Config if latent else transformers.LlamaConfig
    hf = cls(**dict(arguments, tie_word_embeddings=config.get("tie_word_embeddings", True)))
    with Double():
        model = (transformers.DeepseekV3ForCausalLM if latent else transformers.LlamaForCausalLM)
        model = model._from_config(hf, attn_implementation="eager", dtype=torch.float64)
        model = model.double().eval()
    for layer, block in enumerate(model.model.layers):
        if "o_lora_rank" in config:
            block.self_attn.o_proj = GroupedOutput(
                tensors, f"model.layers.{layer}.self_attn.", config.get("o_groups", 1))
        if latent:  # its class's default there, the configuration's here
            block.self_attn.q_a_layernorm.variance_epsilon = config["rms_norm_eps"]
            block.self_attn.kv_a_layernorm.variance_epsilon = config["rms_norm_eps"]
    state = {key: value for key, value in tensors.items() if ".o_a_" not in key
             and ".o_b_" not in key}
    stack_experts(state, config)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(".o_proj." in key or key == "lm_head.weight" for key in missing), missing
    more = {}
    if encoder:
        rows, length = given["input_ids"].shape
        more["attention_mask"] = torch.zeros(rows, 1, length, length, dtype=torch.float64)
    return answer(model, given, **more)
