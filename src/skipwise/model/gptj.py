"""Convert GPT-J, whose rotary table is hard-coded, to an equivalent Phi model.

GPT-J's class computes its sines and cosines only from base 10000 and the window. A stretched table would be lost when
another library loads the checkpoint. Phi has the same architecture (one layer norm feeds attention and MLP in parallel,
partial rotary, biased head) and keeps its rotary settings in the config. The mapping is exact:

- GPT-J rotates neighbouring pairs `(2i, 2i+1)`. Phi rotates the pairs `(i, i + r/2)` of the `r` rotary dimensions. The
  rows of the query and key projections are therefore reordered in each head. Attention scores do not change, because
  both projections are reordered alike.
- GPT-J's attention has no biases. Phi's are set to zero.

An extended GPT-J is saved as a Phi checkpoint, which every reader of Phi loads unchanged.
"""

from collections.abc import Iterator
from typing import Any, TypeGuard

import torch
from torch import nn
from transformers import GPTJConfig, PhiConfig, PreTrainedConfig

_BASE = 10000.0

# Names of the modules of a GPT-J layer in a Phi layer. Query and key projections are also reordered.
_LAYER_NAMES = {
    "ln_1": "input_layernorm",
    "attn.q_proj": "self_attn.q_proj",
    "attn.k_proj": "self_attn.k_proj",
    "attn.v_proj": "self_attn.v_proj",
    "attn.out_proj": "self_attn.dense",
    "mlp.fc_in": "mlp.fc1",
    "mlp.fc_out": "mlp.fc2",
}
_OUTER_NAMES = {
    "transformer.wte": "model.embed_tokens",
    "transformer.ln_f": "model.final_layernorm",
    "lm_head": "lm_head",
}


def is_gptj(config: PreTrainedConfig) -> TypeGuard[GPTJConfig]:
    """Whether this is a GPT-J config."""
    return isinstance(config, GPTJConfig)


def as_loaded(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config of the model that `load_model` makes: the equivalent Phi's for a GPT-J, else the same."""
    return phi_config(config) if is_gptj(config) else config


def phi_config(config: GPTJConfig) -> PhiConfig:
    """The config of the equivalent Phi model."""
    extra: dict[str, Any] = {"converted_from": config.model_type}
    return PhiConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.n_embd,
        intermediate_size=config.n_inner or 4 * config.n_embd,
        num_hidden_layers=config.n_layer,
        num_attention_heads=config.n_head,
        resid_pdrop=config.resid_pdrop,
        embd_pdrop=config.embd_pdrop,
        attention_dropout=config.attn_pdrop,
        hidden_act=config.activation_function,
        max_position_embeddings=config.n_positions,
        initializer_range=config.initializer_range,
        layer_norm_eps=config.layer_norm_epsilon,
        use_cache=config.use_cache,
        tie_word_embeddings=config.tie_word_embeddings,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": _BASE,
            "partial_rotary_factor": config.rotary_dim / (config.n_embd // config.n_head),
        },
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        dtype=config.dtype,
        **extra,
    )


def phi_parameters(model: Any) -> dict[str, nn.Parameter]:
    """The parameters of a GPT-J under their Phi names. They share the model's memory, except queries and keys.

    Args:
        model: with its weights loaded.
    """
    return dict(_renamed(model))


def _renamed(model: Any) -> Iterator[tuple[str, nn.Parameter]]:
    for old, new in _OUTER_NAMES.items():
        for name, parameter in model.get_submodule(old).named_parameters():
            yield f"{new}.{name}", parameter
    config = model.config
    order = halves_order(config.n_head, config.n_embd // config.n_head, config.rotary_dim)
    for index, layer in enumerate(model.transformer.h):
        for old, new in _LAYER_NAMES.items():
            part = layer.get_submodule(old)
            for name, parameter in part.named_parameters():
                reordered = old in ("attn.q_proj", "attn.k_proj")
                yield (
                    f"model.layers.{index}.{new}.{name}",
                    nn.Parameter(parameter.data[order]) if reordered else parameter,
                )
            if isinstance(part, nn.Linear) and part.bias is None:
                zeros = torch.zeros(part.out_features, dtype=part.weight.dtype, device=part.weight.device)
                yield f"model.layers.{index}.{new}.bias", nn.Parameter(zeros)


def halves_order(num_heads: int, head_dim: int, rotary_dim: int) -> torch.Tensor:
    """The source row of each row of a reordered query or key projection.

    Args:
        num_heads: number of heads in the projection.
        head_dim: rows per head.
        rotary_dim: number of leading rows per head that are rotated, in neighbouring pairs.

    Returns:
        int64 (num_heads * head_dim,): for each head the even rotary rows, then the odd rotary rows, then the rest.
    """
    rows = torch.arange(head_dim)
    head = torch.cat([rows[:rotary_dim:2], rows[1:rotary_dim:2], rows[rotary_dim:]])
    return (torch.arange(num_heads)[:, None] * head_dim + head).flatten()
