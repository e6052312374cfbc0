"""Turns of conversations: which tokens are learned, and windows and skips that begin at a turn.

A conversation is a document of the token store whose entries carry two flags beside the token id. The assistant's
tokens are labels; everything else is context.
"""

from typing import Literal, NamedTuple

import numpy as np

from skipwise.positions import PositionSample

LABEL = np.uint32(1 << 31)
"""Flag of an entry: the token is a label."""
TURN = np.uint32(1 << 30)
"""Flag of an entry: a turn begins at the token."""
_IDS = np.uint32((1 << 30) - 1)

SkipsAt = Literal["turns", "anywhere"]

_NEAR = 4  # A turn is near if it begins within a quarter of the window.


def flagged(ids: np.ndarray, is_label: np.ndarray, begins_turn: np.ndarray) -> np.ndarray:
    """Entries of a store, 1-D uint32: token ids with their flags (both 1-D bool)."""
    return ids.astype(np.uint32) | np.where(is_label, LABEL, np.uint32(0)) | np.where(begins_turn, TURN, np.uint32(0))


def plain_ids(entries: np.ndarray) -> np.ndarray:
    """Token ids of entries, 1-D uint32, read-only."""
    ids = entries & _IDS
    ids.flags.writeable = False
    return ids


class Turns(NamedTuple):
    """The turns of a document.

    Attributes:
        is_label: 1-D bool, whether each token is a label.
        begins: 1-D int64, indices of the tokens at which a turn begins, ascending.
    """

    is_label: np.ndarray
    begins: np.ndarray

    @classmethod
    def of(cls, entries: np.ndarray) -> "Turns":
        """Reads the flags of a store's entries."""
        return cls((entries & LABEL) != 0, np.flatnonzero(entries & TURN))


def moved_to_turns(
    sample: PositionSample, begins: np.ndarray, *, num_tokens: int, skips_at: SkipsAt = "turns"
) -> PositionSample:
    """Moves the beginning of a window, and the borders of its chunks, to turns that begin near.

    With `place` the index in the window, a sample is `token = text + place` and `position = skip + place`, where `text`
    and `skip` never fall. So any border may move, and `text` may change between its neighbours, and the sample stays
    valid. All skips keep their size; only where they fall changes, by at most a quarter of the window. A turn takes one
    skip, the nearest. Where a sampler draws more of them than there are turns, the others stay.

    Args:
        sample: as drawn by any sampler.
        begins: 1-D int64, indices of the document's tokens at which a turn begins, ascending.
        num_tokens: length of the document.
        skips_at: `anywhere` moves only the beginning of the window.
    """
    num, near = len(sample.token_index), len(sample.token_index) // _NEAR
    if not len(begins) or not near:
        return sample
    place = np.arange(num)
    text, skip = sample.token_index - place, sample.position_ids - place
    cuts = (np.flatnonzero(np.diff(text)) + 1).tolist()
    shifts = [int(text[cut]) for cut in (0, *cuts)]
    skips = np.flatnonzero(np.diff(skip)) + 1
    sizes = np.diff(skip)[skips - 1]
    most = [*shifts[1:], num_tokens - num]
    shifts[0] = _nearest(begins, shifts[0], near, 0, most[0])
    moved = [0, *cuts]
    if skips_at == "turns":
        ends = [*cuts[1:], num]
        for i in range(1, len(moved)):
            # The chunk before ends where a turn does, and this one begins where another does.
            moved[i] = _nearest(begins - shifts[i - 1], moved[i], near, moved[i - 1] + 1, ends[i - 1] - 1)
            shifts[i] = _nearest(begins - moved[i], shifts[i], near, shifts[i - 1], most[i])
    text = np.repeat(shifts, np.diff([*moved, num]))
    if skips_at == "turns":
        # Skips at a cut of the text move with it, the others to the turns of the text as it is now.
        turns = np.flatnonzero(np.isin(text + place, begins, assume_unique=True))
        skips = np.where(np.isin(skips, cuts), np.array([0, *moved[1:]])[np.searchsorted(cuts, skips, "right")], skips)
        skips = _taken(turns[turns > 0], skips, near)
    steps = np.zeros(num, np.int64)
    steps[0] = skip[0]
    np.add.at(steps, skips, sizes)
    return PositionSample(token_index=text + place, position_ids=steps.cumsum() + place)


def window_with_label(sample: PositionSample, turns: Turns, rng: np.random.Generator) -> PositionSample:
    """The positions of a sample over consecutive tokens of which a label is in the last chunk, where it can be.

    The sample itself where the document has no label.
    """
    num, num_tokens = len(sample.token_index), len(turns.is_label)
    if not turns.is_label[1:].any():
        return sample
    jumps = np.flatnonzero(np.diff(sample.position_ids) != 1) + 1
    last = int(jumps[-1]) if len(jumps) else 1
    label = int(rng.choice(np.flatnonzero(turns.is_label[1:]))) + 1
    # The first token of a window is never scored.
    first = min(max(label - (last + num) // 2, 0), num_tokens - num)
    return PositionSample(token_index=np.arange(first, first + num), position_ids=sample.position_ids)


def _nearest(candidates: np.ndarray, wanted: int, near: int, least: int, most: int) -> int:
    """The candidate nearest to `wanted`, at most `near` from it and within `least..most`; `wanted` if there is none."""
    begin = int(np.searchsorted(candidates, max(least, wanted - near)))
    end = int(np.searchsorted(candidates, min(most, wanted + near), "right"))
    if begin >= end:
        return wanted
    found = candidates[begin:end]
    return int(found[np.abs(found - wanted).argmin()])


def _taken(turns: np.ndarray, skips: np.ndarray, near: int) -> np.ndarray:
    """Places of skips after each turn has taken the nearest one; of several turns, the nearest takes a skip.

    Args:
        turns: 1-D int64, places where turns begin, ascending.
        skips: 1-D int64, places of the skips, ascending.
        near: the farthest that a skip moves.
    """
    if not len(turns) or not len(skips):
        return skips
    after = np.searchsorted(skips, turns).clip(max=len(skips) - 1)
    before = (after - 1).clip(min=0)
    nearest = np.where(np.abs(turns - skips[before]) <= np.abs(skips[after] - turns), before, after)
    distance = np.abs(skips[nearest] - turns)
    moved = skips.copy()
    # The nearest turn of each skip is written last.
    order = np.argsort(-distance, kind="stable")
    order = order[distance[order] <= near]
    moved[nearest[order]] = turns[order]
    return moved
