"""Small random models of every family that the tests know."""

from typing import Any

from skipwise.window import Window

WINDOW = Window(train=32, original=64, target=256)

SMALL = {
    "vocab_size": 257,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": WINDOW.original,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}
LATENT = {
    **EXPERTS,
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}
GEMMA4 = {
    "head_dim": 16,
    "global_head_dim": 32,
    "sliding_window": 32,
    "layer_types": ["sliding_attention", "full_attention"],
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 257,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}, "tie_word_embeddings": True},
    "mistral": {"sliding_window": None},
    "ministral3": {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "original_max_position_embeddings": WINDOW.original,
            "llama_4_scaling_beta": 0.1,
        }
    },
    "qwen2": {},
    "qwen3": {"head_dim": 32},
    "gemma2": {"head_dim": 16, "sliding_window": 32},
    "gemma3_text": {"head_dim": 16, "sliding_window": 32, "layer_types": ["sliding_attention", "full_attention"]},
    "gemma3": {
        "text_config": {
            **SMALL,
            "head_dim": 16,
            "sliding_window": 32,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
        },
    },
    # A quarter of the global layers' wider heads turns; the sliding layers have heads and a base of their own.
    "gemma4_text": GEMMA4,
    # The whole model, without a tower for sound or sight.
    "gemma4": {
        "text_config": {
            **SMALL,
            **GEMMA4,
        },
        "vision_config": None,
        "audio_config": None,
    },
    "lfm3": {"head_dim": 16, "layer_types": ["conv", "full_attention"]},
    "phi3": {},
    "gpt_neox": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25}},
    "stablelm": {},
    "olmo2": {},
    "cohere": {},
    "granite": {"attention_multiplier": 0.25, "embedding_multiplier": 2.0, "logits_scaling": 2.0},
    "mixtral": EXPERTS,
    "qwen3_moe": {**EXPERTS, "head_dim": 16},
    "deepseek_v2": {**LATENT, "topk_method": "greedy"},
    "deepseek_v3": LATENT,
    "gptj": {"n_inner": 48, "rotary_dim": 8},
}
# What transformers' own code of a family can be scaled by, where it is not everything.
PROPORTIONAL = ("gemma4_text", "gemma4", "lfm3")
KINDS_OF_FAMILY: dict[str, tuple[str, ...]] = {"phi3": ("longrope",), **dict.fromkeys(PROPORTIONAL, ("linear", "ntk"))}


def kinds_of(family: str) -> tuple[str, ...]:
    """Interpolations to try on a family, its most usual one first."""
    return KINDS_OF_FAMILY.get(family, ("yarn", "linear"))
