"""Attention in causal blocks: the same numbers and gradients, fewer pairs, and nothing else touched."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPTNeoXConfig, GraniteConfig, LlamaConfig, PreTrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from skipwise.attention import mark_causal, sdpa_in_causal_blocks
from skipwise.loss import NextTokenLoss

SHAPE: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
FAMILIES: dict[str, PreTrainedConfig] = {
    "llama, grouped keys": LlamaConfig(**SHAPE, num_key_value_heads=2),
    "granite, its own scale": GraniteConfig(**SHAPE, num_key_value_heads=1, attention_multiplier=0.3),
    "gpt-neox": GPTNeoXConfig(**SHAPE),
}


def loss_and_gradients(config: PreTrainedConfig, n: int, attention: str, *, checkpointing: bool) -> list[Tensor]:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    ids = torch.randint(0, 61, (3, n), generator=torch.Generator().manual_seed(1))
    positions = torch.arange(n).expand(3, n).clone()
    positions[0, n // 3 :] += 100
    positions[1, n // 2 :] += 40
    loss = NextTokenLoss(model)(ids, positions, ids, diluted=torch.tensor([True, True, False]))
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("n", [2, 4, 31, 64])
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_those_of_eager_attention(family: str, n: int, checkpointing: bool) -> None:
    expected = loss_and_gradients(FAMILIES[family], n, "eager", checkpointing=False)
    with sdpa_in_causal_blocks():
        found = loss_and_gradients(FAMILIES[family], n, "sdpa", checkpointing=checkpointing)
    assert len(found) == len(expected) > 10
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Queries and keys of each call that reaches the library's own attention from here on."""
    calls: list[tuple[int, int]] = []

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **how: Any) -> Any:
        calls.append((query.shape[2], key.shape[2]))
        assert mask is None or mask.shape[-2:] == (query.shape[2], key.shape[2])
        return query.transpose(1, 2), None

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", attend)
    return calls


def attend(n: int, keys: int, mask: Tensor | None, **how: Any) -> Tensor:
    query, key = torch.randn(1, 2, n, 8), torch.randn(1, 2, keys, 8)
    return ALL_ATTENTION_FUNCTIONS["sdpa"](SimpleNamespace(), query, key, key, mask, **how)[0]


def test_three_eighths_of_the_pairs_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = recorded(monkeypatch)
    with sdpa_in_causal_blocks():
        assert attend(64, 64, mark_causal(torch.zeros(1, 1, 64, 64))).shape == (1, 64, 2, 8)
    assert sum(queries * keys for queries, keys in calls) == 64 * 64 * 5 // 8


@pytest.mark.parametrize(
    ("n", "keys", "mask", "how"),
    [
        (16, 16, None, {}),
        (16, 16, torch.zeros(1, 1, 16, 16), {}),
        (16, 16, mark_causal(torch.zeros(1, 1, 16, 16)).clone(), {}),
        (16, 24, mark_causal(torch.zeros(1, 1, 16, 24)), {}),
        (16, 16, mark_causal(torch.zeros(1, 1, 16, 16)), {"position_bias": torch.zeros(1, 2, 16, 16)}),
        (16, 16, mark_causal(torch.zeros(1, 1, 16, 16)), {"dropout": 0.1}),
    ],
    ids=["no mask", "anyone's mask", "a copy", "more keys", "a bias", "dropout"],
)
def test_all_other_attention_goes_its_own_way(
    n: int, keys: int, mask: Tensor | None, how: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = recorded(monkeypatch)
    with sdpa_in_causal_blocks():
        attend(n, keys, mask, **how)
    assert calls == [(n, keys)]


def test_the_library_is_left_as_it_was() -> None:
    before = ALL_ATTENTION_FUNCTIONS["sdpa"]
    with sdpa_in_causal_blocks():
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is not before
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is before
    with pytest.raises(KeyError), sdpa_in_causal_blocks():
        raise KeyError
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is before


def test_training_marks_its_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    whole = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def counted(*arguments: Any, **how: Any) -> Any:
        calls.append(arguments[1].shape[2])
        return whole(*arguments, **how)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", counted)
    with sdpa_in_causal_blocks():
        loss_and_gradients(FAMILIES["llama, grouped keys"], 64, "sdpa", checkpointing=False)
    assert calls == [16] * 4 * 2
