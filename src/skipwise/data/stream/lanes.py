"""Lanes of a stream: where each stands, and what comes next in it."""

import hashlib
import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from skipwise.data.documents import PassedOver
from skipwise.data.formats import UnreadableError
from skipwise.data.items import EpochOrder
from skipwise.data.stream.parts import is_of_part, together, tokens_of
from skipwise.data.stream.shards import Shards
from skipwise.data.tokens import Encoder, Reading, require_fast
from skipwise.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Keeps the draws of blocks apart from those of items and exercises.
_BLOCKS = 0xB10C


class Place(NamedTuple):
    """Where a lane stands.

    Attributes:
        epoch: which time it goes through the corpus.
        turn: which of its shards of the epoch it reads.
        row: how many documents of that shard it has passed, in their shuffled order.
    """

    epoch: int = 0
    turn: int = 0
    row: int = 0


class Streamed(NamedTuple):
    """A document that a lane came to.

    Attributes:
        tokens: 1-D, its token ids.
        begins: place of its first text.
        shard: that this is from.
        row: of that shard, counted from 0.
        after: place behind its last text.
    """

    tokens: np.ndarray
    begins: Place
    shard: int
    row: int
    after: Place


class DocumentStream:
    """Documents by lane and step, tokenized as they come.

    Args:
        shards: where they are read.
        tokenizer: the model's own, a fast one.
        lanes: windows of a step, over all processes.
        seed: source of every order.
        buffer: documents of a shard that are shuffled together.
        join: joins a document that is too short with those after it, a separator token between, until both are long
            enough.
        held_out_share: share of documents, told apart by their text, that are left to validation.
        control_tokens: as in `DataConfig`.

    Attributes:
        separator_id: token between joined documents, None where none are joined.
        sentence_ends: 1-D bool, one entry per token id: whether its text ends a sentence.
        fingerprint: hash of documents, tokenizer, and what decides their order.

    Raises:
        DataError: join is on and the tokenizer has no token to put between, or is a slow one.
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
            raise DataError("join is on and the tokenizer has no end or begin token to put between; leave join off")
        self._shards, self._num_lanes, self._seed, self._buffer = shards, lanes, seed, buffer
        self._join, self._held_out_share = join, held_out_share
        self.sentence_ends = self._encoder.sentence_ends()
        identity = [shards.fingerprint, self._encoder.fingerprint, lanes, seed, buffer, join, held_out_share]
        self.fingerprint = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
        self._lanes: dict[int, _Lane] = {}
        self._restored: dict[int, Place] = {}
        # The tokenizer works outside Python's lock, so the next documents are ready when they are asked for.
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="streaming")

    @property
    def num_shards(self) -> int:
        """Shards of the corpus."""
        return len(self._shards)

    def take(self, lane: int, step: int, *, min_tokens: int, passed_over: int = 0) -> Streamed:
        """The next document of a lane.

        Args:
            lane: which one, 0 to `lanes - 1`.
            step: of the run; no lower than any that the lane was asked for before.
            min_tokens: how long it must be.
            passed_over: so many documents of the lane are left out first.

        Raises:
            DataError: a whole epoch of the lane has no document as long, or one cannot be read.
        """
        if lane not in self._lanes:
            self._lanes[lane] = _Lane(self, lane, self._restored.get(lane, Place()))
        moving = self._lanes[lane]
        moving.note(step)
        for _ in range(passed_over):
            moving.go_on(min_tokens)
        found = moving.go_on(min_tokens)
        moving.look_ahead(self._pool, min_tokens)
        return found

    def state(self, step: int) -> dict[str, list[int]]:
        """Where each lane that is known here stood before a step, by its number, ready for JSON."""
        places = {**self._restored, **{lane: moving.before(step) for lane, moving in self._lanes.items()}}
        return {str(lane): list(place) for lane, place in sorted(places.items())}

    def counts(self) -> "dict[int, LaneCounts]":
        """What the lanes that are known here have come to in the first epoch that gives nothing to train on."""
        return {lane: moving.counts for lane, moving in self._lanes.items()}

    def restore(self, states: Sequence[Mapping[str, Sequence[int]]]) -> None:
        """Goes on from the states of all processes of a run; of a lane that several know the furthest counts."""
        for state in states:
            for lane, numbers in state.items():
                place = Place(*numbers)
                self._restored[int(lane)] = max(place, self._restored.get(int(lane), place))

    def first_of(self, texts: "Iterator[_Text]", min_tokens: int) -> Streamed:
        """The first document among texts that is long enough, or several joined.

        Raises:
            DataError: they come to the end of an epoch for the second time without one.
        """
        gathered: list[np.ndarray] = []
        first, epochs = _Text(), 0
        for found in texts:
            epochs += found.text is None
            if epochs == 2:
                raise DataError(
                    f"no document in a whole epoch of one of {self._num_lanes} lanes has {min_tokens} tokens; "
                    "join short documents (data.join: true), lower data.min_tokens, or give more documents"
                )
            if isinstance(found.text, UnreadableError):
                if not self._shards.skip_unreadable:
                    raise DataError(
                        f"{found.text}; or go on without such rows by data.skip_unreadable: true (--skip-unreadable)"
                    ) from None
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
        """All texts of a lane from a place on, for ever; None stands at the end of each epoch."""
        epoch, turn, row = place
        while True:
            shards, share, shares = self._of_lane(lane, epoch)
            while turn < len(shards):
                yield from self._of_shard(epoch, turn, shards[turn], row, share, shares)
                turn, row = turn + 1, 0
            epoch, turn = epoch + 1, 0
            yield _Text()

    def _of_lane(self, lane: int, epoch: int) -> tuple[Sequence[int], int, int]:
        """The shards of a lane in an epoch, which share of their documents is its own, and of how many shares."""
        shards, lanes = len(self._shards), self._num_lanes
        order = EpochOrder(shards, self._seed, epoch)
        places = range(lane % shards, shards, lanes)
        return _Looked(order, places), lane // shards, len(range(lane % shards, lanes, shards))

    def _of_shard(self, epoch: int, turn: int, shard: int, row: int, share: int, shares: int) -> "Iterator[_Text]":
        """The texts of a shard that are a lane's own, block by block, each shuffled."""
        block = row // self._buffer
        for lines in self._shards.blocks(shard, block * self._buffer, self._buffer):
            rng = np.random.default_rng((self._seed, _BLOCKS, epoch, shard, block))
            first = block * self._buffer
            order = enumerate(rng.permutation(len(lines)).tolist(), start=first)
            # As bytes: one sign outside Latin makes a str two or four times as long.
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
    """A text with its place in a lane, its shard and row, and the place behind; without one, the end of an epoch.

    In the place of a text that cannot be read is the error.
    """

    text: str | UnreadableError | None = None
    begins: Place = Place()
    shard: int = 0
    row: int = 0
    after: Place = Place()


