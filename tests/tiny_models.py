"""Tiny random models and tokenizers for all tests.

`tiny_config` takes a model type and the settings that differ from `SHAPE`; `family_config` one of `FAMILIES`.
`tiny_model` builds either, `save_tiny` writes it with a tokenizer of one token per byte.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedTokenizerFast

from skipwise.loss import training_inputs
from skipwise.window import Window

WINDOW = Window(train=32, original=64, target=256)

SHAPE: dict[str, Any] = {
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
NO_SPECIAL: dict[str, Any] = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
# Attention far from uniform, as in a trained model.
SHARP: dict[str, Any] = {"initializer_range": 0.3, **NO_SPECIAL}
NARROW: dict[str, Any] = {"hidden_size": 32, "initializer_range": 0.3}
# A model to plan for: planned bytes of its state and activations are of the same order.
PLANNED: dict[str, Any] = {
    "intermediate_size": 160,
    "num_hidden_layers": 4,
    "vocab_size": 500,
    "max_position_embeddings": 256,
}
# Sizes that fill neither a block of 4-bit weights nor one of scales, and one with more scales than fit in a block.
ODD: dict[str, Any] = {
    "hidden_size": 36,
    "intermediate_size": 1001,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 18,
    "attention_bias": True,
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
LOCAL_AND_GLOBAL = {"sliding_window": 32, "layer_types": ["sliding_attention", "full_attention"]}
GEMMA3 = {"head_dim": 16, **LOCAL_AND_GLOBAL}
# A quarter of the global layers' wider heads turns; the sliding layers have heads and a base of their own.
GEMMA4 = {
    **GEMMA3,
    "global_head_dim": 32,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 257,
}
SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
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
    "gemma3_text": GEMMA3,
    "gemma3": {"text_config": {**SHAPE, **GEMMA3}, "vision_config": SIGLIP},
    "gemma4_text": GEMMA4,
    # The whole model, without vision and audio towers.
    "gemma4": {"text_config": {**SHAPE, **GEMMA4}, "vision_config": None, "audio_config": None},
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
# lfm3 came with transformers 5.23.
FAMILIES = {family: settings for family, settings in FAMILIES.items() if family in CONFIG_MAPPING}
# Families whose class in transformers supports only some interpolations.
PROPORTIONAL = ("gemma4_text", "gemma4", "lfm3")
KINDS_OF_FAMILY: dict[str, tuple[str, ...]] = {"phi3": ("longrope",), **dict.fromkeys(PROPORTIONAL, ("linear", "ntk"))}


def kinds_of(family: str) -> tuple[str, ...]:
    """Interpolations to test on a family, the most usual one first."""
    return KINDS_OF_FAMILY.get(family, ("yarn", "linear"))


def tiny_config(model_type: str, **settings: Any) -> PreTrainedConfig:
    """A config of `SHAPE` with other `settings`. One with a `text_config` has the shape there, as `FAMILIES` shows."""
    return AutoConfig.for_model(model_type, **({} if "text_config" in settings else SHAPE) | settings)


def family_config(family: str, **changes: Any) -> PreTrainedConfig:
    """The config of one of `FAMILIES`, with some top-level settings changed."""
    return tiny_config(family, **FAMILIES[family] | changes)


def tiny_model(config: PreTrainedConfig, *, seed: int = 0, noise: float = 0.0, **how: Any) -> Any:
    """A random model in evaluation mode. Neither the config nor torch's random state changes.

    Args:
        config: of any decoder.
        seed: of the random weights.
        noise: standard deviation of numbers added to every parameter, norms and biases included. With 0.1 attention is
            far from uniform, so that a wrong rotary table shows in the logits.
        how: arguments of `from_config`, such as `dtype` and `attn_implementation`.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = AutoModelForCausalLM.from_config(copy.deepcopy(config), **how)
        for parameter in model.parameters() if noise else ():
            parameter.data += noise * torch.randn_like(parameter)
    return model.eval()


@torch.no_grad()
def far_logits(model: Any, farthest: int = WINDOW.target) -> torch.Tensor:
    """Logits of two chunks of 16 tokens, at the start and at the end of `farthest` tokens."""
    positions = torch.cat([torch.arange(16), torch.arange(farthest - 16, farthest)])[None]
    return model(**training_inputs(torch.arange(32)[None] % 90, positions)).logits


def save_tiny(folder: Path, config: PreTrainedConfig, **how: Any) -> Path:
    """Writes `tiny_model(config, **how)` and a tokenizer of 256 tokens, one per byte."""
    tiny_model(config, **how).save_pretrained(folder)
    byte_tokenizer(special=False).save_pretrained(folder)
    return folder


BEGIN, END = 256, 257
"""Token ids of the special tokens of `byte_tokenizer`."""


def byte_tokenizer(
    *, special: bool = True, begin: bool = False, end: bool = False, named: bool = True
) -> PreTrainedTokenizerFast:
    """One token per byte, ids 0 to 255 in the order of the byte-level alphabet.

    Args:
        special: whether it has a begin and an end token.
        begin, end: whether it adds these to a text.
        named: whether they are its `bos_token` and `eos_token`.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    engine = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    if not special:
        return PreTrainedTokenizerFast(tokenizer_object=engine)
    engine.add_special_tokens(["<begin>", "<end>"])
    template = ["<begin>"] * begin + ["$A"] + ["<end>"] * end
    engine.post_processor = processors.TemplateProcessing(
        single=" ".join(template), special_tokens=[("<begin>", BEGIN), ("<end>", END)]
    )
    names = {"bos_token": "<begin>", "eos_token": "<end>"} if named else {}
    return PreTrainedTokenizerFast(tokenizer_object=engine, **names)
