"""Attention in causal blocks: the same numbers and gradients, fewer pairs, and nothing else touched."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_models import SHARP, tiny_config, tiny_model
from torch import Tensor
from transformers import AttentionInterface, PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from skipwise.attention import mark_causal, refusing_masks
from skipwise.errors import UnsupportedModelError
from skipwise.loss import NextTokenLoss

FAMILIES: dict[str, PreTrainedConfig] = {
    "llama, grouped keys": tiny_config("llama", **SHARP),
    "granite, its own scale": tiny_config("granite", **SHARP, num_key_value_heads=1, attention_multiplier=0.3),
    "gpt-neox": tiny_config("gpt_neox", **SHARP),
}


@pytest.fixture(autouse=True)
def library(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's own attention, before and after each test."""
    monkeypatch.setitem(AttentionInterface._global_mapping, "sdpa", sdpa_attention_forward)


def loss_and_gradients(
    config: PreTrainedConfig, n: int, attention: str, *, checkpointing: bool | None = None, autocast: bool = False
) -> list[Tensor]:
    """Of training under a diluted mask; `checkpointing` says whether it is of the reentrant kind, None for none."""
    model = tiny_model(config, attn_implementation=attention).train()
    if checkpointing is not None:
        model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
        model.enable_input_require_grads()
    ids = torch.randint(0, 61, (3, n), generator=torch.Generator().manual_seed(1))
    positions = torch.arange(n).expand(3, n).clone()
    positions[0, n // 3 :] += 100
    positions[1, n // 2 :] += 40
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = NextTokenLoss(model)(ids, positions, ids, diluted=torch.tensor([True, True, False]))
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
@pytest.mark.parametrize("checkpointing", [None, False, True], ids=["plain", "checkpointing", "reentrant"])
@pytest.mark.parametrize("n", [2, 4, 31, 64])
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_those_of_eager_attention(family: str, n: int, checkpointing: bool | None) -> None:
    expected = loss_and_gradients(FAMILIES[family], n, "eager")
    found = loss_and_gradients(FAMILIES[family], n, "sdpa", checkpointing=checkpointing)
    assert len(found) == len(expected) > 10
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


def test_mixed_precision_moves_it_no_further_than_it_moves_eager_attention() -> None:
    exact, found, eager = (
        torch.cat([part.flatten() for part in loss_and_gradients(FAMILIES["gpt-neox"], 64, attention, autocast=auto)])
        for attention, auto in (("eager", False), ("sdpa", True), ("eager", True))
    )
    assert 0 < (found - exact).norm() < 2 * (eager - exact).norm() < 0.2 * exact.norm()


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Queries and keys of each call that reaches the library's own attention from here on."""
    calls: list[tuple[int, int]] = []

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **how: Any) -> Any:
        calls.append((query.shape[2], key.shape[2]))
        return sdpa_attention_forward(module, query, key, value, mask, **how)

    monkeypatch.setitem(AttentionInterface._global_mapping, "sdpa", attend)
    mark_causal(torch.zeros(1, 1, 4, 4))
    assert AttentionInterface()["sdpa"] is not attend, "from the first mark on, the library's attention knows it"
    return calls


def attend(n: int, keys: int, mask: Tensor | None, **how: Any) -> Tensor:
    query, key = torch.randn(1, 2, n, 8), torch.randn(1, 2, keys, 8)
    return AttentionInterface()["sdpa"](SimpleNamespace(), query, key, key, mask, **how)[0]


def test_three_eighths_of_the_pairs_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = recorded(monkeypatch)
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
    attend(n, keys, mask, **how)
    assert calls == [(n, keys)]


def test_marking_again_wraps_nothing_again(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded(monkeypatch)
    once = AttentionInterface()["sdpa"]
    mark_causal(torch.zeros(1, 1, 4, 4))
    assert AttentionInterface()["sdpa"] is once


def test_training_marks_its_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = recorded(monkeypatch)
    loss_and_gradients(FAMILIES["llama, grouped keys"], 64, "sdpa")
    assert calls == [(16, keys) for keys in (16, 32, 48, 64)] * 2


def kept_bytes(query: Tensor, key: Tensor, mask: Tensor) -> int:
    """Storage that backward of one layer's attention keeps, each once, beside its inputs and the mask."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    module = SimpleNamespace(num_key_value_groups=query.shape[1] // key.shape[1])
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = AttentionInterface()["sdpa"](module, query, key, key + 0.0, mask)[0]
        output.sum().backward()
    known = {tensor.untyped_storage().data_ptr() for tensor in (query, key, mask)}
    return sum(size for place, size in kept.items() if place not in known)


def test_heads_that_share_keys_keep_their_copies_once() -> None:
    query, key = torch.randn(1, 8, 64, 8, requires_grad=True), torch.randn(1, 2, 64, 8, requires_grad=True)
    mask = torch.zeros(1, 1, 64, 64).masked_fill(torch.ones(64, 64).triu(1).bool(), torch.finfo(torch.float32).min)
    whole = kept_bytes(query, key, mask)
    assert whole <= kept_bytes(query, key, mark_causal(mask)) < 1.25 * whole


def test_models_attend_by_what_is_registered_in_place_of_sdpa() -> None:
    model = tiny_model(FAMILIES["gpt-neox"], attn_implementation="sdpa")
    ids, masked = torch.arange(8)[None], {"attention_mask": torch.zeros(1, 1, 8, 8)}
    with refusing_masks():
        unmasked = model(ids).logits
        with pytest.raises(UnsupportedModelError, match="GPTNeoXAttention"):
            model(ids, **masked)
    assert not torch.equal(model(ids, **masked).logits, unmasked)
    assert AttentionInterface()["sdpa"] is sdpa_attention_forward
