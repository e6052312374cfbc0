"""Draws that samplers share. The same generator state gives the same numbers."""

import math

import numpy as np

from skipwise.positions.sample import check_document
from skipwise.window import Window

FEW_DRAWS = 256  # subsets up to this size are drawn faster by numpy's choice
FEW_CHUNKS = 6  # up to this number, shifting the chunks one by one is faster


def contiguous_text(num_tokens: int, window: Window, rng: np.random.Generator) -> np.ndarray:
    """Indices of `Lc` consecutive tokens from a uniformly drawn start."""
    check_document(num_tokens, window)
    start = rng.integers(0, num_tokens - window.train + 1)
    return np.arange(start, start + window.train)


def stick_breaking(num_pieces: int, total: int, rng: np.random.Generator) -> list[int]:
    """Sizes of pieces, each drawn uniformly from 0 to the rest of `total` that the earlier ones left."""
    pieces = [0] * num_pieces
    for i in range(num_pieces):
        if total == 0:  # about log2(total) draws use it up, however many pieces are requested
            break
        # Four times as fast as rng.integers, and uniform up to the 53 bits of a float.
        pieces[i] = int(rng.random() * (total + 1))
        total -= pieces[i]
    return pieces


def sorted_draws(num_draws: int, largest: int, rng: np.random.Generator) -> list[int]:
    """Independent draws from `U{0..largest}`, sorted."""
    if num_draws > 8:
        return np.sort(rng.integers(0, largest + 1, size=num_draws)).tolist()
    # For few draws, plain Python is four times as fast as numpy.
    return sorted(int(rng.random() * (largest + 1)) for _ in range(num_draws))


def in_chunks(lengths: list[int], shifts: list[int]) -> np.ndarray:
    """0, 1, 2, ... in chunks of these lengths, each chunk shifted by its shift; int64 (sum of lengths,)."""
    values = np.arange(sum(lengths))
    if len(lengths) > FEW_CHUNKS:
        return values + np.repeat(shifts, lengths)
    start = 0
    for length, shift in zip(lengths, shifts, strict=True):
        if shift:
            chunk = values[start : start + length]
            chunk += shift
        start += length
    return values


def sorted_subset(size: int, population: int, rng: np.random.Generator) -> np.ndarray:
    """A uniformly drawn subset of `{0..population-1}`, sorted; int64 (size,)."""
    if not FEW_DRAWS < size <= population // 2:
        return np.sort(rng.choice(population, size, replace=False, shuffle=False))
    # For many draws it is faster to draw too many with replacement, drop duplicates, and drop the excess at random.
    # By symmetry every subset of the requested size is equally likely.
    num_draws = int(population * math.log(population / (population - size))) + 24
    while True:
        values = np.sort((rng.random(num_draws) * population).astype(np.int32))
        kept = np.append(values[1:] != values[:-1], True)
        excess = np.count_nonzero(kept) - size
        if excess >= 0:
            break
    while excess:
        place = int(rng.random() * num_draws)
        if kept[place]:
            kept[place] = False
            excess -= 1
    return values[kept].astype(np.int64)
