"""Attention in two parts is the library's under one mask."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_models import LATENT, tiny_config, tiny_model
from transformers import DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from skipwise.runtime import attention as module
from skipwise.runtime.attention import attends_in_chunks, chunk_attention, sees_everything
from skipwise.runtime.forward import logit_pieces

from .tiny import make_family

GROUPED: Any = SimpleNamespace(num_key_value_groups=3, is_causal=True)
FULL = ["llama", "yarn", "gpt_neox"]


def states(past: int, n: int, *, heads: int = 6, groups: int = 3, width: int = 16, dtype=torch.float32) -> Any:
    torch.manual_seed(0)
    query = torch.randn(2, heads, n, width, dtype=dtype)
    key, value = (2 * torch.randn(2, heads // groups, past + n, width, dtype=dtype) for _ in range(2))
    return query, key, value


def under_a_mask(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None) -> torch.Tensor:
    """Softmax of masked products, in float64."""
    groups = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(groups, dim=1).double() for tensor in (key, value))
    scores = query.double() @ key.transpose(2, 3) * (scaling or query.shape[-1] ** -0.5)
    n, total = scores.shape[2:]
    visible = torch.arange(total) <= torch.arange(n)[:, None] + total - n
    return (scores.masked_fill(~visible, -torch.inf).softmax(-1) @ value).transpose(1, 2)


@pytest.mark.parametrize(("past", "n"), [(0, 40), (1, 40), (40, 2), (300, 65), (777, 1), (5, 600)])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_is_attention_under_a_causal_mask(past: int, n: int, groups: int, scaling: float | None) -> None:
    query, key, value = states(past, n, groups=groups)
    mixed, weights = module._attend(SimpleNamespace(num_key_value_groups=groups), query, key, value, None, 0.0, scaling)
    assert weights is None
    torch.testing.assert_close(mixed.double(), under_a_mask(query, key, value, scaling), rtol=1e-5, atol=1e-5)


def test_keeps_the_precision_of_half_the_bits() -> None:
    query, key, value = states(300, 65, dtype=torch.bfloat16)
    mixed, _ = module._attend(GROUPED, query, key, value, None)
    assert mixed.dtype == torch.bfloat16
    expected = under_a_mask(query, key, value, None)
    assert (mixed.double() - expected).abs().max() < 0.03
    mask = torch.ones(65, 365, dtype=torch.bool).tril(300)[None, None]
    at_once, _ = sdpa_attention_forward(GROUPED, query, key, value, mask)
    assert (mixed.double() - expected).pow(2).mean() < 2 * (at_once.double() - expected).pow(2).mean()


@pytest.mark.parametrize("value_width", [16, 8])
def test_what_torch_has_no_kernel_for_is_attended_to_under_a_mask(value_width: int) -> None:
    query, key, value = states(30, 7)
    value = value[..., :value_width]
    bias = torch.randn(1, 6, 7, 37) if value_width == 16 else None
    got, _ = module._attend(GROUPED, query, key, value, None, position_bias=bias)
    mask = torch.ones(7, 37, dtype=torch.bool).tril(30)[None, None]
    expected, _ = sdpa_attention_forward(GROUPED, query, key, value, mask, position_bias=bias)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("kind", FULL)
def test_a_model_reads_chunks_as_it_does_a_whole(kind: str) -> None:
    model = make_family(kind)
    ids = torch.randint(3, 61, (2, 50))
    with torch.no_grad():
        expected = model(ids, attention_mask=torch.ones_like(ids)).logits
        cache = DynamicCache(config=model.config)
        with chunk_attention(model):
            pieces = [
                model(ids[:, a:b], position_ids=torch.arange(a, b)[None], past_key_values=cache).logits
                for a, b in ((0, 20), (20, 37), (37, 50))
            ]
    assert model.config._attn_implementation == "sdpa"
    torch.testing.assert_close(torch.cat(pieces, dim=1), expected, rtol=1e-4, atol=1e-5)


def test_chunks_are_read_in_mixed_precision_as_a_whole_is() -> None:
    model = make_family("llama")
    ids = torch.randint(3, 61, (2, 50))
    with torch.no_grad():
        exact = model(ids).logits
        with torch.autocast("cpu", torch.bfloat16):
            expected = model(ids).logits
            # With caches of our own, which keep the types of keys and values.
            pieces = [piece.logits for piece in logit_pieces(model, ids, chunk_tokens=20)]
    got = torch.cat(pieces, dim=1)
    assert (got - exact).pow(2).mean() < 2 * (expected - exact).pow(2).mean()


def test_the_two_parts_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_family("llama")
    seen: list[Any] = []
    original = module._attend
    monkeypatch.setattr(module, "_attend", lambda *a, **k: seen.append(a[4]) or original(*a, **k))
    with torch.no_grad(), chunk_attention(model):
        cache = DynamicCache(config=model.config)
        for part in torch.randint(3, 61, (1, 20)).split(10, dim=1):
            model(part, past_key_values=cache)
    assert seen
    assert all(mask is None for mask in seen), "a mask was made"


def test_the_model_is_itself_again_after_an_error() -> None:
    model = make_family("llama")
    seen: list[str] = []

    def fails() -> None:
        with chunk_attention(model):
            seen.append(model.config._attn_implementation)
            raise RuntimeError("on the way")

    with pytest.raises(RuntimeError, match="on the way"):
        fails()
    assert seen != ["sdpa"] == [model.config._attn_implementation]


@pytest.mark.parametrize(
    ("family", "own", "suits"),
    [
        # Compares the name of its attention itself; wants its mask as numbers; has keys wider than values.
        ("falcon", {"new_decoder_architecture": False, "alibi": False}, False),
        ("doge", {}, True),
        ("deepseek_v3", LATENT | {"v_head_dim": 8}, False),
    ],
)
@pytest.mark.parametrize("chunk_tokens", [9, 24])
def test_families_with_attention_of_their_own(family: str, own: dict[str, Any], suits: bool, chunk_tokens: int) -> None:
    model = tiny_model(tiny_config(family, **own))
    assert attends_in_chunks(model) == suits
    ids = torch.randint(3, 61, (1, 24))
    with torch.no_grad():
        expected = model(ids, attention_mask=torch.ones_like(ids)).logits
    pieces = [piece.logits for piece in logit_pieces(model, ids, chunk_tokens=chunk_tokens)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama-eager", "mistral", "gemma2", "gemma3"])
def test_other_models_go_their_own_way(kind: str) -> None:
    model = make_family(kind)
    assert not attends_in_chunks(model)
    before = model.config._attn_implementation
    with chunk_attention(model):
        assert model.config._attn_implementation == before
    assert sees_everything(model) == (kind == "llama-eager")
    assert not attends_in_chunks(make_family("llama").double())