@dataclass(slots=True)
class LaneCounts:
    """Rows of a lane that give nothing to train on: those of the first epoch, which has each of them once.

    Attributes:
        up_to: the lane has been counted up to here, by whichever process; what comes again is not counted again.
        unreadable: what could not be read.
        empty: rows of nothing but spaces, null ones among them.
    """

    up_to: Place
    unreadable: PassedOver = field(default_factory=PassedOver)
    empty: int = 0

    def count(self, found: _Text) -> None:
        """Takes note of what the lane has come to."""
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
    """Where a lane stands, where it stood before the last steps, and what comes next in it."""

    def __init__(self, stream: DocumentStream, number: int, at: Place) -> None:
        self._stream, self._number, self._at = stream, number, at
        self.counts = LaneCounts(up_to=at)
        # Read up to here: one document further than where the lane stands, while the next is looked for.
        self._texts, self._read_up_to = self._counted(stream.texts(number, at)), at
        self._ahead: tuple[int, Future[Streamed]] | None = None
        self._before: dict[int, Place] = {}

    def go_on(self, min_tokens: int) -> Streamed:
        """Comes to the next document of so many tokens."""
        ahead, self._ahead = self._ahead, None
        # Whatever is looked for is waited for, as two must not read at once; of another length it is of no use.
        found = ahead[1].result() if ahead is not None else None
        if found is None or ahead is None or ahead[0] != min_tokens:
            found = self._next(min_tokens)
        self._at = found.after
        return found

    def look_ahead(self, pool: ThreadPoolExecutor, min_tokens: int) -> None:
        """Has a thread look for the document behind."""
        self._ahead = min_tokens, pool.submit(self._next, min_tokens)

    def _next(self, min_tokens: int) -> Streamed:
        if self._read_up_to != self._at:
            self._texts = self._counted(self._stream.texts(self._number, self._at))
        found = self._stream.first_of(self._texts, min_tokens)
        self._read_up_to = found.after
        return found

    def _counted(self, texts: Iterator[_Text]) -> Iterator[_Text]:
        """The texts, counted as they come."""
        for found in texts:
            self.counts.count(found)
            yield found

    def note(self, step: int) -> None:
        """Keeps the place before a step; those of steps that no checkpoint can be of any more are forgotten."""
        self._before.setdefault(step, self._at)
        # A loader is at most one step ahead of what is trained.
        self._before = {old: place for old, place in self._before.items() if old >= step - 1}

    def before(self, step: int) -> Place:
        """Where it stood before a step: what it has been asked for since is not done yet."""
        return next((place for noted, place in sorted(self._before.items()) if noted >= step), self._at)


class _Looked(Sequence[int]):
    """Entries of an order at some places, looked up as they are asked for."""

    def __init__(self, order: EpochOrder, places: range) -> None:
        self._order, self._places = order, places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        return self._order[self._places[index]]
