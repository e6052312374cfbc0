"""Training items: pure functions of (seed, epoch, index), the same on any number of workers and after any resume.

    permutation of the epoch -> document -> sampler's tokens and positions -> item

Every epoch visits every document once, in its own order and with newly drawn chunks and skips.
"""

from typing import Any, NamedTuple, Protocol

import numpy as np

from skipwise.data.store import TokenStore
from skipwise.data.tokens import ends_of_sentences
from skipwise.data.turns import SkipsAt, Turns, moved_to_turns, plain_ids, window_with_label
from skipwise.errors import DataError
from skipwise.positions import PositionSample, PositionSampler
from skipwise.window import Window

IGNORED_LABEL = -100

_MASK = (1 << 64) - 1
_ROUNDS = 6
# Draws of a window of a conversation before one is made around a label.
_TRIES = 8


class TrainingItem(NamedTuple):
    """One training example; all arrays are 1-D int64 of the same length.

    Attributes:
        input_ids: token ids.
        position_ids: position id of each token.
        labels: token ids, not shifted; -100 where a token is not to be predicted.
        is_sample: whether the item shows a sample of a longer text, so that attention may be diluted
            (`loss.diluted_mask`). False for exercises, whose hidden key is shown in full.
        place: index of the item in the run; -1 outside of a run.
        label_weights: factor of each label in the loss, 1-D float32; None for 1.
    """

    input_ids: np.ndarray
    position_ids: np.ndarray
    labels: np.ndarray
    is_sample: bool = True
    place: int = -1
    label_weights: np.ndarray | None = None


class TrainingItems:
    """The training items of a store, computed on access.

    Args:
        store: documents, each of at least `window.train` tokens.
        sampler: chooses the tokens of a document and their positions.
        window: the three lengths, in tokens.
        seed: seed of all draws, 0 or above.
        mask_joints: masks the label of every token whose predecessor in the item is not its predecessor in the text.
        near_labels: share of the labels that are kept in chunks before the last.
        skips_at: where skips fall in conversations, as in `DataConfig`.

    Raises:
        DataError: a document of the store is shorter than `window.train`.
    """

    def __init__(
        self,
        store: TokenStore,
        sampler: PositionSampler,
        window: Window,
        seed: int,
        mask_joints: bool = True,
        near_labels: float = 1.0,
        skips_at: SkipsAt = "turns",
    ) -> None:
        if store.shortest_tokens < window.train:
            raise DataError(
                f"the shortest document of the store has {store.shortest_tokens} tokens, less than window.train = "
                f"{window.train}; build the store with min_tokens={window.train} or more",
                page="no-long-documents",
            )
        self._store, self._sampler, self._window = store, sampler, window
        self._seed = seed
        self._how: dict[str, Any] = {"mask_joints": mask_joints, "near_labels": near_labels}
        self._skips_at: SkipsAt = skips_at
        self._order = EpochOrder(store.num_documents, seed, 0)

    def __len__(self) -> int:
        """Items per epoch: one for each document."""
        return self._store.num_documents

    def at(self, place: int) -> TrainingItem:
        """The item at a place of a run, counted over all epochs."""
        return self.item(*divmod(place, len(self)))

    def describe(self, place: int) -> dict[str, Any]:
        """The epoch of a place, and the number in the store and name of its document; if joined, of the first one."""
        epoch, index = divmod(place, len(self))
        number = self.document(epoch, index)
        return {"epoch": epoch, "document": number, "name": self._store.names[number]}

    def document_for(self, place: int, rng: np.random.Generator) -> np.ndarray:
        """A random document of the store, as the text that an exercise hides something in."""
        return self._store.document(int(rng.integers(self._store.num_documents)))

    def document(self, epoch: int, index: int) -> int:
        """Index in the store of the document at a place of an epoch."""
        if self._order.epoch != epoch:
            self._order = EpochOrder(len(self), self._seed, epoch)
        return self._order[index]

    def item(self, epoch: int, index: int) -> TrainingItem:
        """Computes one item from only the seed and these two numbers.

        Args:
            epoch: 0 or above.
            index: place in the epoch, 0 to `len - 1`.
        """
        number = self.document(epoch, index)
        entries, rng = self._store.entries(number), generator_of(self._seed, epoch, index)
        made_by = self._store, self._sampler, self._window, rng
        if not self._store.has_turns:
            return item_of(entries, *made_by, **self._how)
        how = {"skips_at": self._skips_at, **self._how}
        return conversation_item(plain_ids(entries), Turns.of(entries), *made_by, **how)


