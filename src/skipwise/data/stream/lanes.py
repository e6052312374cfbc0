"""Lanes of a stream: the place of each, and its next document."""

import hashlib
import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from skipwise.data.documents import PassedOver, is_held_out
from skipwise.data.formats import UnreadableError
from skipwise.data.items import EpochOrder
from skipwise.data.stream.shards import Shards
from skipwise.data.tokens import Encoder, Reading, require_fast
from skipwise.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Separates the random draws of blocks from those of items and exercises.
_BLOCKS = 0xB10C


class Place(NamedTuple):
    """How far a lane has read.

    Attributes:
        epoch: number of complete passes over the corpus.
        turn: index of the current shard among the lane's shards of the epoch.
        row: number of documents of that shard already passed, in their shuffled order.
    """

    epoch: int = 0
    turn: int = 0
    row: int = 0


class Streamed(NamedTuple):
    """A document from a lane.

    Attributes:
        tokens: 1-D, its token ids.
        begins: place of its first text.
        shard: shard of its first text.
        row: row of its first text in that shard, counted from 0.
        after: place after its last text.
    """

    tokens: np.ndarray
    begins: Place
    shard: int
    row: int
    after: Place


class DocumentStream:
    """Training documents by lane and step, tokenized on the fly.

    Args:
        shards: the shards to read.
        tokenizer: the model's own; a fast one.
        lanes: windows per step, over all processes.
        seed: seed of all shuffling.
        buffer: number of consecutive documents of a shard that are shuffled together.
        join: joins a short document with those after it, with a separator token between them, until they are long
            enough.
        held_out_share: share of documents, chosen by their text, that are left out for validation.
        control_tokens: as in `DataConfig`.

    Attributes:
        separator_id: token between joined documents; None if joining is off.
        sentence_ends: 1-D uint8, one entry per token id: `tokens.sentence_end_code`.
        fingerprint: hash of the documents, the tokenizer, and everything that decides their order.

    Raises:
        DataError: the tokenizer is slow, or `join` is on and the tokenizer has no separator token.
    """

    def __init__(
        self,
        shards: Shards,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        lanes: int,
        seed: int,
        buffer: int,
        join: bool = False,
        held_out_share: float = 0.0,
        control_tokens: Reading = "text",
    ) -> None:
        require_fast(tokenizer)
        self._encoder = Encoder(tokenizer, control_tokens)
        self.separator_id = self._encoder.separator_id if join else None
        if join and self.separator_id is None:
            raise DataError(
                "join is on, but the tokenizer has no end or begin token as a separator; turn join off",
                page="unsuitable-tokenizer",
            )
        self._shards, self._num_lanes, self._seed, self._buffer = shards, lanes, seed, buffer
        self._join, self._held_out_share = join, held_out_share
        self.sentence_ends = self._encoder.sentence_ends()
        identity = [shards.fingerprint, self._encoder.fingerprint, lanes, seed, buffer, join, held_out_share]
        self.fingerprint = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
        self._lanes: dict[int, _Lane] = {}
        self._restored: dict[int, Place] = {}
        # The tokenizer releases the GIL, so the next documents are prepared in the background.
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="streaming")

    @property
    def num_shards(self) -> int:
        """Number of shards of the corpus."""
        return len(self._shards)

    def take(self, lane: int, step: int, *, min_tokens: int, passed_over: int = 0) -> Streamed:
        """The next document of a lane.

        Args:
            lane: 0 to `lanes - 1`.
            step: step of the run; must not decrease from call to call of a lane.
            min_tokens: minimum length of the document.
            passed_over: number of documents of the lane to skip first.

        Raises:
            DataError: a whole epoch of the lane has no document as long, or a document cannot be read.
        """
        if lane not in self._lanes:
            self._lanes[lane] = _Lane(self, lane, self._restored.get(lane, Place()))
        moving = self._lanes[lane]
        moving.note(step)
        for _ in range(passed_over):
            moving.next_document(min_tokens)
        found = moving.next_document(min_tokens)
        moving.look_ahead(self._pool, min_tokens)
        return found

    def state(self, step: int) -> dict[str, list[int]]:
        """The place before a step of each lane known to this process, by lane number, as JSON values."""
        places = {**self._restored, **{lane: moving.before(step) for lane, moving in self._lanes.items()}}
        return {str(lane): list(place) for lane, place in sorted(places.items())}

    def counts(self) -> "dict[int, LaneCounts]":
        """Unreadable and empty rows of the first epoch, for each lane of this process."""
        return {lane: moving.counts for lane, moving in self._lanes.items()}

    def restore(self, states: Sequence[Mapping[str, Sequence[int]]]) -> None:
        """Resumes from the states of all processes of a run; if several have a lane, the furthest place is taken."""
        for state in states:
            for lane, numbers in state.items():
                place = Place(*numbers)
                self._restored[int(lane)] = max(place, self._restored.get(int(lane), place))

    def first_of(self, texts: "Iterator[_Text]", min_tokens: int) -> Streamed:
        """The first document among texts that is long enough, or is joined from several.

        Raises:
            DataError: the texts reach the end of an epoch twice without such a document.
        """
        gathered: list[np.ndarray] = []
        first, epochs = _Text(), 0
        for found in texts:
            epochs += found.text is None
            if epochs == 2:
                raise DataError(
                    f"no document in a whole epoch of one of {self._num_lanes} lanes has {min_tokens} tokens; "
                    "join short documents (data.join: true), lower data.min_tokens, or give more documents",
                    page="no-long-documents",
                )
            if isinstance(found.text, UnreadableError):
                if not self._shards.skip_unreadable:
                    raise DataError(f"{found.text}; or skip such rows with --set data.skip_unreadable=true") from None
                continue
            if found.text is None or not is_of_part(found.text, self._held_out_share, held_out=False):
                continue
            ids = self._encoder.encode([found.text])[0]
            if not self._join:
                gathered = []
            first = first if gathered else found
            gathered.append(ids)
            if tokens_of(gathered) >= min_tokens:
                return Streamed(together(gathered, self._encoder), first.begins, first.shard, first.row, found.after)
        raise AssertionError("a lane has no end")

    def texts(self, lane: int, place: Place) -> "Iterator[_Text]":
        """All texts of a lane from a place on, without end; an empty `_Text` marks the end of each epoch."""
        epoch, turn, row = place
        while True:
            shards, share, shares = self._of_lane(lane, epoch)
            while turn < len(shards):
                yield from self._of_shard(epoch, turn, shards[turn], row, share, shares)
                turn, row = turn + 1, 0
            epoch, turn = epoch + 1, 0
            yield _Text()

    def _of_lane(self, lane: int, epoch: int) -> tuple[Sequence[int], int, int]:
        """The shards of a lane in an epoch, the index of its share of their documents, and the number of shares."""
        shards, lanes = len(self._shards), self._num_lanes
        order = EpochOrder(shards, self._seed, epoch)
        places = range(lane % shards, shards, lanes)
        return _OrderEntries(order, places), lane // shards, len(range(lane % shards, lanes, shards))

    def _of_shard(self, epoch: int, turn: int, shard: int, row: int, share: int, shares: int) -> "Iterator[_Text]":
        """A lane's texts of a shard, block by block; each block is shuffled."""
        block = row // self._buffer
        for lines in self._shards.blocks(shard, block * self._buffer, self._buffer):
            rng = np.random.default_rng((self._seed, _BLOCKS, epoch, shard, block))
            first = block * self._buffer
            order = enumerate(rng.permutation(len(lines)).tolist(), start=first)
            # Kept as UTF-8: a single non-Latin character makes a str take two or four bytes per character.
            own = deque(
                (nth, line, _packed(lines[line])) for nth, line in order if nth >= row and nth % shares == share
            )
            lines.clear()
            while own:
                nth, line, text = own.popleft()
                begins, after = Place(epoch, turn, nth), Place(epoch, turn, nth + 1)
                yield _Text(_unpacked(text), begins, shard, first + line, after)
            block += 1


