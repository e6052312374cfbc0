"""Greedy answers to prompts of different lengths, in batches through the KV cache.

Long prompts are prefilled one by one, in chunks, short ones together; then they are aligned at their ends by unused
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


class Request(Protocol):
    """What is to be continued."""

    @property
    def prompt_ids(self) -> Sequence[int]:
        """Token ids of the prompt."""
        ...

    @property
    def max_new_tokens(self) -> int:
        """Tokens to generate at most, at least 1."""
        ...

    @property
    def answer_ids(self) -> Sequence[int] | None:
        """A continuation that settles the matter if the model writes it, at most `max_new_tokens` long; or None."""
        ...


def greedy_outputs(
    model: Any,
    prompts: Sequence[Request],
    *,
    eos_ids: Collection[int] = (),
    enough: Callable[[int, list[int]], bool] | None = None,
    where: Callable[[int], str] = "prompt {}".format,
    chunk_tokens: int | None = None,
) -> list[list[int]]:
    """Greedy continuation of each prompt.

    The same tokens as, for each prompt alone::

        model.generate(prompt_ids, do_sample=False, max_new_tokens=max_new_tokens)[len(prompt_ids):]

    up to and without an end token, with two ways to be done earlier. A prompt with `answer_ids` is given them in one
    pass; when the argmax at each of them is the answer's own token, greedy decoding would write exactly them, and they
    are the output. Otherwise its tokens are generated, from the same prefill. And an output that is `enough` ends.

    Two deviations, for RoPE that follows the input's length. Where LongRoPE changes its list of frequencies, all tokens
    are read anew, so that each token is that of a pass without a cache. Dynamic NTK is that of prompt and
    `max_new_tokens` from the first token on, so that all keys in the cache are rotated alike and the one pass means the
    same as decoding; its batches are of equally long inputs.

    Args:
        model: a causal language model of the transformers library, in evaluation mode, with adapters or without.
        prompts: what to continue, in any order of length.
        eos_ids: tokens that end an output.
        enough: called with a prompt's index and its output so far after every token; True ends it there.
        where: what the prompt of an index is, for an error's text.
        chunk_tokens: columns of one forward call; by default what suits the device and the rows.

    Returns:
        Token ids for each prompt.

    Raises:
        CheckpointError: when a logit is NaN, or the largest of a position infinite.
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

        for row, output in _write(model, parts, eos_ids, is_done, where, chunk_tokens).items():
            outputs[row] += output
            ended = len(output) < parts[row].max_new_tokens or len(outputs[row]) == prompts[row].max_new_tokens
            if ended or outputs[row] == list(prompts[row].answer_ids or ()) or is_enough(row, outputs[row]):
                going.remove(row)
    return outputs


def _write(
    model: Any,
    parts: Mapping[int, "_Part"],
    eos_ids: Collection[int],
    is_done: Callable[[int, list[int]], bool],
    where: Callable[[int], str],
    chunk_tokens: int | None,
) -> dict[int, list[int]]:
    """What follows each part, by row, in batches; arguments as of `greedy_outputs` and `_decode`."""
    written: dict[int, list[int]] = {}
    for rows in _batches(model, parts):
        length = max(_held_length(model, parts[row]) for row in rows)
        batch, likeliest = _prefill(model, {row: parts[row] for row in rows}, length, where, chunk_tokens)
        written |= _written_answers(batch, parts, likeliest)
        written |= _decode(batch, likeliest, set(written), eos_ids, is_done)
    return written


class _Part(NamedTuple):
    """A request, or as much of one as is read with the same rotary tables; see `Request`."""

    prompt_ids: Sequence[int]
    max_new_tokens: int
    answer_ids: Sequence[int] | None


def _next_part(model: Any, prompt: Request, output: Sequence[int]) -> _Part:
    """What follows an output so far."""
    ids = [*prompt.prompt_ids, *output]
    most = prompt.max_new_tokens - len(output)
    if (switch := next_switch(model, len(ids))) is not None:
        most = min(most, switch - len(ids) + 1)
    hoped = list(prompt.answer_ids or ())
    rest = hoped[len(output) :][:most] if hoped[: len(output)] == list(output) else []
    return _Part(ids, most, rest or None)


def _held_length(model: Any, part: Request) -> int:
    return held_length(model, len(part.prompt_ids), _num_tokens(part))