class Tokens(Protocol):
    """What an item needs to know about a store's or stream's tokens."""

    @property
    def separator_id(self) -> int | None:
        """Token between joined documents; None if joining is off."""
        ...

    @property
    def sentence_ends(self) -> np.ndarray:
        """1-D uint8, one entry per token id: `tokens.sentence_end_code`."""
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
    """Makes a training item from a document.

    Args:
        document: 1-D, its token ids, at least `window.train`.
        tokens: the store or stream of the document.
        sampler: chooses its tokens and their positions.
        window: the three lengths, in tokens.
        rng: source of all draws.
        mask_joints: masks the label of every token whose predecessor in the item is not its predecessor in the text.
        near_labels: share of the labels that are kept in chunks before the last.
    """
    sample = _drawn(document, tokens, sampler, window, rng)
    return _shown(document, sample, tokens, rng, mask_joints=mask_joints, near_labels=near_labels)


def conversation_item(
    document: np.ndarray,
    turns: Turns,
    tokens: Tokens,
    sampler: PositionSampler,
    window: Window,
    rng: np.random.Generator,
    *,
    skips_at: SkipsAt = "turns",
    **how: Any,
) -> TrainingItem:
    """Makes a training item from a conversation: labels on the assistant's turns, windows that begin at a turn.

    A window without a label is drawn again; after 8 draws, one is made around a label of the document. Only a document
    without labels, or `near_labels` below 1, leaves an item without any. Its loss is 0.

    Args:
        document: 1-D, its token ids, at least `window.train`.
        turns: of the document.
        tokens, sampler, window, rng: as for `item_of`.
        skips_at: where skips fall: at `turns` that begin near, or `anywhere`.
        how: `mask_joints` and `near_labels`, as for `item_of`.
    """

    def shown(sample: PositionSample) -> TrainingItem:
        item = _shown(document, sample, tokens, rng, **how)
        item.labels[~turns.is_label[sample.token_index]] = IGNORED_LABEL
        # Nothing in the window predicts its first token. Losses are divided by the number of labels.
        item.labels[0] = IGNORED_LABEL
        return item

    def drawn() -> PositionSample:
        sample = _drawn(document, tokens, sampler, window, rng)
        return moved_to_turns(sample, turns.begins, num_tokens=len(document), skips_at=skips_at)

    for _ in range(_TRIES if turns.is_label[1:].any() else 0):
        item = shown(drawn())
        if (item.labels != IGNORED_LABEL).any():
            return item
    return shown(window_with_label(drawn(), turns, rng))


def _drawn(
    document: np.ndarray, tokens: Tokens, sampler: PositionSampler, window: Window, rng: np.random.Generator
) -> PositionSample:
    """The tokens of an item and their positions."""
    if sampler.uses_sentence_ends:
        ends = ends_of_sentences(tokens.sentence_ends[document])
        sample = sampler.sample(len(document), window, rng, sentence_ends=ends)  # type: ignore[call-arg]
    else:
        sample = sampler.sample(len(document), window, rng)
    # A user's sampler may point past the document's end, where slicing would silently shorten the item.
    sample.check_ends(num_tokens=len(document), target=window.target)
    return sample


def _shown(
    document: np.ndarray,
    sample: PositionSample,
    tokens: Tokens,
    rng: np.random.Generator,
    *,
    mask_joints: bool,
    near_labels: float = 1.0,
) -> TrainingItem:
    """The item that shows these tokens at these positions; arguments as for `item_of`."""
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
            # The token after a separator begins another document, so it cannot be predicted.
            labels[1:][input_ids[:-1] == tokens.separator_id] = IGNORED_LABEL
    if near_labels < 1.0:
        jumps = (sample.position_ids[1:] - sample.position_ids[:-1] != 1).nonzero()[0]
        near = labels[: jumps[-1] + 1 if len(jumps) else 0]
        near[rng.random(len(near)) >= near_labels] = IGNORED_LABEL
    return TrainingItem(input_ids, sample.position_ids, labels)


def generator_of(*key: int) -> np.random.Generator:
    """Same as `np.random.default_rng(key)`, faster when all numbers are below 2**32."""
    if max(key) >> 32:
        return np.random.default_rng(key)
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(np.array(key, np.uint32))))  # type: ignore[arg-type]


class EpochOrder:
    """A random permutation of `range(n)`, computed entry by entry in constant memory for any n.

    A Feistel network over pairs (left, right) of numbers below `side = ceil(sqrt(n))`. Each round adds a keyed hash of
    one half to the other. This is invertible, so the network permutes the `side * side` pairs. A result of n or above
    is fed back until it is below n (cycle walking); this happens to about `2 / sqrt(n)` of the entries at most.

    Args:
        n: number of entries.
        seed: seed of the keys.
        epoch: each epoch of a seed has its own permutation.

    Source: Black and Rogaway, "Ciphers with Arbitrary Finite Domains" (2002): cycle walking and the generalized Feistel
    network. The round function is the finalizer of SplitMix64, which suffices as there is no adversary.
    """

    def __init__(self, n: int, seed: int, epoch: int) -> None:
        self.n, self.epoch = n, epoch
        self._side = next(side for side in range(int(n**0.5), n + 2) if side * side >= n)
        # A key of four numbers separates these draws from those of items, whose key is (seed, epoch, index).
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
    """SplitMix64's finalizer: mixes 64 bits."""
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB & _MASK
    return word ^ (word >> 31)
