"""Greedy answers to prompts of different lengths, in batches through the KV cache.

Long prompts are prefilled one by one, in chunks, short ones together; then they are aligned at their ends by unused
columns on the left, and decoded together;
logits are made for the last position only. Memory grows with the cache and the chunk, never with `n x vocabulary` nor
`n x n`.
"""

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from skipwise.runtime.attention import chunk_attention
from skipwise.runtime.forward import check_logits, chunk_columns, empty_cache, logit_columns, plain_model
from skipwise.runtime.length_rope import held_length, next_switch, rope_of_length, tables_at
from skipwise.runtime.room_cache import RoomCache

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


@torch.no_grad()
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
    going = list(range(len(prompts)))
    while going:
        parts = {row: _next_part(model, prompts[row], outputs[row]) for row in going}

        def is_done(row: int, output: list[int], parts: dict[int, _Part] = parts) -> bool:
            whole = enough is not None and enough(row, outputs[row] + output)
            return whole or len(output) == parts[row].max_new_tokens

        written: dict[int, list[int]] = {}
        for rows in _batches(model, parts):
            length = max(_held_length(model, parts[row]) for row in rows)
            with rope_of_length(model, length):
                reader = _Reader(model, rows, max(parts[row].max_new_tokens for row in rows), where)
                likeliest = reader.prefill([parts[row].prompt_ids for row in rows], chunk_tokens)
                written |= _written_answers(reader, parts, likeliest)
                written |= _decode(reader, likeliest, set(written), eos_ids, is_done)
        for row, output in written.items():
            outputs[row] += output
        # Those that went as far as their part, and neither to the end nor as far as is enough.
        going = [
            row
            for row in going
            if len(written[row]) == parts[row].max_new_tokens
            and len(outputs[row]) < prompts[row].max_new_tokens
            and outputs[row] != list(prompts[row].answer_ids or ())
            and not (enough is not None and enough(row, outputs[row]))
        ]
    return outputs


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


def _written_answers(reader: "_Reader", prompts: Mapping[int, Request], likeliest: Tensor) -> dict[int, list[int]]:
    """Answers that greedy decoding would write, by row; the reader is left as it was.

    Args:
        reader: has read the prompts.
        prompts: those of all rows.
        likeliest: (rows,), the argmax after each prompt.
    """
    hoped = [
        list(answer) if (answer := prompts[row].answer_ids) and answer[0] == token else []
        for row, token in zip(reader.rows, likeliest.tolist(), strict=True)
    ]
    # The last token is predicted, not read. What fills up a shorter row comes after it and changes nothing in it.
    given = [answer[:-1] for answer in hoped]
    width = max(map(len, given))
    written: list[list[int]] = [[] for _ in given]
    if width:
        with reader.rewound(width):
            written = reader.read(torch.tensor([ids + [0] * (width - len(ids)) for ids in given])).tolist()
    return {
        row: answer
        for row, answer, ids in zip(reader.rows, hoped, written, strict=True)
        if answer and ids[: len(answer) - 1] == answer[1:]
    }


def _decode(
    reader: "_Reader",
    likeliest: Tensor,
    finished: Collection[int],
    eos_ids: Collection[int],
    is_done: Callable[[int, list[int]], bool],
) -> dict[int, list[int]]:
    """Outputs of the reader's rows that are not finished, token by token.

    Args:
        reader: has read the prompts.
        likeliest: (rows,), the argmax after each prompt.
        finished: rows to leave out.
        eos_ids: tokens that end an output.
        is_done: whether a row's output is complete.
    """
    outputs: dict[int, list[int]] = {row: [] for row in reader.rows if row not in finished}
    going = [place for place, row in enumerate(reader.rows) if row in outputs]
    reader.keep(going)
    likeliest = likeliest[going]
    while reader.rows:
        going = []
        for place, (row, token) in enumerate(zip(reader.rows, likeliest.tolist(), strict=True)):
            if token not in eos_ids:
                outputs[row].append(token)
                if not is_done(row, outputs[row]):
                    going.append(place)
        reader.keep(going)
        if going:
            likeliest = reader.read(likeliest[going][:, None])[:, -1]
    return outputs