def _packed(text: str | UnreadableError) -> bytes | UnreadableError:
    return text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text


def _unpacked(text: bytes | UnreadableError) -> str | UnreadableError:
    return text.decode("utf-8", "surrogatepass") if isinstance(text, bytes) else text


class _Text(NamedTuple):
    """A text of a lane, with its place, its shard and row, and the place after it.

    `text` is the error for an unreadable text, and None at the end of an epoch.
    """

    text: str | UnreadableError | None = None
    begins: Place = Place()
    shard: int = 0
    row: int = 0
    after: Place = Place()


@dataclass(slots=True)
class LaneCounts:
    """Counts of a lane's unusable rows in the first epoch, which has every row once.

    Attributes:
        up_to: place up to which rows are counted, by this process or before a resume; earlier rows count only once.
        unreadable: unreadable rows.
        empty: null rows and rows of only white space.
    """

    up_to: Place
    unreadable: PassedOver = field(default_factory=PassedOver)
    empty: int = 0

    def count(self, found: _Text) -> None:
        """Counts a text, unless it was counted before."""
        if found.after <= self.up_to:
            return
        self.up_to = found.after
        if found.begins.epoch or found.text is None:
            return
        if isinstance(found.text, UnreadableError):
            self.unreadable.add(found.text)
        elif not found.text.strip():
            self.empty += 1


