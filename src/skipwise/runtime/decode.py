"""Greedy answers to prompts of different lengths, in batches through the KV cache.

Long prompts are prefilled one by one, in chunks, short ones together. Then they are aligned at their ends by unused
columns on the left, and decoded together. Logits are made for the last position only.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from skipwise.runtime.caches import empty_cache
from skipwise.runtime.chunks import chunk_columns, logit_columns
from skipwise.runtime.forward import plain_model
from skipwise.runtime.length_rope import held_length, next_switch, tables_at
from skipwise.runtime.room_cache import RoomCache
from skipwise.runtime.session import Session

# Prompts run together while their tokens, padding and answers included, stay below this.
BATCH_TOKENS = 16384


class _Request(Protocol):
    """A prompt to continue: its token ids, the most new ones (at least 1), and an answer.

    The answer, which is at most as long, ends the output if the model writes it.
    """

    @property
    def prompt_ids(self) -> Sequence[int]: ...
    @property
    def max_new_tokens(self) -> int: ...
    @property
    def answer_ids(self) -> Sequence[int] | None: ...


def greedy_outputs(
    model: Any,
    prompts: Sequence[_Request],
    *,
    eos_ids: Collection[int] = (),
    enough: Callable[[int, list[int]], bool] | None = None,
    where: Callable[[int], str] = "prompt {}".format,
    chunk_tokens: int | None = None,
) -> list[list[int]]:
    """Greedy continuation of each prompt.

    The same tokens as, for each prompt alone::

        model.generate(prompt_ids, do_sample=False, max_new_tokens=max_new_tokens)[len(prompt_ids):]

    up to and without an end token, with two ways to end earlier. A prompt's `answer_ids` are read in one pass; if the
    argmax before each of them is the answer's own token, greedy decoding would write exactly them, and they are the
    output. Otherwise its tokens are generated, from the same prefill. And an output ends when it is `enough`.

    Two deviations, for RoPE that follows the input's length. Where LongRoPE changes its list of frequencies, all tokens
    are read again, so that each token is that of a pass without a cache. Dynamic NTK is that of the prompt and
    `max_new_tokens` from the first token on, so that all keys in the cache are rotated alike and the one pass equals
    decoding; its batches are of equally long inputs.

    Args:
        model: a causal language model of the transformers library, in evaluation mode, with adapters or without.
        prompts: what to continue, in any order of length.
        eos_ids: tokens that end an output.
        enough: called with a prompt's index and its output so far after every token; True ends the output.
        where: name of the prompt with an index, for error messages.
        chunk_tokens: columns of one forward call; by default what suits the device and the rows.

    Raises:
        CheckpointError: a logit is NaN, or the largest of a position infinite.
    """
    model = plain_model(model)
    outputs: list[list[int]] = [[] for _ in prompts]

    def is_enough(row: int, output: list[int]) -> bool:
        return enough is not None and enough(row, output)

    going = list(range(len(prompts)))
    while going:
        parts = {row: _next_part(model, prompts[row], outputs[row]) for row in going}

        def is_done(row: int, output: list[int], parts: dict[int, _Part] = parts) -> bool:
            return is_enough(row, outputs[row] + output) or len(output) == parts[row].max_new_tokens

        for rows in _batches(model, parts):
            batch, likeliest = _prefill(model, {row: parts[row] for row in rows}, where, chunk_tokens)
            written = _written_answers(batch, parts, likeliest)
            written |= _decode(batch, likeliest, set(written), eos_ids, is_done)
            for row, output in written.items():
                outputs[row] += output
                has_ended = len(output) < parts[row].max_new_tokens or len(outputs[row]) == prompts[row].max_new_tokens
                if has_ended or outputs[row] == list(prompts[row].answer_ids or ()) or is_enough(row, outputs[row]):
                    going.remove(row)
    return outputs


def end_token_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end an output: those of the model's generation config and the tokenizer's own."""
    stated = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    own = getattr(tokenizer, "eos_token_id", None)
    stated = stated if isinstance(stated, list) else [stated]
    return frozenset(token for token in (*stated, own) if token is not None)


class _Part(NamedTuple):
    """A request, or as much of one as is read with the same rotary tables; see `_Request`.

    Attributes:
        length: the length whose rotary tables it is read with.
    """

    prompt_ids: Sequence[int]
    max_new_tokens: int
    answer_ids: Sequence[int] | None
    length: int

    @property
    def total_tokens(self) -> int:
        return len(self.prompt_ids) + self.max_new_tokens


def _next_part(model: Any, prompt: _Request, output: Sequence[int]) -> _Part:
    """What follows an output so far."""
    ids = [*prompt.prompt_ids, *output]
    most = prompt.max_new_tokens - len(output)
    if (switch := next_switch(model, len(ids))) is not None:
        most = min(most, switch - len(ids) + 1)
    answer = list(prompt.answer_ids or ())
    rest = answer[len(output) :][:most] if answer[: len(output)] == list(output) else []
    return _Part(ids, most, rest or None, held_length(model, len(ids), len(ids) + most))


