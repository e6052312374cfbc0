"""Attention under other distances than those of the positions, without training: DCA and STRING.

A rotary model attends by the distance of query and key. Both methods replace distances that the model knows badly by
others that it knows well, and leave the weights as they are. A key has one rotation and a query several, of which each
key takes one; what is computed is exact softmax attention under

    distance(query i, key j) = query_positions(i)[side(i, j)] - key_positions(j)

    DualChunk   distances beyond the original window become shorter, so that any input stays within it
    Shifted     far distances within the window become shorter, since the farthest were seen least in training

For evaluation: as rotations are redone at each pass, it takes a few times as long.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from transformers import AttentionMaskInterface

from skipwise.errors import UnsupportedModelError
from skipwise.model import rotary_tables
from skipwise.runtime.attention import other_attention

_MASK = AttentionMaskInterface()["sdpa"]
# Models whose heads are rotated whole, pair j of dimensions j and j + d/2, before attention is looked up by name.
_ROTATED_ALIKE = ("llama", "mistral", "qwen2", "qwen3")
# Scores of this many queries are held at a time.
_QUERIES = 256


class Distances(Protocol):
    """Which distance each pair of query and key has instead of its own."""

    name: ClassVar[str]

    def key_positions(self, keys: Tensor) -> Tensor:
        """New positions of keys, int64 as their own ones (m,)."""
        ...

    def query_positions(self, queries: Tensor) -> Tensor:
        """New positions of queries, one row for each side: int64 (sides, n)."""
        ...

    def sides(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Which row of `query_positions` holds for a pair: int64 (n, m)."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DualChunk:
    """Dual chunk attention: distances beyond `f` do not occur.

    In chunks of `s` tokens keys stand at `j mod s`, and queries

        in the key's own chunk     at i mod s               their own distance
        in the next chunk          at min(s + i mod s, f)   their own distance, but at most f from the chunk's first key
        farther on                 at f

    Attributes:
        window: the model's original window, in tokens.

    Source: arXiv 2402.17463, section 3. As in the authors' code, `f` is three quarters of the window, and `s` is less
    by a sixteenth of the window.
    """

    name: ClassVar[str] = "skipwise_dual_chunk"
    window: int

    @property
    def farthest(self) -> int:
        """The farthest distance that is used, in tokens."""
        return 3 * self.window // 4

    @property
    def chunk(self) -> int:
        """Tokens of a chunk."""
        return max(1, self.farthest - self.window // 16)

    def key_positions(self, keys: Tensor) -> Tensor:
        """See `Distances.key_positions`."""
        return keys % self.chunk

    def query_positions(self, queries: Tensor) -> Tensor:
        """See `Distances.query_positions`."""
        own = queries % self.chunk
        following = (own + self.chunk).clamp(max=self.farthest)
        return torch.stack([own, following, torch.full_like(own, self.farthest)])

    def sides(self, queries: Tensor, keys: Tensor) -> Tensor:
        """See `Distances.sides`."""
        apart = queries[:, None] // self.chunk - keys // self.chunk
        return apart.clamp(0, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shifted:
    """STRING: distances of a third of the window and more are shifted down by that third, less 128.

    Attributes:
        window: the window that the model was trained for, in tokens.
        local: distances below this stay for near keys alone.

    Source: arXiv 2410.18745, section 4: shift `S = L / 3`, local window 128.
    """

    name: ClassVar[str] = "skipwise_shifted"
    window: int
    local: int = 128

    @property
    def shift(self) -> int:
        """Distances from here on are shifted."""
        return max(1, self.window // 3)

    def key_positions(self, keys: Tensor) -> Tensor:
        """See `Distances.key_positions`."""
        return keys

    def query_positions(self, queries: Tensor) -> Tensor:
        """See `Distances.query_positions`."""
        return torch.stack([queries, queries - max(0, self.shift - self.local)])

    def sides(self, queries: Tensor, keys: Tensor) -> Tensor:
        """See `Distances.sides`."""
        return (queries[:, None] - keys >= self.shift).long()


@contextmanager
def other_distances(model: Any, distances: Distances) -> Iterator[None]:
    """Inside the context, the model attends under other distances.

    Args:
        model: a causal language model of the transformers library, in evaluation mode. Rows of a batch may be padded on
            the left.
        distances: which ones.

    Raises:
        UnsupportedModelError: the model rotates its heads in another way.
    """
    config = model.config.get_text_config(decoder=True)
    tables = list(rotary_tables(model).values())
    if config.model_type not in _ROTATED_ALIKE or len(tables) != 1:
        raise UnsupportedModelError(
            f"attention under other distances is known for models of type {', '.join(_ROTATED_ALIKE)}, and this one is "
            f"{config.model_type}: measure it without"
        )
    frequencies = torch.from_numpy(tables[0].inv_freq).to(model.device)

    def attend(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        groups = query.shape[1] // key.shape[1]
        key, value = (each.repeat_interleave(groups, dim=1) for each in (key, value))
        total, n = key.shape[2], query.shape[2]
        keys = torch.arange(total, device=key.device)
        key = turned(key, distances.key_positions(keys) - keys, frequencies)
        pieces = []
        for start in range(0, n, _QUERIES):
            piece = query[:, :, start : start + _QUERIES]
            queries = keys[total - n + start : total - n + start + piece.shape[2]]
            scores = _scores(piece, key, queries, keys, distances, frequencies) * (scaling or query.shape[-1] ** -0.5)
            allowed = (queries[:, None] >= keys)[None, None]
            if attention_mask is not None:
                own = attention_mask[:, :, start : start + _QUERIES, :total]
                allowed = allowed & (own if own.dtype == torch.bool else own == 0)
            weights = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min).softmax(-1)
            pieces.append(weights.to(value.dtype) @ value)
        return torch.cat(pieces, dim=2).transpose(1, 2).contiguous(), None

    with other_attention(model, distances.name, attend, _MASK):
        yield


def _scores(
    query: Tensor, key: Tensor, queries: Tensor, keys: Tensor, distances: Distances, frequencies: Tensor
) -> Tensor:
    """Products of queries and keys, float32 (batch, heads, n, m), each with the query's rotation for that key."""
    sides = distances.sides(queries, keys)
    scores = torch.zeros(*query.shape[:3], key.shape[2], device=query.device)
    for side, positions in enumerate(distances.query_positions(queries)):
        here = sides == side
        if here.any():
            product = turned(query, positions - queries, frequencies).float() @ key.float().transpose(-1, -2)
            scores = torch.where(here, product, scores)
    return scores


def turned(vectors: Tensor, by: Tensor, frequencies: Tensor) -> Tensor:
    """Vectors that are rotated already, rotated on by some positions.

    Args:
        vectors: (batch, heads, n, d); pair j of a head is its dimensions j and j + d/2.
        by: int64 (n,), positions to add to those of each vector.
        frequencies: float64 (d/2,), radians per position.
    """
    angles = by[:, None].double() * frequencies
    cos, sin = angles.cos().to(vectors.dtype), angles.sin().to(vectors.dtype)
    first, second = vectors.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
