"""Training items: pure functions of (seed, epoch, index), the same on any number of workers and after any resume.

    permutation of the epoch -> document -> sampler's tokens and positions -> item

Every epoch visits every document once, in an order of its own, with chunks and skips drawn anew.
"""

from typing import NamedTuple, Protocol

import numpy as np

from skipwise.data.store import TokenStore
from skipwise.errors import DataError
from skipwise.positions import PositionSampler
from skipwise.window import Window

IGNORED_LABEL = -100

_MASK = (1 << 64) - 1
_ROUNDS = 6


class TrainingItem(NamedTuple):
    """One example, all arrays 1-D int64 of the same length.

    Attributes:
        input_ids: token ids.
        position_ids: the position that each token is given.
        labels: the token ids again, not shifted, -100 where a token is not to be predicted.
        is_sample: whether the text shown is a sample of all that could stand there, so that its attention may be
            diluted; the key of an exercise is all there is.
        place: where it stands in a run; -1 outside of one.
    """

    input_ids: np.ndarray
    position_ids: np.ndarray
    labels: np.ndarray
    is_sample: bool = True
    place: int = -1


class TrainingItems:
    """The training examples of a store, computed when they are asked for.

    Args:
        store: documents, each of at least `window.train` tokens.
        sampler: chooses the tokens of a document and their positions.
        window: the three lengths, in tokens.
        seed: source of every draw, 0 or above.
        mask_joints: masks the label of every token whose predecessor in the item is not its predecessor in the text.
        near_labels: share of the labels that are kept in chunks before the last.

    Raises:
        DataError: when a document of the store is shorter than `window.train`.
    """

    def __init__(
        self,
        store: TokenStore,
        sampler: PositionSampler,
        window: Window,
        seed: int,
        mask_joints: bool = True,
        near_labels: float = 1.0,
    ) -> None:
        if store.shortest_tokens < window.train:
            raise DataError(
                f"the shortest document of the store has {store.shortest_tokens} tokens, less than window.train = "
                f"{window.train}; build the store with min_tokens={window.train} or more"
            )
        self._store, self._sampler, self._window = store, sampler, window
        self._seed, self._how = seed, {"mask_joints": mask_joints, "near_labels": near_labels}
        self._order = EpochOrder(store.num_documents, seed, 0)

    def __len__(self) -> int:
        """Items of one epoch: one for each document."""
        return self._store.num_documents

    def at(self, place: int) -> TrainingItem:
        """The item at a place in a run that goes through epoch after epoch."""
        return self.item(*divmod(place, len(self)))

    def describe(self, place: int) -> dict[str, int]:
        """Epoch of a place in a run, and its document's number in the store."""
        epoch, index = divmod(place, len(self))
        return {"epoch": epoch, "document": self.document(epoch, index)}

    def document_for(self, place: int, rng: np.random.Generator) -> np.ndarray:
        """Any document of the store, to hide something in."""
        return self._store.document(int(rng.integers(self._store.num_documents)))

    def document(self, epoch: int, index: int) -> int:
        """Which document of the store stands at a place of an epoch."""
        if self._order.epoch != epoch:
            self._order = EpochOrder(len(self), self._seed, epoch)
        return self._order[index]

    def item(self, epoch: int, index: int) -> TrainingItem:
        """Computes one item from nothing but the seed and these two numbers.

        Args:
            epoch: 0 or above.
            index: place in the epoch, 0 to `len - 1`.
        """
        document = self._store.document(self.document(epoch, index))
        rng = generator_of(self._seed, epoch, index)
        return item_of(document, self._store, self._sampler, self._window, rng, **self._how)


class Tokens(Protocol):
    """What is known of tokens beside the documents that they make."""

    @property
    def separator_id(self) -> int | None:
        """Token between joined documents, None where none are joined."""
        ...

    @property
    def sentence_ends(self) -> np.ndarray:
        """1-D bool, one entry per token id: whether its text ends a sentence."""
        ...