def end_token_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end an output: those of the model's generation settings and the tokenizer's own."""
    settings = getattr(model, "generation_config", None)
    stated = getattr(settings, "eos_token_id", None)
    own = getattr(tokenizer, "eos_token_id", None)
    stated = stated if isinstance(stated, list) else [stated]
    return frozenset(token for token in (*stated, own) if token is not None)


def _num_tokens(prompt: Request) -> int:
    return len(prompt.prompt_ids) + prompt.max_new_tokens


def _batches(model: Any, prompts: Mapping[int, Request]) -> Iterator[list[int]]:
    """Prompts that run together: alike in length, so that little is padded, and read with the same rotary tables."""
    tables = {row: tables_at(model, _held_length(model, prompt)) for row, prompt in prompts.items()}
    batch: list[int] = []
    # From the longest down: the first of a batch decides its width.
    for row in sorted(prompts, key=lambda row: -_num_tokens(prompts[row])):
        widest = _num_tokens(prompts[batch[0]]) if batch else 0
        full = (len(batch) + 1) * widest > BATCH_TOKENS
        if batch and (full or tables[row] != tables[batch[0]]):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


class _Batch(NamedTuple):
    """Rows that are read together.

    Attributes:
        session: has read them.
        rows: what the caller calls each that is still there.
        piece_tokens: columns whose logits are made at a time.
    """

    session: Session
    rows: list[int]
    piece_tokens: int

    def read(self, ids: Tensor) -> Tensor:
        """Reads `ids` (rows, n), few beside a chunk; the token that is likeliest after each, (rows, n)."""
        pieces = ids.split(self.piece_tokens, dim=1)
        return torch.cat([self.session.step(piece, piece.shape[1]).argmax(-1) for piece in pieces], dim=1)

    def kept(self, places: list[int]) -> "_Batch":
        """What is left when it goes on with these of its rows, by their place among them, in order."""
        if len(places) == len(self.rows):
            return self
        self.session.keep(places)
        return self._replace(rows=[self.rows[place] for place in places])


def _prefill(
    model: Any,
    prompts: Mapping[int, Request],
    length: int,
    where: Callable[[int], str],
    chunk_tokens: int | None,
) -> tuple[_Batch, Tensor]:
    """Reads the prompts of one batch.

    Args:
        model: that reads them.
        prompts: by what the caller calls each row.
        length: whose rotary tables they are read with.
        where: what a row is, for an error's text.
        chunk_tokens: columns of one pass; None for what suits.

    Returns:
        The batch, and the token that is likeliest after each prompt, (rows,).
    """
    given, names, rows = [prompt.prompt_ids for prompt in prompts.values()], list(map(where, prompts)), len(prompts)
    width = max(map(len, given))
    cache = empty_cache(model, rows, width + max(prompt.max_new_tokens for prompt in prompts.values()))
    padding = torch.tensor([width - len(ids) for ids in given], device=model.device)
    session = Session(model, cache, length=length, padding=padding, names=names)
    columns = chunk_tokens or chunk_columns(model, rows)
    logits: list[Tensor] = []
    if width > columns and isinstance(cache, RoomCache):
        # Row after row: nothing is padded, and no chunk of a row needs a mask for what it is not to see.
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
    batch = _Batch(session, list(prompts), logit_columns(model, rows))
    return batch, torch.cat(logits)[:, -1].argmax(-1)


def _written_answers(batch: _Batch, prompts: Mapping[int, Request], likeliest: Tensor) -> dict[int, list[int]]:
    """Answers that greedy decoding would write, by row; the batch is left as it was.

    Args:
        batch: has read the prompts.
        prompts: those of all rows.
        likeliest: (rows,), the argmax after each prompt.
    """
    hoped = [
        list(answer) if (answer := prompts[row].answer_ids) and answer[0] == token else []
        for row, token in zip(batch.rows, likeliest.tolist(), strict=True)
    ]
    # The last token is predicted, not read. What fills up a shorter row comes after it and changes nothing in it.
    given = [answer[:-1] for answer in hoped]
    width = max(map(len, given))
    written: list[list[int]] = [[] for _ in given]
    if width:
        with batch.session.rewound():
            written = batch.read(torch.tensor([ids + [0] * (width - len(ids)) for ids in given])).tolist()
    return {
        row: answer
        for row, answer, ids in zip(batch.rows, hoped, written, strict=True)
        if answer and ids[: len(answer) - 1] == answer[1:]
    }


def _decode(
    batch: _Batch,
    likeliest: Tensor,
    finished: Collection[int],
    eos_ids: Collection[int],
    is_done: Callable[[int, list[int]], bool],
) -> dict[int, list[int]]:
    """Outputs of the batch's rows that are not finished, token by token.

    Args:
        batch: has read the prompts.
        likeliest: (rows,), the argmax after each prompt.
        finished: rows to leave out.
        eos_ids: tokens that end an output.
        is_done: whether a row's output is complete.
    """
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
