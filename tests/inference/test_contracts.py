"""What the runtime takes transformers and torch to be, asked of these libraries themselves."""

from typing import Any

import pytest
import torch
from tiny_models import tiny_config, tiny_model
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, StaticCache
from transformers.cache_utils import Cache, DynamicLayer, StaticLayer

from skipwise.model import attention_of, set_attention
from skipwise.runtime._transformers import calls_attention_by_name, flash_attention_for_cpu

IDS = torch.arange(3, 15)[None]


@pytest.fixture
def model() -> Any:
    return tiny_model(tiny_config("llama"))


def test_a_model_asks_for_its_attention_and_mask_by_the_configs_name_at_each_pass(model: Any) -> None:
    seen: list[Any] = []

    def attend(module: Any, query: Any, key: Any, value: Any, mask: Any, **how: Any) -> Any:
        seen.append((query.shape, key.shape, value.shape, mask, how["scaling"]))
        return AttentionInterface()["sdpa"](module, query, key, value, mask, **how)

    assert calls_attention_by_name(model)
    assert attention_of(model.config) == "sdpa"
    expected = model(IDS).logits
    AttentionInterface.register("contract", attend)
    AttentionMaskInterface.register("contract", lambda *sizes, **how: AttentionMaskInterface()["sdpa"](*sizes, **how))
    set_attention(model.config, "contract")
    torch.testing.assert_close(model(IDS).logits, expected, rtol=0, atol=0)
    # Grouped heads, width 16, and no mask where it is plainly causal.
    assert seen == [((1, 4, 12, 16), (1, 2, 12, 16), (1, 2, 12, 16), None, 16**-0.5)] * 2


def test_a_model_without_that_promise_says_so(model: Any) -> None:
    model._supports_attention_backend = False
    assert not calls_attention_by_name(model)


@pytest.mark.parametrize("causal", [False, True])
def test_the_kernel_of_a_cpu_gives_attention_and_the_log_of_its_sums(causal: bool) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, 6, 8) for _ in range(3))
    mixed, sums = flash_attention_for_cpu(query, key, value, is_causal=causal, scale=0.3)
    scores = query.double() @ key.double().transpose(2, 3) * 0.3
    if causal:
        scores = scores.masked_fill(torch.ones(6, 6).triu(1).bool(), -torch.inf)
    torch.testing.assert_close(sums.double(), scores.logsumexp(-1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mixed.double(), scores.softmax(-1) @ value.double(), rtol=1e-5, atol=1e-5)


def test_a_cache_is_its_layers_which_hold_keys_and_values_by_token(model: Any) -> None:
    cache = DynamicCache(config=model.config)
    assert [type(layer) for layer in cache.layers] == [DynamicLayer] * 2
    assert not any(cache.is_sliding)
    with torch.no_grad():
        model(IDS, past_key_values=cache)
    layer: Any = cache.layers[0]
    assert layer.keys.shape == layer.values.shape == (1, 2, 12, 16)
    assert cache.get_seq_length() == layer.get_seq_length() == 12
    layer.crop(-5)
    assert layer.get_seq_length() == 7
    assert layer.get_mask_sizes(3) == (10, 0)
    static = StaticCache(config=model.config, max_cache_len=16)
    assert all(isinstance(one, StaticLayer) for one in static.layers)
    # A layer of one's own says by itself how long it is.
    own = type("Own", (DynamicLayer,), {"get_seq_length": lambda self: 4})()
    assert Cache(layers=[own]).get_seq_length() == 4
    assert own.get_mask_sizes(3) == (7, 0)
    assert not own.is_initialized
    own.lazy_initialization(layer.keys, layer.values)
    assert own.is_initialized


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_rope_that_follows_the_length_names_itself_and_looks_at_the_largest_position(kind: str) -> None:
    factors = {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8} if kind == "longrope" else {}
    rope = {"rope_type": kind, "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 32, **factors}
    config = tiny_config("llama", max_position_embeddings=32, rope_parameters=rope)
    module: Any = tiny_model(config).model.rotary_emb
    assert module.rope_type == kind
    assert module.config.rope_parameters["original_max_position_embeddings"] == 32
    hidden = torch.zeros(1, 1, 64)
    alone, beside, again = (module(hidden, torch.tensor([positions]))[0][0, 0] for positions in ([1], [1, 99], [1]))
    assert not torch.equal(alone, beside)
    if kind == "longrope":
        assert torch.equal(alone, again)
    # Position 0 resets what a longer input left behind.
    module(hidden, torch.tensor([[0]]))
    assert torch.equal(module(hidden, torch.tensor([[1]]))[0][0, 0], alone)
