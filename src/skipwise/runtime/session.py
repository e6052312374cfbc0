"""Runs a model over a long input; the only caller of a model with a cache.

    session = Session(model, empty_cache(model, 1, 1100), length=1000)
    for logits in session.prefill(ids, chunk_tokens=512):       # ids (1, 1000): two chunks
        token = logits[:, -1:].argmax(-1)                       # the last position alone
    token = session.step(token)[:, -1:].argmax(-1)              # one more token

Token ids go in, logits of the positions asked for come out. Memory grows with the cache and the chunk, never with
`n x vocabulary` or `n x n`. Logits come from the model's own forward, soft caps and scales of the head included.
Evaluation scores the columns of a prefill (`forward`), batches of prompts go on by steps (`decode`), and the engine
makes each chunk or token one step.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, StaticLayer

from skipwise.errors import CheckpointError
from skipwise.runtime.attention import chunk_attention
from skipwise.runtime.caches import cache_name
from skipwise.runtime.length_rope import rope_follows_length, rope_of_length

CURE = "the weights or the precision cannot be trusted: load the model in float32 or bfloat16, or check its checkpoint"


class Session:
    """Rows of tokens that a model reads together, any number of columns at a time.

    Args:
        model: a causal language model of the transformers library, in evaluation mode, without a wrapper.
        cache: takes the keys and values; None if everything is read in one pass.
        length: tokens of the whole input, for RoPE that follows the length.
        columns: columns that the cache holds already.
        padding: columns before each row's first token, int64 (rows,). None if no row has any; then the only mask is
            the model's own.
        names: name of each row, for error messages; None leaves the logits unchecked.
        in_parts: whether chunks without padding may be attended to as in `runtime.attention`.

    Attributes:
        cache: keys and values so far.
        columns: read so far, padding included.
    """

    def __init__(
        self,
        model: Any,
        cache: Cache | None,
        *,
        length: int,
        columns: int = 0,
        padding: Tensor | None = None,
        names: Sequence[str] | None = None,
        in_parts: bool = True,
    ) -> None:
        self.cache, self.columns = cache, columns
        self._model, self._padding, self._names = model, padding, names
        # A cache of fixed size gives attention columns that are still empty, and a mask for them.
        fixed = cache is not None and any(isinstance(layer, StaticLayer) for layer in cache.layers)
        self._in_parts = in_parts and padding is None and not fixed
        self._rope = partial(rope_of_length, model, length) if rope_follows_length(model) else nullcontext

    @torch.no_grad()
    def prefill(
        self, ids: Tensor, last: int = 1, *, chunk_tokens: int, piece_tokens: int | None = None
    ) -> Iterator[Tensor]:
        """Reads the next columns in chunks, and yields the logits of the last of them in order, in pieces.

        Args:
            ids: token ids (rows, n).
            last: columns whose logits are asked for.
            chunk_tokens: columns of one pass through the decoder.
            piece_tokens: most columns of one piece; by default those of a chunk. A piece that the caller lets go of
                leaves memory before the next is made.

        Yields:
            (rows, columns, vocabulary) in the model's own type.

        Raises:
            CheckpointError: a logit is NaN, or the largest of a position infinite.
        """
        to_come = ids.shape[1]
        for chunk in ids.split(chunk_tokens, dim=1):
            to_come -= chunk.shape[1]
            asked = min(chunk.shape[1], max(0, last - to_come))
            if piece_tokens is not None and asked > piece_tokens:
                yield from self._in_pieces(chunk, asked, piece_tokens)
                continue
            logits = self.step(chunk, asked)
            if asked:
                yield logits
            del logits

    @torch.no_grad()
    def step(self, ids: Tensor, last: int = 1) -> Tensor:
        """Reads the next columns in one pass.

        Args:
            ids: token ids (rows, n).
            last: columns whose logits are asked for, 0 to n.

        Returns:
            Logits (rows, last, vocabulary) in the model's own type.

        Raises:
            CheckpointError: as `prefill`.
        """
        none = torch.empty(0, dtype=torch.long, device=self._model.device)
        with self._ready(ids):
            logits = self._model(**self._inputs(ids), logits_to_keep=last or none).logits
        self.columns += ids.shape[1]
        logits = logits[:, logits.shape[1] - last :]
        if last:
            self.check(logits, self.columns - last)
        return logits

    def keep(self, places: Sequence[int]) -> None:
        """Keeps these rows alone, by their place among those that are left, in order."""
        assert self.cache is not None
        chosen = torch.tensor(places, dtype=torch.long, device=self._model.device)
        self.cache.batch_select_indices(chosen)
        self._padding = None if self._padding is None else self._padding[chosen]
        self._names = None if self._names is None else [self._names[place] for place in places]

    @contextmanager
    def rewound(self) -> Iterator[None]:
        """Forgets at the end what is read inside: a few columns, never a whole chunk."""
        assert self.cache is not None
        layers: list[Any] = self.cache.layers
        # A sliding layer drops what leaves its window, so it is copied: updates make new tensors.
        sliding = {
            index: copy.copy(layer)
            for index, (layer, slides) in enumerate(zip(layers, self.cache.is_sliding, strict=True))
            if slides
        }
        before = self.columns
        yield
        for index, layer in enumerate(layers):
            if index in sliding:
                layers[index] = sliding[index]
            else:
                layer.crop(before - self.columns)
        self.columns = before

    @contextmanager
    def _ready(self, ids: Tensor) -> Iterator[None]:
        """Inside the context, the model may read `ids`. One context a call: between calls, others may run the model."""
        in_parts = chunk_attention(self._model) if self._in_parts and ids.shape[1] > 1 else nullcontext()
        with self._rope(), in_parts:
            yield

    def _inputs(self, ids: Tensor) -> dict[str, Any]:
        device, end = self._model.device, self.columns + ids.shape[1]
        cache = {cache_name(self._model): self.cache, "use_cache": self.cache is not None}
        inputs = {"input_ids": ids.to(device), **cache}
        # With explicit positions a cache needs no mask of ones, and the library does not look for packed documents.
        if self._padding is None:
            return inputs | {"position_ids": torch.arange(self.columns, end, device=device).expand(len(ids), -1)}
        own = torch.arange(end, device=device) - self._padding[:, None]
        return inputs | {
            "attention_mask": (own >= 0).long(),
            "position_ids": own[:, self.columns :].clamp(min=0),
        }

    def _in_pieces(self, chunk: Tensor, last: int, piece_tokens: int) -> Iterator[Tensor]:
        """One pass through the decoder, then the model's own forward over slices of its output, as in `loss`."""
        decoder: nn.Module = self._model.base_model
        with self._ready(chunk):
            outputs = decoder(**self._inputs(chunk))
        self.columns += chunk.shape[1]
        first = self.columns - last
        for hidden in outputs.last_hidden_state[:, -last:].split(piece_tokens, dim=1):
            with _standing(decoder, type(outputs)(last_hidden_state=hidden)):
                logits = self._model(inputs_embeds=hidden, use_cache=False).logits
            self.check(logits, first)
            first += hidden.shape[1]
            yield logits
            del logits

    def check(self, logits: Tensor, first: int) -> None:
        """Refuses logits (rows, n, vocabulary), of the columns from `first` on, that define no distribution.

        Raises:
            CheckpointError: as `prefill`.
        """
        if self._names is None:
            return
        largest = logits.amax(-1)  # NaN where any is
        if not largest.isfinite().all():
            row, column = (~largest.isfinite()).nonzero()[0].tolist()
            kind = "NaN" if largest[row, column].isnan() else "infinite"
            position = first + column - (0 if self._padding is None else int(self._padding[row]))
            raise CheckpointError(
                f"{self._names[row]}: logits are {kind} at position {position}; {CURE}", page="not-finite"
            )


@contextmanager
def _standing(decoder: nn.Module, outputs: Any) -> Iterator[None]:
    """Inside the context, the decoder returns `outputs` for any input."""
    replaced = decoder.__dict__.get("forward")
    decoder.forward = lambda *_, **__: outputs
    try:
        yield
    finally:
        del decoder.forward
        if replaced is not None:
            decoder.forward = replaced
