"""How often one training example trains each relative distance (figure 5 of the PoSE paper).

The coverage of distance D is the probability that some pair of an example's positions is D apart. A model can only use
distances it was trained on, so coverage measures what a position sampler achieves, before any training.

Coverage is exact for `plain`, `full` and PoSE with one, two or three chunks. For every other sampler it is estimated
from samples, with a standard error. Symbols as in `positions`; x = u_1, y = u_2 - u_1 and z = u_2 are the skips of
three chunks, B = Lt - Lc.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from skipwise.errors import ConfigError
from skipwise.positions import FullLength, Plain, PoSE, PositionSampler
from skipwise.window import Window


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Coverage:
    """Coverage of every relative distance below the target.

    Attributes:
        share: float64 (target,), index = relative distance, value = probability that one example trains it.
        standard_error: float64 (target,), of `share`; 0 if exact.
        num_samples: number of examples drawn; 0 if exact.
    """

    share: np.ndarray
    standard_error: np.ndarray
    num_samples: int

    @property
    def lowest_distance(self) -> int:
        """The first distance, in tokens, that has the smallest share."""
        # Shares that differ only by rounding count as equal.
        return int((self.share <= self.share.min() + 1e-12).argmax())

    def first_below(self, share: float) -> int | None:
        """The first distance, in tokens, with a smaller share than this; None if there is none."""
        first = int((self.share < share).argmax())
        return first if self.share[first] < share else None


def coverage(sampler: PositionSampler, window: Window, *, num_samples: int = 1000, seed: int = 0) -> np.ndarray:
    """Probability that one example trains each relative distance; see `coverage_with_error`.

    Returns:
        float64 (target,), index = relative distance.
    """
    return coverage_with_error(sampler, window, num_samples=num_samples, seed=seed).share


def coverage_with_error(
    sampler: PositionSampler, window: Window, *, num_samples: int = 1000, seed: int = 0
) -> Coverage:
    """Probability that one example trains each relative distance, with its standard error.

    Documents are assumed to be at least as long as the target. Sampled shares have the binomial standard error
    `sqrt(p (1 - p) / n)` at `p = (hits + 1) / (n + 2)`, so that a distance never seen has an error of about `1 / n`.

    Args:
        sampler: any position sampler, including a user's own.
        window: the three lengths.
        num_samples: number of examples to draw if no exact result is known.
        seed: seed of these draws.

    Raises:
        ConfigError: num_samples is below 1.
        PositionError: the sampler cannot work in this window.

    Source: PoSE, arXiv 2309.10400, figure 5; the exact counting is our own.
    """
    if num_samples < 1:
        raise ConfigError(f"num_samples is {num_samples}; draw at least 1 example")
    share = _exact(sampler, window)
    if share is not None:
        return Coverage(share=share, standard_error=np.zeros(window.target), num_samples=0)
    rng = np.random.default_rng(seed)
    hits = np.zeros(window.target, dtype=np.int64)
    for _ in range(num_samples):
        hits += _covered_by(sampler.sample(window.target, window, rng).position_ids, window.target)
    smoothed = (hits + 1) / (num_samples + 2)
    error = np.sqrt(smoothed * (1 - smoothed) / num_samples)
    return Coverage(share=hits / num_samples, standard_error=error, num_samples=num_samples)


def _exact(sampler: PositionSampler, window: Window) -> np.ndarray | None:
    """Exact coverage; None if it can only be sampled."""
    if isinstance(sampler, FullLength):
        return np.ones(window.target)
    short = (np.arange(window.target) < window.train).astype(np.float64)
    if isinstance(sampler, Plain):
        return short
    if not isinstance(sampler, PoSE) or sampler.chunks > min(3, window.train):
        return None
    budget = window.target - window.train
    if sampler.chunks == 1 or budget == 0:
        return short
    if sampler.chunks == 2:
        skip = _flat_last_skip(1, window) if sampler.skips == "flat" else np.full(budget + 1, 1 / (budget + 1))
        return _two_chunks(window.train - 1, skip, window)
    if sampler.skips == "sequential":
        return _three_chunks(_first_skip_weighted(window), window)
    if sampler.skips == "flat":
        weight = _flat_last_skip(3, window) / np.arange(1, budget + 2)
        return _three_chunks(_last_skip_weighted(weight, window), window)
    # Two sorted draws: every pair x < z has twice the probability of a pair x = z. This equals a uniform law over all
    # pairs x <= z minus part of the diagonal, where the last two chunks join and the example has two chunks.
    even = np.full(budget + 1, 2 / ((budget + 1) * (budget + 2)))
    spread = _three_chunks(_last_skip_weighted(even, window), window)
    joined = _two_chunks(window.train - 2, np.full(budget + 1, 1 / (budget + 1)), window)
    return ((budget + 2) * spread - joined) / (budget + 1)


def _flat_last_skip(num_pairs: int, window: Window) -> np.ndarray:
    """Law of PoSE's last flat skip: the largest of `num_pairs` draws from `U{-(Lc-1)..Lt-1}`, clipped; (B + 1,)."""
    cumulative = np.arange(window.train, window.target + 1) / (window.target + window.train - 1)
    cumulative = cumulative**num_pairs
    cumulative[-1] = 1.0
    return np.diff(cumulative, prepend=0.0)


