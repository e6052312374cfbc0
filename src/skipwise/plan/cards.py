"""Built-in model cards: sizes and rotary settings of well-known models, enough to plan for them without a download."""

from typing import Any, NamedTuple


class Card(NamedTuple):
    """A published model.

    Attributes:
        hub_name: where its weights are.
        config: arguments of `AutoConfig.for_model`, as in the model's own `config.json`.
        text_part: for a multimodal model, the sub-config of the text model; `config` is that part alone.
    """

    hub_name: str
    config: dict[str, Any]
    text_part: str | None = None


# Names of the columns of `MODEL_CARDS`.
_COLUMNS = (
    *("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "vocab_size", "max_position_embeddings", "rope_theta"),
)


def _config(*row: Any, **others: Any) -> dict[str, Any]:
    return {name: value for name, value in zip(_COLUMNS, row, strict=True) if value is not None} | others


_GEMMA_3 = {
    "head_dim": 128,
    "query_pre_attn_scalar": 168,
    "sliding_window": 1024,
    # Not in its own config: the window from which its factor makes this one.
    "original_max_position_embeddings": 16384,
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    },
}
# Without the module for multi-token prediction, which plain decoding does not use.
_DEEPSEEK_V3 = {
    "moe_intermediate_size": 2048,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 3,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 40.0,
        "original_max_position_embeddings": 4096,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    },
}
_GPTJ = {"model_type": "gptj", "n_embd": 4096, "n_layer": 28, "n_head": 16, "rotary_dim": 64, "vocab_size": 50400}
_BAICHUAN = {"converted_from": "baichuan"}  # It is loaded as a Llama model.
_MISTRAL = {"head_dim": 128, "sliding_window": None}  # v0.1 has a sliding window, v0.3 has none.
_QWEN2 = {"use_sliding_window": False, "tie_word_embeddings": False}

# By the columns above; the RoPE base is None if it is in `rope_parameters`.
MODEL_CARDS = {
    "llama-7b": Card("huggyllama/llama-7b", _config("llama", 4096, 11008, 32, 32, 32, 32000, 2048, 1e4)),
    "llama-2-7b": Card("meta-llama/Llama-2-7b-hf", _config("llama", 4096, 11008, 32, 32, 32, 32000, 4096, 1e4)),
    "llama-3-8b": Card("meta-llama/Meta-Llama-3-8B", _config("llama", 4096, 14336, 32, 32, 8, 128256, 8192, 5e5)),
    "llama-3-70b": Card("meta-llama/Meta-Llama-3-70B", _config("llama", 8192, 28672, 80, 64, 8, 128256, 8192, 5e5)),
    "mistral-7b": Card(
        "mistralai/Mistral-7B-v0.3", _config("mistral", 4096, 14336, 32, 32, 8, 32768, 32768, 1e6, **_MISTRAL)
    ),
    "qwen2.5-7b": Card("Qwen/Qwen2.5-7B", _config("qwen2", 3584, 18944, 28, 28, 4, 152064, 32768, 1e6, **_QWEN2)),
    "gemma-3-27b": Card(
        "google/gemma-3-27b-pt",
        _config("gemma3_text", 5376, 21504, 62, 32, 16, 262208, 131072, None, **_GEMMA_3),
        text_part="text_config",
    ),
    "deepseek-v3": Card(
        "deepseek-ai/DeepSeek-V3-Base",
        _config("deepseek_v3", 7168, 18432, 61, 128, 128, 129280, 163840, None, **_DEEPSEEK_V3),
    ),
    "gpt-j-6b": Card("EleutherAI/gpt-j-6b", {**_GPTJ, "n_positions": 2048}),
    "baichuan2-7b": Card(
        "baichuan-inc/Baichuan2-7B-Base", _config("llama", 4096, 11008, 32, 32, 32, 125696, 4096, 1e4, **_BAICHUAN)
    ),
    "smollm2-135m": Card(
        "HuggingFaceTB/SmolLM2-135M",
        _config("llama", 576, 1536, 30, 9, 3, 49152, 8192, 1e5, tie_word_embeddings=True),
    ),
}
"""Cards by the name that `skipwise plan` takes."""