class _Lane:
    """A lane: its place, its places before the last steps, and its next document."""

    def __init__(self, stream: DocumentStream, number: int, at: Place) -> None:
        self._stream, self._number, self._at = stream, number, at
        self.counts = LaneCounts(up_to=at)
        # The place read up to: one document past the lane's own place while reading ahead.
        self._texts, self._read_up_to = self._counted(stream.texts(number, at)), at
        self._ahead: tuple[int, Future[Streamed]] | None = None
        self._before: dict[int, Place] = {}

    def next_document(self, min_tokens: int) -> Streamed:
        """Moves to the next document of at least `min_tokens` tokens, and returns it."""
        ahead, self._ahead = self._ahead, None
        # Always wait for the search ahead, as two must not read at once; drop its result if the length differs.
        found = ahead[1].result() if ahead is not None else None
        if found is None or ahead is None or ahead[0] != min_tokens:
            found = self._next(min_tokens)
        self._at = found.after
        return found

    def look_ahead(self, pool: ThreadPoolExecutor, min_tokens: int) -> None:
        """Starts searching for the next document in a thread."""
        self._ahead = min_tokens, pool.submit(self._next, min_tokens)

    def _next(self, min_tokens: int) -> Streamed:
        if self._read_up_to != self._at:
            self._texts = self._counted(self._stream.texts(self._number, self._at))
        found = self._stream.first_of(self._texts, min_tokens)
        self._read_up_to = found.after
        return found

    def _counted(self, texts: Iterator[_Text]) -> Iterator[_Text]:
        """Passes the texts through, and counts them."""
        for found in texts:
            self.counts.count(found)
            yield found

    def note(self, step: int) -> None:
        """Records the place before a step; forgets steps for which no checkpoint can be written any more."""
        self._before.setdefault(step, self._at)
        # The data loader is at most one step ahead of training.
        self._before = {old: place for old, place in self._before.items() if old >= step - 1}

    def before(self, step: int) -> Place:
        """The place before a step; documents taken since then are not trained on yet."""
        return next((place for noted, place in sorted(self._before.items()) if noted >= step), self._at)


class _OrderEntries(Sequence[int]):
    """The entries of an order at some places, computed on access."""

    def __init__(self, order: EpochOrder, places: range) -> None:
        self._order, self._places = order, places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        return self._order[self._places[index]]


def is_of_part(text: str, held_out_share: float, *, held_out: bool) -> bool:
    """Whether a text is in the held-out or the training split; a text of only white space is in neither."""
    text = text.strip()
    return bool(text) and is_held_out(text, held_out_share) == held_out


def tokens_of(pieces: Sequence[np.ndarray]) -> int:
    """Number of tokens of the joined documents, separators included."""
    return sum(map(len, pieces)) + len(pieces) - 1


def together(pieces: Sequence[np.ndarray], encoder: Encoder) -> np.ndarray:
    """The documents joined, with a separator token between them."""
    separator = np.array([encoder.separator_id or 0], encoder.dtype)
    return np.concatenate([part for piece in pieces for part in (separator, piece)][1:])