def _two_chunks(longest_first: int, skip: np.ndarray, window: Window) -> np.ndarray:
    """Coverage of two chunks, `l_0 ~ U{1..longest_first}`, with the skip's law `skip`, float64 (B + 1,).

    D is trained inside a chunk when `D < max(l_0, Lc - l_0)`, and across chunks when `u + 1 <= D <= u + Lc - 1`,
    whatever `l_0`. So the two events are independent.
    """
    distance = np.arange(window.target)
    first = np.arange(1, longest_first + 1)
    longest = np.bincount(np.maximum(first, window.train - first), minlength=window.target + 1)
    inside = longest[::-1].cumsum()[::-1][1:] / longest_first
    below = np.concatenate([[0.0], skip.cumsum()])  # below[k] = P(u < k)
    top = len(skip)
    across = below[np.minimum(distance, top)] - below[np.clip(distance - window.train + 1, 0, top)]
    return 1 - (1 - inside) * (1 - across)


@dataclass(frozen=True, slots=True, kw_only=True)
class _SkipLaw:
    """The joint law of x and y = z - x, as `_three_chunks` needs it; all in float64.

    Attributes:
        first, gap, last: (B + 1,) each, the laws of x, y and z.
        first_if_gap_from, gap_if_first_from: D -> (B + 1,): P(x, y >= D) by x, and P(y, x >= D) by y.
        pairs: (B,), index e = D - Lc: the probability that D is trained across two given pairs of chunks at once,
            summed over the choices of two pairs.
    """

    first: np.ndarray
    gap: np.ndarray
    last: np.ndarray
    first_if_gap_from: Callable[[int], np.ndarray]
    gap_if_first_from: Callable[[int], np.ndarray]
    pairs: np.ndarray


class _Lengths:
    """Law of the three lengths: `l_0 ~ U{1..Lc-2}`, `l_1 ~ U{1..Lc-l_0-1}`; `l_2 = Lc - l_0 - l_1` has the law of l_1.

    Attributes:
        each: float64 (Lc + 1,), index l_0, value P(l_0, l_1), which is the same for every possible l_1.
        room: int64 (Lc + 1,), index l_0, value = number of possible l_1.
        first_below, other_below: float64 (Lc + 1,), index k, values P(l_0 < k) and P(l_1 < k) = P(l_2 < k).
    """

    def __init__(self, train: int) -> None:
        self.train = train
        self.room = np.maximum(train - 1 - np.arange(train + 1), 0)
        self.room[0] = 0
        self.each = np.zeros(train + 1)
        self.each[1:-2] = 1 / ((train - 2) * self.room[1:-2])
        self.first_below = _before(self.each * self.room)
        # P(l_1 = j) sums P(l_0, j) over l_0 <= Lc - 1 - j.
        other = np.zeros(train + 1)
        other[1:-1] = self.each.cumsum()[train - 1 - np.arange(1, train)]
        self.other_below = _before(other)

    def first_and_other_below(self, other: int) -> np.ndarray:
        """P(l_0 < k, l_1 < other) by k, float64 (Lc + 1,); likewise with l_2 for l_1."""
        return _before(self.each * np.minimum(self.room, other - 1))

    def both_others_below(self) -> Iterator[np.ndarray]:
        """Yields P(l_1 < k, l_2 < c) by k <= Lc - c, float64 (Lc + 1,), for c = 1, 2, .. Lc - 1."""
        row = np.zeros(self.train + 1)
        yield row
        for equal in range(1, self.train - 1):
            column = np.zeros(self.train + 1)  # P(l_1 = k, l_2 = equal)
            column[1 : self.train - equal] = self.each[self.train - equal - 1 : 0 : -1]
            row = row + _before(column)
            yield row