def item_of(
    document: np.ndarray,
    tokens: Tokens,
    sampler: PositionSampler,
    window: Window,
    rng: np.random.Generator,
    *,
    mask_joints: bool,
    near_labels: float = 1.0,
) -> TrainingItem:
    """Makes an item of a document.

    Args:
        document: 1-D, its token ids, at least `window.train`.
        tokens: the store or stream that it is from.
        sampler: chooses its tokens and their positions.
        window: the three lengths, in tokens.
        rng: source of every draw.
        mask_joints: masks the label of every token whose predecessor in the item is not its predecessor in the text.
        near_labels: share of the labels that are kept in chunks before the last.
    """
    if sampler.uses_sentence_ends:
        ends = tokens.sentence_ends[document]
        sample = sampler.sample(len(document), window, rng, sentence_ends=ends)  # type: ignore[call-arg]
    else:
        sample = sampler.sample(len(document), window, rng)
    # A sampler from outside need not have looked at the document's end, beyond which a slice would be cut off.
    sample.check_ends(num_tokens=len(document), target=window.target)
    chosen = sample.token_index
    first, last = int(chosen[0]), int(chosen[-1])
    in_one_piece = last - first == len(chosen) - 1
    text = document[first : last + 1] if in_one_piece else document.take(chosen)
    input_ids = text.astype(np.int64)
    labels = input_ids.copy()
    if mask_joints:
        if not in_one_piece:
            labels[(chosen[1:] - chosen[:-1] != 1).nonzero()[0] + 1] = IGNORED_LABEL
        if tokens.separator_id is not None:
            # In a joined document the separator is the last token of its text; what follows is another's beginning.
            labels[1:][input_ids[:-1] == tokens.separator_id] = IGNORED_LABEL
    if near_labels < 1.0:
        jumps = (sample.position_ids[1:] - sample.position_ids[:-1] != 1).nonzero()[0]
        near = labels[: jumps[-1] + 1 if len(jumps) else 0]
        near[rng.random(len(near)) >= near_labels] = IGNORED_LABEL
    return TrainingItem(input_ids, sample.position_ids, labels)


def generator_of(*key: int) -> np.random.Generator:
    """`np.random.default_rng(key)`, sooner where each number is one word of 32 bits, as numpy need not cut it."""
    if max(key) >> 32:
        return np.random.default_rng(key)
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(np.array(key, np.uint32))))  # type: ignore[arg-type]


class EpochOrder:
    """A random order of `range(n)` that is computed entry by entry, so that n may be any size at no cost.

    A Feistel network over pairs (left, right) of numbers below `side = ceil(sqrt(n))`: each round adds a keyed hash
    of one half to the other, which can be undone, so it permutes the `side * side` pairs; who lands at n or above walks
    on until below it, which happens to about `2 / sqrt(n)` of the entries at most.

    Args:
        n: number of entries.
        seed: source of the keys.
        epoch: which order of this seed.

    Source: Black and Rogaway, "Ciphers with Arbitrary Finite Domains" (2002): cycle walking and the generalized Feistel
    network. The round function is the finalizer of SplitMix64, as no adversary is to be kept out.
    """

    def __init__(self, n: int, seed: int, epoch: int) -> None:
        self.n, self.epoch = n, epoch
        self._side = next(side for side in range(int(n**0.5), n + 2) if side * side >= n)
        # Four words keep these draws apart from those of every item (seed, epoch, index).
        state = np.random.SeedSequence((seed, epoch, 0, 1)).generate_state(_ROUNDS, np.uint64)
        self._keys = [int(key) for key in state]

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> int:
        if not 0 <= index < self.n:
            raise IndexError(f"index {index} of an epoch with {self.n} items")
        side = self._side
        while True:
            left, right = divmod(index, side)
            for key in self._keys:
                left, right = right, (left + _mixed(right ^ key)) % side
            index = left * side + right
            if index < self.n:
                return index


def _mixed(word: int) -> int:
    """SplitMix64's finalizer: 64 bits in, 64 well mixed bits out."""
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB & _MASK
    return word ^ (word >> 31)
