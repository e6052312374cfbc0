"""Attention under other distances is softmax attention with exactly these distances."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_models import tiny_config, tiny_model
from torch import Tensor

from skipwise.errors import UnsupportedModelError
from skipwise.model import attention_of, rotary_tables
from skipwise.runtime.forward import logit_pieces
from skipwise.runtime.relative import Distances, DualChunk, Shifted, other_distances

N = 50


def dual_chunk(window: int) -> Callable[[int, int], int]:
    """The paper's three cases, pair by pair, with the numbers of the authors' code."""
    farthest = 3 * window // 4
    chunk = farthest - window // 16

    def distance(i: int, j: int) -> int:
        apart = i // chunk - j // chunk
        if apart == 0:
            return i - j
        return (min(chunk + i % chunk, farthest) if apart == 1 else farthest) - j % chunk

    return distance


def shifted(window: int, local: int) -> Callable[[int, int], int]:
    return lambda i, j: i - j if i - j < window // 3 else i - j - window // 3 + min(local, window // 3)


CASES: dict[str, tuple[Distances, Callable[[int, int], int]]] = {
    "dual chunk": (DualChunk(window=16), dual_chunk(16)),
    "dual chunk, one chunk": (DualChunk(window=200), lambda i, j: i - j),
    "shifted": (Shifted(window=48, local=4), shifted(48, 4)),
    "shifted, all local": (Shifted(window=48), lambda i, j: i - j),
}


@pytest.mark.parametrize("case", CASES)
def test_distances_are_those_of_the_paper_pair_by_pair(case: str) -> None:
    distances, expected = CASES[case]
    places = torch.arange(N)
    keys, queries, sides = (
        distances.key_positions(places),
        distances.query_positions(places),
        distances.sides(places, places),
    )
    for i in range(N):
        for j in range(i + 1):
            assert int(queries[sides[i, j], i] - keys[j]) == expected(i, j), (i, j)
            if case == "dual chunk":
                assert expected(i, j) <= 12


def naive(model: Any, ids: Tensor, distance: Callable[[int, int], int]) -> Tensor:
    """One layer of a Llama by hand, in float64: each pair of query and key is rotated by its own distance."""
    layer, heads = model.model.layers[0], model.config.num_attention_heads
    hidden = model.model.embed_tokens(ids)
    normed = layer.input_layernorm(hidden)
    attention = layer.self_attn

    def split(projected: Tensor) -> Tensor:
        parts = projected.view(N, -1, attention.head_dim)
        return parts.repeat_interleave(heads // parts.shape[1], dim=1)

    q, k, v = (split(each(normed[0])) for each in (attention.q_proj, attention.k_proj, attention.v_proj))
    frequencies = torch.from_numpy(rotary_tables(model)["model.rotary_emb"].inv_freq)
    mixed = torch.zeros(N, heads, attention.head_dim, dtype=torch.float64)
    for i in range(N):
        scores = torch.zeros(heads, i + 1, dtype=torch.float64)
        for j in range(i + 1):
            angle = distance(i, j) * frequencies
            one, two = q[i].chunk(2, dim=-1)
            turned = torch.cat([one * angle.cos() - two * angle.sin(), two * angle.cos() + one * angle.sin()], dim=-1)
            scores[:, j] = (turned * k[j]).sum(-1) * attention.scaling
        mixed[i] = torch.einsum("hj,jhd->hd", scores.softmax(-1), v[: i + 1])
    hidden = hidden + attention.o_proj(mixed.view(1, N, -1))
    hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return model.lm_head(model.model.norm(hidden))


@pytest.fixture(scope="module")
def model() -> Any:
    config = tiny_config("llama", num_hidden_layers=1, max_position_embeddings=64)
    built = tiny_model(config, seed=3).eval()
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            if "q_proj" in name or "k_proj" in name:
                parameter.mul_(8.0)
    return built


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("chunk_tokens", [None, 13])
def test_logits_are_those_of_a_loop_over_pairs(model: Any, case: str, chunk_tokens: int | None) -> None:
    distances, expected = CASES[case]
    ids = torch.randint(model.config.vocab_size, (1, N), generator=torch.Generator().manual_seed(1))
    before = attention_of(model.config)
    with torch.no_grad():
        with other_distances(model, distances):
            found = torch.cat([p.logits for p in logit_pieces(model, ids, chunk_tokens=chunk_tokens)], dim=1)
        plain = model(ids).logits
        assert attention_of(model.config) == before
        truth = naive(model.double(), ids, expected)
    model.float()
    torch.testing.assert_close(found.double(), truth, rtol=1e-3, atol=1e-4)
    if case in ("dual chunk", "shifted"):
        assert (found - plain).abs().max() > 1e-3


def test_other_kinds_of_rotation_are_refused() -> None:
    other = tiny_model(tiny_config("gpt_neox", partial_rotary_factor=0.5), seed=3).eval()
    with (
        pytest.raises(UnsupportedModelError, match="is gpt_neox: measure it without"),
        other_distances(other, DualChunk(window=16)),
    ):
        pass