def _before(values: np.ndarray) -> np.ndarray:
    """Sums of all earlier entries (exclusive cumulative sum); same shape."""
    return np.concatenate([[0.0], values[:-1].cumsum()])


def _slide(law: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """`sum_k law[e + k] kernel[k]` for k from 1 and e = 0 .. B - 1; law is (B + 1,), the result (B,)."""
    padded = np.concatenate([law[1:], np.zeros(len(kernel) - 2)])
    return np.correlate(padded, kernel[1:], mode="valid")


def _three_chunks(law: _SkipLaw, window: Window) -> np.ndarray:
    """Coverage of three chunks by inclusion and exclusion over the pairs of chunks.

    Chunks 0-1, 1-2 and 0-2 train the distances `[x + 1, x + l_0 + l_1 - 1]`, `[y + 1, y + l_1 + l_2 - 1]` and
    `[z + l_1 + 1, z + Lc - 1]`; chunk i by itself trains those below `l_i`. With e = D - Lc, for D >= Lc this means

        0-1: x = e + c, l_2 < c     1-2: y = e + a, l_0 < a     0-2: z = D - r, l_1 < r     with a, c, r in 1 .. Lc - 1.

    All three at once would need `a + c + r = 2 Lc - D <= Lc`, so fewer than Lc tokens. So two events at a time suffice.
    For D < Lc, D is missed only if no chunk is longer than D, z >= D, and at most one of x and y is below D.
    """
    train, budget = window.train, window.target - window.train
    lengths = _Lengths(train)
    share = np.ones(window.target)
    first, other = lengths.first_below[:train], lengths.other_below[:train]
    reversed_other = np.concatenate([[0.0], other[:0:-1]])  # index Lc - r
    singles = _slide(law.first, other) + _slide(law.gap, first) + _slide(law.last, reversed_other)
    share[train:] = singles - law.pairs

    first_length = np.arange(train + 1)
    for distance in range(1, train):
        by_first, by_gap = law.first_if_gap_from(distance), law.gap_if_first_from(distance)
        fewest, most = np.maximum(train - first_length - distance, 1), np.minimum(lengths.room, distance)
        fits = np.maximum(most - fewest + 1, 0)[: distance + 1]
        missed = (lengths.each[: distance + 1] * fits).sum() * by_first[distance:].sum()
        # x = 0, 1, ..: chunk 2 must reach from Lc - D + x to D; so must chunk 0 for y.
        steps = min(2 * distance - train, budget, distance - 1) + 1
        if steps > 0:
            lowest = slice(train - distance, train - distance + steps)
            missed += by_first[:steps] @ (lengths.other_below[distance + 1] - lengths.other_below[lowest])
            missed += by_gap[:steps] @ (lengths.first_below[distance + 1] - lengths.first_below[lowest])
        share[distance] = 1 - missed
    return share


def _first_skip_weighted(window: Window) -> _SkipLaw:
    """Sequential skips: P(x, z) = w(x) for x <= z <= B, w(x) = 1 / ((B + 1) (B + 1 - x))."""
    train, budget = window.train, window.target - window.train
    choices = np.arange(budget + 1, 0, -1)
    weight = 1 / ((budget + 1) * choices)
    up_to = weight.cumsum()

    lengths = _Lengths(train)
    pairs, last_two = np.zeros(budget), np.zeros(train + 1)
    padded = np.concatenate([weight, np.zeros(train)])
    excess = np.arange(budget)  # e
    for c, others in enumerate(lengths.both_others_below(), start=1):
        with_first = lengths.first_and_other_below(c)
        # 0-2 and 1-2, here r = c: x = Lc - r - a.
        last_two[c] = padded[train - c - 1 :: -1] @ with_first[1 : train - c + 1]
        if c > budget:
            continue
        e = excess[: budget - c + 1]
        # 0-1 and 1-2: z = 2 e + a + c <= B bounds a. 0-1 and 0-2: z = D - r <= B bounds r, y = Lc - r - c >= 0.
        sum_first, sum_others = with_first[:train].cumsum(), others[: train - c + 1].cumsum()
        both = sum_first[np.clip(budget - 2 * e - c, 0, train - 1)]
        both += sum_others[-1] - sum_others[np.clip(e + train - budget - 1, 0, train - c)]
        pairs[: len(e)] += weight[c : c + len(e)] * both
    pairs += last_two[::-1].cumsum()[::-1][np.maximum(excess + train - budget, 1)]

    def gap_if_first_from(distance: int) -> np.ndarray:
        return np.maximum(up_to[::-1] - up_to[min(distance - 1, budget)], 0.0)

    return _SkipLaw(
        first=np.full(budget + 1, 1 / (budget + 1)),
        gap=up_to[::-1],
        last=up_to,
        first_if_gap_from=lambda distance: weight * np.maximum(choices - distance, 0),
        gap_if_first_from=gap_if_first_from,
        pairs=pairs,
    )


def _last_skip_weighted(weight: np.ndarray, window: Window) -> _SkipLaw:
    """Skips with P(x, z) = weight(z) for x <= z <= B; x and y have the same law."""
    train, budget = window.train, window.target - window.train
    lengths = _Lengths(train)
    by_last, by_sum = np.zeros(train), np.zeros(2 * train)
    for c, others in enumerate(lengths.both_others_below(), start=1):
        with_first = lengths.first_and_other_below(c)
        # 0-2 with 0-1 and with 1-2, here r = c: z = D - r = e + (Lc - r), the other skip is not below 0.
        by_last[train - c] = others[: train - c + 1].sum() + with_first[: train - c + 1].sum()
        # 0-1 and 1-2: z = 2 e + a + c.
        by_sum[c : c + train] += with_first[:train]
    doubled = _slide(weight, by_sum)[::2]
    pairs = _slide(weight, by_last)
    pairs[: len(doubled)] += doubled
    from_on = np.concatenate([weight[::-1].cumsum()[::-1], np.zeros(train)])  # P(x, z >= k) for any one x

    def other_from(distance: int) -> np.ndarray:
        return from_on[distance : distance + budget + 1]

    return _SkipLaw(
        first=from_on[: budget + 1],
        gap=from_on[: budget + 1],
        last=weight * np.arange(1, budget + 2),
        first_if_gap_from=other_from,
        gap_if_first_from=other_from,
        pairs=pairs,
    )


def _covered_by(position_ids: np.ndarray, target: int) -> np.ndarray:
    """Which distances occur between the positions of one example, bool (target,)."""
    first = np.flatnonzero(np.diff(position_ids, prepend=-2) != 1)  # the start of each run of consecutive positions
    if len(first) ** 2 <= 4 * target:
        start = position_ids[first]
        end = np.append(position_ids[first[1:] - 1], position_ids[-1])
        earlier, later = np.triu_indices(len(first))
        nearest, farthest = np.maximum(start[later] - end[earlier], 0), end[later] - start[earlier]
        opened = np.bincount(nearest, minlength=target + 1) - np.bincount(farthest + 1, minlength=target + 1)
        return opened.cumsum()[:target] > 0
    # Many short runs: the autocorrelation of the occupied positions counts the pairs at every distance.
    occupied = np.zeros(2 * target, dtype=np.float64)
    occupied[position_ids] = 1.0
    spectrum = np.fft.rfft(occupied)
    return np.fft.irfft(spectrum * spectrum.conj(), n=2 * target)[:target] > 0.5