def _batches(model: Any, parts: Mapping[int, _Part]) -> Iterator[list[int]]:
    """Rows that run together: alike in length, so that little is padded, and read with the same rotary tables."""
    tables = {row: tables_at(model, part.length) for row, part in parts.items()}
    batch: list[int] = []
    # Longest first: the first of a batch decides its width.
    for row in sorted(parts, key=lambda row: -parts[row].total_tokens):
        widest = parts[batch[0]].total_tokens if batch else 0
        is_full = (len(batch) + 1) * widest > BATCH_TOKENS
        if batch and (is_full or tables[row] != tables[batch[0]]):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


class _Batch(NamedTuple):
    """Rows that are read together: by the caller's index, those that are still there."""

    session: Session
    rows: list[int]
    piece_tokens: int  # columns whose logits are made at a time

    def read(self, ids: Tensor) -> Tensor:
        """Reads `ids` (rows, n), few beside a chunk; returns the likeliest token after each, (rows, n)."""
        pieces = ids.split(self.piece_tokens, dim=1)
        return torch.cat([self.session.step(piece, piece.shape[1]).argmax(-1) for piece in pieces], dim=1)

    def kept(self, places: list[int]) -> "_Batch":
        """The batch with these of its rows alone, by their place among them, in order."""
        if len(places) == len(self.rows):
            return self
        self.session.keep(places)
        return self._replace(rows=[self.rows[place] for place in places])


def _prefill(
    model: Any, parts: Mapping[int, _Part], where: Callable[[int], str], chunk_tokens: int | None
) -> tuple[_Batch, Tensor]:
    """Reads the prompts of one batch; returns it with the likeliest token after each prompt, (rows,)."""
    given, names, rows = [part.prompt_ids for part in parts.values()], list(map(where, parts)), len(parts)
    width, length = max(map(len, given)), max(part.length for part in parts.values())
    cache = empty_cache(model, rows, width + max(part.max_new_tokens for part in parts.values()))
    padding = torch.tensor([width - len(ids) for ids in given], device=model.device)
    session = Session(model, cache, length=length, padding=padding, names=names)
    columns = chunk_tokens or chunk_columns(model, rows)
    logits: list[Tensor] = []
    if width > columns and isinstance(cache, RoomCache):
        # Row by row: nothing is padded, and no chunk of a row needs a mask for what it must not see.
        columns = chunk_tokens or chunk_columns(model, 1, masked=False)
        for place, ids in enumerate(given):
            alone = Session(model, cache.row(place, width - len(ids)), length=length, names=names[place : place + 1])
            logits += alone.prefill(torch.tensor([list(ids)]), chunk_tokens=columns)
        cache.fill(width)
        session.columns = width
    else:
        # Any token will do as padding: it is masked.
        padded = torch.tensor([[0] * (width - len(ids)) + list(ids) for ids in given])
        logits += session.prefill(padded, chunk_tokens=columns)
    batch = _Batch(session, list(parts), logit_columns(model, rows))
    return batch, torch.cat(logits)[:, -1].argmax(-1)


def _written_answers(batch: _Batch, parts: Mapping[int, _Part], likeliest: Tensor) -> dict[int, list[int]]:
    """Answers that greedy decoding would write, by row; the batch, which has read the prompts, is left as it was."""
    answers = [
        list(answer) if (answer := parts[row].answer_ids) and answer[0] == token else []
        for row, token in zip(batch.rows, likeliest.tolist(), strict=True)
    ]
    # The last token is predicted, not read. What pads a shorter row comes after it and changes nothing in it.
    given = [answer[:-1] for answer in answers]
    width = max(map(len, given))
    written: list[list[int]] = [[] for _ in given]
    if width:
        with batch.session.rewound():
            written = batch.read(torch.tensor([ids + [0] * (width - len(ids)) for ids in given])).tolist()
    return {
        row: answer
        for row, answer, ids in zip(batch.rows, answers, written, strict=True)
        if answer and ids[: len(answer) - 1] == answer[1:]
    }


def _decode(
    batch: _Batch,
    likeliest: Tensor,
    finished: Collection[int],
    eos_ids: Collection[int],
    is_done: Callable[[int, list[int]], bool],
) -> dict[int, list[int]]:
    """Outputs of the rows that are not finished, token by token, after the likeliest first ones, (rows,)."""
    outputs: dict[int, list[int]] = {row: [] for row in batch.rows if row not in finished}
    going = [place for place, row in enumerate(batch.rows) if row in outputs]
    batch, likeliest = batch.kept(going), likeliest[going]
    while batch.rows:
        going = []
        for place, (row, token) in enumerate(zip(batch.rows, likeliest.tolist(), strict=True)):
            if token not in eos_ids:
                outputs[row].append(token)
                if not is_done(row, outputs[row]):
                    going.append(place)
        batch, likeliest = batch.kept(going), likeliest[going]
        if going:
            likeliest = batch.read(likeliest[:, None])[:, -1]
    return outputs