class _Reader:
    """Rows in a KV cache that end together; the model's argmax after them.

    Args:
        model: a causal language model of the transformers library, in evaluation mode.
        rows: what the caller calls each row.
        max_new_tokens: most that any row is to be continued by.
        where: what a row is, for an error's text.

    Attributes:
        rows: what the caller calls each row that is still there.
    """

    def __init__(self, model: Any, rows: list[int], max_new_tokens: int, where: Callable[[int], str]) -> None:
        self.rows = rows
        self._model, self._where, self._max_new_tokens = model, where, max_new_tokens
        self._columns = 0
        # 1-D, one entry per row: columns of padding on its left.
        self._padding = torch.zeros(len(rows), dtype=torch.long, device=model.device)

    def prefill(self, prompts: Sequence[Sequence[int]], chunk_tokens: int | None) -> Tensor:
        """Reads prompts in chunks.

        Returns:
            (rows,), the token that is likeliest after each.
        """
        width = max(map(len, prompts))
        self._cache = empty_cache(self._model, len(prompts), width + self._max_new_tokens)
        self._padding += torch.tensor([width - len(prompt) for prompt in prompts], device=self._padding.device)
        columns = chunk_tokens or chunk_columns(self._model, len(prompts))
        if width > columns and isinstance(self._cache, RoomCache):
            return self._prefill_rows(self._cache, prompts, width, chunk_tokens)
        # Any token will do as padding: it is masked.
        ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts])
        *earlier, last = ids.split(columns, dim=1)
        no_columns = torch.empty(0, dtype=torch.long, device=self._model.device)
        for chunk in earlier:
            self._forward(chunk, no_columns)
        return self._likeliest(self._forward(last, 1))[:, -1]

    def _prefill_rows(
        self, cache: RoomCache, prompts: Sequence[Sequence[int]], width: int, chunk_tokens: int | None
    ) -> Tensor:
        """Row after row: nothing is padded, and no chunk of a row needs a mask for what it is not to see."""
        device = self._model.device
        no_columns = torch.empty(0, dtype=torch.long, device=device)
        chunk_tokens = chunk_tokens or chunk_columns(self._model, 1, masked=False)
        logits = []
        with chunk_attention(self._model):
            for place, prompt in enumerate(prompts):
                row_cache = cache.row(place, width - len(prompt))
                for start in range(0, len(prompt), chunk_tokens):
                    ids = torch.tensor([list(prompt[start : start + chunk_tokens])], device=device)
                    end = start + ids.shape[1]
                    is_last = end == len(prompt)
                    output = self._model(
                        input_ids=ids,
                        position_ids=torch.arange(start, end, device=device)[None],
                        past_key_values=row_cache,
                        use_cache=True,
                        logits_to_keep=1 if is_last else no_columns,
                    )
                    if is_last:
                        logits.append(output.logits[:, -1:])
        cache.fill(width)
        self._columns = width
        return self._likeliest(torch.cat(logits))[:, -1]

    def read(self, ids: Tensor) -> Tensor:
        """Reads `ids` (rows, n), of any n that is small beside a chunk.

        Returns:
            (rows, n), the token that is likeliest after each.
        """
        pieces = ids.split(logit_columns(self._model, len(self.rows)), dim=1)
        return torch.cat([self._likeliest(self._forward(piece, 0)) for piece in pieces], dim=1)

    def keep(self, places: list[int]) -> None:
        """Goes on with these of its rows, by their place among them, in order."""
        if len(places) == len(self.rows):
            return
        chosen = torch.tensor(places, dtype=torch.long, device=self._padding.device)
        self.rows = [self.rows[place] for place in places]
        self._padding = self._padding[chosen]
        self._cache.batch_select_indices(chosen)

    @contextmanager
    def rewound(self, num_tokens: int) -> Iterator[None]:
        """Forgets, at its end, the `num_tokens` that are read within."""
        # A sliding layer throws away what leaves its window: its few tensors are kept. Updates make new ones.
        sliding = {
            index: copy.copy(layer)
            for index, (layer, slides) in enumerate(zip(self._cache.layers, self._cache.is_sliding, strict=True))
            if slides
        }
        yield
        layers: list[Any] = self._cache.layers
        for index, layer in enumerate(layers):
            if index in sliding:
                layers[index] = sliding[index]
            else:
                layer.crop(-num_tokens)
        self._columns -= num_tokens

    def _forward(self, ids: Tensor, logits_to_keep: int | Tensor) -> Tensor:
        """Logits (rows, columns asked for, vocabulary) of the next columns `ids` (rows, n)."""
        device = self._padding.device
        end = self._columns + ids.shape[1]
        columns = torch.arange(end, device=device) - self._padding[:, None]
        output = self._model(
            input_ids=ids.to(device),
            attention_mask=(columns >= 0).long(),
            position_ids=columns[:, self._columns :].clamp(min=0),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=logits_to_keep,
        )
        self._columns = end
        return output.logits

    def _likeliest(self, logits: Tensor) -> Tensor:
        before = self._columns - logits.shape[1] + 1 - self._padding

        def place(row: int, column: int) -> str:
            return f"after {int(before[row]) + column} tokens"

        check_logits(logits, lambda row: self._where(self.rows[row]), place)
        return logits.argmax(-1)
