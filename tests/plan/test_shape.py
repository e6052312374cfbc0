"""Shapes from configs, compared with real modules, real caches and published sizes."""

from typing import Any

import pytest
import torch
from tiny_models import FAMILIES, family_config
from transformers import AutoModelForCausalLM, DynamicCache

from skipwise.errors import UnsupportedModelError
from skipwise.memory import kv_cache_bytes, prefill_flops, training_flops
from skipwise.model import without_weights
from skipwise.plan.cards import MODEL_CARDS
from skipwise.plan.shape import count_parameters, layer_shapes, model_shape, shape_of
from skipwise.runtime.caches import cache_bytes

# In 10^9, as published; deepseek-v3 without the module for multi-token prediction.
PUBLISHED = {
    "llama-7b": 6.738,
    "llama-2-7b": 6.738,
    "llama-3-8b": 8.030,
    "llama-3-70b": 70.554,
    "mistral-7b": 7.248,
    "qwen2.5-7b": 7.616,
    "gemma-3-27b": 27.009,
    "deepseek-v3": 671.026,
    "gpt-j-6b": 6.051,
    "baichuan2-7b": 7.506,
    "smollm2-135m": 0.1345,
}
# Layers that keep no keys and values, and a model that is converted on loading.
KEEPING_OTHERS, CONVERTED = [family for family in FAMILIES if family == "lfm3"], ("gptj",)


def config_of(family: str) -> Any:
    # The code of GPT-NeoX ignores that heads be grouped.
    return family_config(family, **({"num_key_value_heads": 4} if family == "gpt_neox" else {}))


@pytest.mark.parametrize("card", MODEL_CARDS)
def test_cards_have_the_published_size(card: str) -> None:
    shape = model_shape(card)
    real = without_weights(shape.config)
    assert shape.counts.total == sum(parameter.numel() for parameter in real.parameters())
    assert shape.counts.total / 1e9 == pytest.approx(PUBLISHED[card], abs=6e-4)
    assert len(shape.layers) == shape.text.num_hidden_layers


def test_deepseek_v3_activates_37_billion() -> None:
    counts = model_shape("deepseek-v3").counts
    # Its report (arXiv 2412.19437) counts 37B activated, embedding and head included.
    met = counts.active_in_layers + counts.embedding + counts.head
    assert met / 1e9 == pytest.approx(37.5, abs=0.5)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in (*KEEPING_OTHERS, *CONVERTED)])
def test_cache_is_as_large_as_the_real_one(family: str) -> None:
    model: Any = AutoModelForCausalLM.from_config(config_of(family)).eval()
    cache, read = DynamicCache(config=model.config), 0
    for tokens in torch.randint(3, 96, (1, 50)).split(10, dim=1):
        with torch.no_grad():
            model(input_ids=tokens, past_key_values=cache, use_cache=True)
        read += tokens.shape[1]
        assert kv_cache_bytes(layer_shapes(model.config), read, bits=32) == cache_bytes(cache)


@pytest.mark.parametrize("family", KEEPING_OTHERS)
def test_layers_with_another_cache_are_refused(family: str) -> None:
    with pytest.raises(UnsupportedModelError, match="LinearAttentionLayer"):
        layer_shapes(config_of(family))


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in CONVERTED])
def test_every_parameter_is_counted_once(family: str) -> None:
    model = without_weights(config_of(family))
    counts = count_parameters(model)
    assert counts.total == sum(parameter.numel() for parameter in model.parameters())
    assert counts.embedding == sum(p.numel() for p in model.get_input_embeddings().parameters())
    assert counts.attention > 0
    assert (counts.experts > 0) == (family in ("mixtral", "qwen3_moe", "deepseek_v2", "deepseek_v3"))


def test_operations_are_those_that_torch_counts() -> None:
    """torch's counter has attention over all pairs, ours over the causal half."""
    from torch.utils.flop_counter import FlopCounterMode

    config = config_of("llama")
    model: Any = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    shape, length = shape_of(model.config), 64
    ids = torch.randint(3, 96, (1, length))

    def counted(backward: bool) -> tuple[int, int]:
        with FlopCounterMode(display=False) as counter:
            out = model(input_ids=ids, use_cache=False).logits
            if backward:
                out.sum().backward()
        each = counter.get_flop_counts()["Global"]
        # Attention's products are of batches of matrices; so are the rotary tables', a few operations.
        attention = sum(flops for name, flops in each.items() if "bmm" in str(name))
        return counter.get_total_flops() - attention, attention

    linear, attention = counted(backward=False)
    counts = shape.counts
    per_layer = [layer.attended_pairs(length) * layer.query_heads * 2 * layer.key_dim * 2 for layer in shape.layers]
    norms = counts.norms
    assert linear == 2 * length * (counts.active_in_layers - norms + counts.head_multiplied)
    assert attention == pytest.approx(sum(per_layer) * 2 * length / (length + 1), rel=0.01)
    expected = prefill_flops(counts, shape.layers, length)
    assert expected == 2 * length * counts.active_in_layers + 2 * counts.head_multiplied + sum(per_layer)
    linear, _ = counted(backward=True)
    forward = training_flops(counts, shape.layers, length, checkpointing=False)
    assert forward == pytest.approx(linear + 3 * sum(per_layer), rel=0.01)
