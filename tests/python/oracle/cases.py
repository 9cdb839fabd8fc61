"""Tiny configurations of every family that the program reads: all widths differ from one another
wherever the architecture lets them, so that a transposition cannot hide."""

# Epsilons that no class has as its default, so that the wrong one shows.
DECODER = dict(
    rms_norm_eps=3e-3,
    layer_norm_eps=2e-3,
    hidden_size=42,
    intermediate_size=20,
    num_hidden_layers=2,
    vocab_size=64,
    max_position_embeddings=64,
)
MLA = dict(
    rms_norm_eps=3e-3,
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
# One factor for each of the 4 frequencies of MLA's rotary part.
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "short_factor": [1.0, 1.3, 1.7, 2.6],
    "long_factor": [1.5, 2.0, 3.0, 9.0],
}
LLAMA4_YARN = dict(YARN, llama_4_scaling_beta=0.1, mscale_all_dim=1.0)
# The sparse indexer lets each query see more keys than the proof has tokens.
INDEXER = dict(index_n_heads=2, index_head_dim=12, index_topk=16)


def grouped(heads, groups, head_dim=10, **more):
    return dict(
        DECODER, num_attention_heads=heads, num_key_value_heads=groups, head_dim=head_dim, **more
    )


VISION = dict(hidden_size=16, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
GEMMA3 = grouped(
    6, 2, sliding_window=4, layer_types=["sliding_attention", "full_attention"],
    model_type="gemma3_text",
)
V4 = dict(
    rms_norm_eps=3e-3,
    hidden_size=42,
    moe_intermediate_size=12,
    num_hidden_layers=3,
    vocab_size=64,
    max_position_embeddings=128,
    num_attention_heads=6,
    head_dim=22,
    qk_rope_head_dim=8,
    q_lora_rank=17,
    o_groups=2,
    o_lora_rank=5,
    sliding_window=4,
    # No window of tokens is whole in the proof, so that a compressor adds no key.
    layer_types=[
        "heavily_compressed_attention", "sliding_attention", "compressed_sparse_attention",
    ],
    compress_rates={"heavily_compressed_attention": 32, "compressed_sparse_attention": 16},
    mlp_layer_types=["moe"] * 3,
    n_routed_experts=4,
    num_experts_per_tok=2,
    rope_theta=500.0,
    compress_rope_theta=3000.0,
    rope_scaling={"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32,
                  "beta_fast": 32, "beta_slow": 1},
    **INDEXER,
)
MAKERS = {"original_names": True}
LONGCAT = dict(
    MLA, num_layers=2, head_dim=8, ffn_hidden_size=20, expert_ffn_hidden_size=12, moe_topk=2,
    zero_expert_num=1,
)


# name -> (configuration class, its arguments, layer[, {"model_type": to write instead,
#          "original_names": the maker's instead of transformers'}])
CASES = {
    "llama-mha": ("LlamaConfig", grouped(3, 3), 1),
    "llama-gqa": ("LlamaConfig", grouped(6, 2), 0),
    "llama-mqa": ("LlamaConfig", grouped(3, 1), 0),
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
    "qwen2-window": (
        "Qwen2Config",
        dict(DECODER, hidden_size=36, num_attention_heads=6, num_key_value_heads=2,
             use_sliding_window=True, sliding_window=4, max_window_layers=1),
        1,
    ),
    "mistral-full": ("MistralConfig", grouped(6, 2, sliding_window=None), 0),
    "qwen3-biases": ("Qwen3Config", grouped(6, 2, attention_bias=True), 0),
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
    "gemma3-global-linear-rope": (
        "Gemma3TextConfig",
        grouped(6, 2, sliding_window=4, layer_types=["sliding_attention", "full_attention"],
                rope_parameters={
                    "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
                    "full_attention": dict(LINEAR, factor=8.0),
                }),
        1,
    ),
    "gpt2-scaled-by-layer": (
        "GPT2Config",
        dict(n_embd=42, n_head=3, n_layer=2, vocab_size=64, n_positions=32,
             layer_norm_epsilon=2e-3, scale_attn_by_inverse_layer_idx=True),
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
        {"original_names": True},
    ),
    "deepseek_v2": ("DeepseekV2Config", MLA, 1),
    "deepseek_v2-no-q-latent": ("DeepseekV2Config", dict(MLA, q_lora_rank=None), 0),
    "deepseek_v2-yarn": ("DeepseekV2Config", dict(MLA, rope_parameters=YARN), 0),
    "deepseek_v3": ("DeepseekV3Config", MLA, 1),
    "deepseek_v3-yarn": ("DeepseekV3Config", dict(MLA, rope_parameters=YARN), 1),
    "deepseek_v3-biases": ("DeepseekV3Config", dict(MLA, attention_bias=True), 1),
    "deepseek_v3-half-rope": ("DeepseekV3Config", dict(MLA, rope_interleave=False), 1),
    "deepseek_v3-no-q-latent": ("DeepseekV3Config", dict(MLA, q_lora_rank=None), 0),
    "kimi_k2": ("DeepseekV3Config", MLA, 0, {"model_type": "kimi_k2"}),
    "deepseek_v32": ("DeepseekV32Config", dict(MLA, **INDEXER), 1),
    "deepseek_v32-yarn": ("DeepseekV32Config", dict(MLA, rope_parameters=YARN, **INDEXER), 0),
    "deepseek_v32-biases": ("DeepseekV32Config", dict(MLA, attention_bias=True, **INDEXER), 0),
    "glm_moe_dsa": ("GlmMoeDsaConfig", dict(MLA, **INDEXER), 0),
    "glm_moe_dsa-shared-indexer": (
        "GlmMoeDsaConfig", dict(MLA, indexer_types=["full", "shared"], **INDEXER), 1,
    ),
    "glm4_moe_lite": ("Glm4MoeLiteConfig", dict(MLA, mlp_layer_types=["dense", "dense"]), 1),
    "minicpm3": ("MiniCPM3Config", MLA, 1),
    "minicpm3-longrope": ("MiniCPM3Config", dict(MLA, rope_parameters=LONGROPE), 0),
    "minicpm3-width-of-values": (
        "MiniCPM3Config",
        {name: value for name, value in MLA.items() if name != "v_head_dim"},
        1,
    ),
    "mistral4": ("Mistral4Config", dict(MLA, rope_parameters=LLAMA4_YARN), 1),
    "mistral4-half-rope": (
        "Mistral4Config", dict(MLA, rope_parameters=LLAMA4_YARN, rope_interleave=False), 0,
    ),
    "longcat_flash-first": ("LongcatFlashConfig", LONGCAT, 2),
    "longcat_flash-second": ("LongcatFlashConfig", LONGCAT, 1),
    "deepseek_v4": ("DeepseekV4Config", V4, 1),
    "deepseek_v4-makers-names": ("DeepseekV4Config", V4, 1, MAKERS),
    "deepseek_v4-heavily-compressed": ("DeepseekV4Config", V4, 0),
    "deepseek_v4-sparse": ("DeepseekV4Config", V4, 2, MAKERS),
    "ministral3": ("Ministral3Config", grouped(6, 2, rope_parameters=LLAMA4_YARN), 1),
    "gemma-mqa": ("GemmaConfig", grouped(3, 1), 0),
    # Language models inside a wrapper; its vision tower has one layer, whose number is 0.
    "gemma3": (
        "Gemma3Config",
        dict(text_config=GEMMA3, mm_tokens_per_image=4,
             vision_config=dict(VISION, image_size=28, patch_size=14)),
        1,
    ),
    "gemma3-makers-names": (
        "Gemma3Config",
        dict(text_config=GEMMA3, mm_tokens_per_image=4,
             vision_config=dict(VISION, image_size=28, patch_size=14)),
        1,
        MAKERS,
    ),
    "mistral3": (
        "Mistral3Config",
        dict(text_config=grouped(6, 2, model_type="mistral"),
             vision_config=dict(VISION, model_type="pixtral", image_size=28, patch_size=14)),
        1,
    ),
    "mistral3-of-mistral4": (
        "Mistral3Config",
        dict(text_config=dict(MLA, rope_parameters=LLAMA4_YARN, model_type="mistral4"),
             vision_config=dict(VISION, model_type="pixtral", image_size=28, patch_size=14)),
        1,
        MAKERS,
    ),
    "kimi_k25": (
        "Kimi_K25Config",
        dict(text_config=dict(MLA, model_type="deepseek_v3", rope_parameters=YARN),
             vision_config=dict(VISION, pos_emb_height=4, pos_emb_width=4),
             projection_hidden_size=16),
        1,
    ),
}
