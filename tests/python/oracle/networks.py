"""Tiny random models of transformers, whole, with what they answer: the oracle of src/nn."""

import torch
import transformers
from safetensors.torch import load_file, save_file

from oracle.models import Double
from oracle.program import run

TOKENS = 13

TEXT = dict(
    vocab_size=71,  # no multiple of 64: padding must not show
    hidden_size=36,
    intermediate_size=20,
    num_hidden_layers=3,
    num_attention_heads=6,
    max_position_embeddings=32,
)
LATENT = dict(
    TEXT,
    rms_norm_eps=3e-3,
    num_key_value_heads=6,
    q_lora_rank=17,
    kv_lora_rank=14,
    qk_nope_head_dim=10,
    qk_rope_head_dim=8,
    v_head_dim=7,
    moe_intermediate_size=12,
    n_routed_experts=4,
    n_shared_experts=1,
    num_experts_per_tok=2,
    n_group=1,
    topk_group=1,
    first_k_dense_replace=3,
)
MOE = dict(LATENT, first_k_dense_replace=1)
YARN = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 0.8,
    "original_max_position_embeddings": 8, "beta_fast": 32, "beta_slow": 1,
}
IMAGE = dict(
    hidden_size=36, intermediate_size=20, num_hidden_layers=3, num_attention_heads=6,
    image_size=12, patch_size=4, num_channels=2, num_labels=5, layer_norm_eps=2e-3,
)

# name -> (class of the model, class of its configuration, its arguments)
NETWORKS = {
    "llama-mha": ("LlamaForCausalLM", "LlamaConfig", dict(TEXT, rms_norm_eps=3e-3)),
    "llama-gqa": ("LlamaForCausalLM", "LlamaConfig", dict(TEXT, num_key_value_heads=2)),
    "llama-mqa-tied": (
        "LlamaForCausalLM", "LlamaConfig",
        dict(TEXT, num_key_value_heads=1, head_dim=8, tie_word_embeddings=True),
    ),
    "llama-biases": (
        "LlamaForCausalLM", "LlamaConfig", dict(TEXT, attention_bias=True, mlp_bias=True),
    ),
    "deepseek-dense": ("DeepseekV3ForCausalLM", "DeepseekV3Config", LATENT),
    "deepseek-no-q-latent": (
        "DeepseekV3ForCausalLM", "DeepseekV3Config", dict(LATENT, q_lora_rank=None),
    ),
    "deepseek-biases": (
        "DeepseekV3ForCausalLM", "DeepseekV3Config", dict(LATENT, attention_bias=True),
    ),
    "deepseek-biases-no-q-latent": (
        "DeepseekV3ForCausalLM", "DeepseekV3Config",
        dict(LATENT, attention_bias=True, q_lora_rank=None),
    ),
    "deepseek-half-rope": (
        "DeepseekV3ForCausalLM", "DeepseekV3Config", dict(LATENT, rope_interleave=False),
    ),
    "deepseek-yarn": (
        "DeepseekV3ForCausalLM", "DeepseekV3Config", dict(LATENT, rope_parameters=YARN),
    ),
    "deepseek-tied-no-nope": (
        "DeepseekV3ForCausalLM", "DeepseekV3Config",
        dict(LATENT, qk_nope_head_dim=0, tie_word_embeddings=True),
    ),
    "deepseek-moe": ("DeepseekV3ForCausalLM", "DeepseekV3Config", MOE),
    "deepseek-moe-groups": (
        "DeepseekV3ForCausalLM", "DeepseekV3Config",
        dict(MOE, n_routed_experts=12, n_group=4, topk_group=2, num_experts_per_tok=3,
             n_shared_experts=2, norm_topk_prob=False, routed_scaling_factor=1.5),
    ),
    "bert": ("BertForMaskedLM", "BertConfig", dict(TEXT, layer_norm_eps=2e-3)),
    "vit": ("ViTForImageClassification", "ViTConfig", IMAGE),
    "vit-no-bias": ("ViTForImageClassification", "ViTConfig", dict(IMAGE, qkv_bias=False)),
}


def network(name):
    """A random float64 model of that name; norms, biases and buffers are random as well."""
    model_class, config_class, arguments = NETWORKS[name]
    config = getattr(transformers, config_class)(**arguments)
    torch.manual_seed(len(name))
    with Double():
        model = getattr(transformers, model_class)._from_config(
            config, attn_implementation="eager", dtype=torch.float64
        )
        model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.3 if parameter.dim() > 1 else 0.2
            parameter.normal_(0.0 if parameter.dim() > 1 else 0.5, spread)
        for key, value in model.named_buffers():
            if key.endswith("e_score_correction_bias"):
                value.normal_(0.0, 0.3)
    return model


def inputs(name):
    generator = torch.Generator().manual_seed(7)
    if name.startswith("vit"):
        shape = (3, IMAGE["num_channels"], IMAGE["image_size"], IMAGE["image_size"])
        return {"pixel_values": torch.randn(shape, dtype=torch.float64, generator=generator)}
    return {"input_ids": torch.randint(0, TEXT["vocab_size"], (3, TOKENS), generator=generator)}


def answer(model, given, **more):
    """transformers' logits in float64 throughout."""
    # Experts one by one: the grouped product, which is its default, has no float64.
    model.config._experts_implementation = "eager"
    with torch.no_grad(), Double():
        return model(**given, **more).logits


def forward(program, folder, given, scratch, *more):
    """What `subspace forward` writes for these inputs, a dictionary of tensors."""
    save_file({key: value.contiguous() for key, value in given.items()}, scratch / "in")
    result = run(program, "forward", folder, "--input", scratch / "in", "--out", scratch / "out",
                 "--dtype", "float64", *more)
    assert result.returncode == 0, result.stderr
    return load_file(scratch / "out")
