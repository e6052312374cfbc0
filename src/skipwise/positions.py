"""Position samplers choose the tokens of a training example and their position ids.

A model is trained for a context of `Lt` positions on examples of `Lc < Lt` tokens whose position ids skip. Over many
examples it sees every relative distance. Symbols: `Lc` = window.train, `Lo` = window.original, `Lt` = window.target,
`Lx` = length of the document, all in tokens.

    PoSE          N chunks with random lengths and skips
    RandPos       a random subset of positions
    CREAM         the two ends of the target range and a movable middle
    SentenceGaps  gaps at sentence ends
    EndPrompt     the window whole but for its last few tokens, which stand at the end of the target
    Plain         a short window without skips
    FullLength    the whole target, the baseline

All draws come from the generator passed in: the same generator state gives the same sample. A new sampler is a frozen
dataclass whose fields are its hyperparameters, and one line in `SAMPLERS`.
"""

import itertools
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from statistics import NormalDist
from typing import Any, ClassVar, Protocol

import numpy as np

from skipwise.errors import ConfigError, PositionError
from skipwise.names import did_you_mean
from skipwise.own_samplers import is_own, own_sampler_class
from skipwise.window import Window

TEXTS = ("uniform", "contiguous", "aligned")
SKIPS = ("sequential", "simplex", "flat")
STARTS = ("document", "anywhere", "mixed")
END_TEXTS = ("contiguous", "aligned")
ENDS = ("target", "anywhere")
FROM_THE_BEGINNING = 0.25  # share of examples that start at the document's beginning, with start="mixed"
FEW_DRAWS = 256  # subsets up to this size are drawn faster by numpy's choice
FEW_CHUNKS = 6  # up to this number, shifting the chunks one by one is faster


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PositionSample:
    """The tokens of one training example and their positions.

    Attributes:
        token_index: int64 (n,), index of each token in its document, strictly increasing, >= 0.
        position_ids: int64 (n,), position given to each token, strictly increasing, >= 0.

    Raises:
        PositionError: the arrays break these rules; `check_ends` compares them with document and target.
    """

    token_index: np.ndarray
    position_ids: np.ndarray

    def __post_init__(self) -> None:
        for name in ("token_index", "position_ids"):
            values = getattr(self, name)
            if values.dtype != np.int64 or values.ndim != 1 or not len(values):
                raise PositionError(
                    f"{name} is {values.dtype} of shape {values.shape}; it must be int64 of shape (n,), n >= 1"
                )
            if values[0] < 0 or np.count_nonzero(values[1:] > values[:-1]) < len(values) - 1:
                raise PositionError(
                    f"{name} must be 0 or above and strictly increasing; it starts {values[:8].tolist()}"
                )
        if len(self.token_index) != len(self.position_ids):
            raise PositionError(
                f"a sample has {len(self.token_index)} tokens and {len(self.position_ids)} positions; give one for each"
            )

    @classmethod
    def _unchecked(cls, token_index: np.ndarray, position_ids: np.ndarray) -> "PositionSample":
        """Makes a sample without checks, for the samplers of this module. They keep the rules by construction, as their
        tests verify, and checks would take as long as the draws."""
        sample = object.__new__(cls)
        object.__setattr__(sample, "token_index", token_index)
        object.__setattr__(sample, "position_ids", position_ids)
        return sample

    def check_ends(self, *, num_tokens: int, target: int) -> None:
        """Checks the last token and position of a sample against its document and window.

        Raises:
            PositionError: a token lies past the document's end, or a position at or past the target.
        """
        if self.token_index[-1] >= num_tokens or self.position_ids[-1] >= target:
            raise PositionError(
                f"a sample ends at token {self.token_index[-1]} and position {self.position_ids[-1]}; the document has "
                f"{num_tokens} tokens and the target {target} positions, counted from 0"
            )


class PositionSampler(Protocol):
    """Draws the tokens and positions of training examples."""

    uses_sentence_ends: ClassVar[bool]

    def sample(self, num_tokens: int, window: Window, rng: np.random.Generator) -> PositionSample:
        """Draws a sample.

        Args:
            num_tokens: length of the document, `Lx`.
            window: the three lengths.
            rng: source of all draws.

        Raises:
            PositionError: the document is shorter than window.train.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PoSE:
    """Positional skip-wise examples: N chunks of random lengths with random skips between them.

    Lengths `l_i`: each but the last is uniform over all values that leave one token for every later chunk (figure 6:
    N = 2 has `l_0 ~ U{1..Lc-1}`; N = 3 has `l_0 ~ U{1..Lc-2}`, `l_1 ~ U{1..Lc-l_0-1}`). With
    `st_i = l_0 + ... + l_{i-1}`:

    - positions of chunk i are `u_i + st_i + [0, l_i)`, `u_0 = 0` (eq. 3, 4), `u_i` by `skips`:
        - sequential: `u_i ~ U{u_{i-1}..Lt-Lc}`, as in the paper. Distances near `Lt` are rare.
        - simplex: `N - 1` sorted draws from `U{0..Lt-Lc}`; all gaps have the same distribution. For N = 2 this is
          sequential.
        - flat: the last skip is the largest of `N(N-1)/2` draws from `U{-(Lc-1)..Lt-1}`, clipped to `{0..Lt-Lc}`; the
          others are sorted draws from `U{0..u_{N-1}}`.
    - tokens of chunk i are `v_i + st_i + [0, l_i)`, `v_0 = 0` (eq. 5), `v_i` by `text`:
        - uniform: `v_i ~ U{v_{i-1}..Lx-Lc}`.
        - contiguous: `v_i = 0`, the document's first `Lc` tokens.
        - aligned: `v_i = min(u_i, Lx - Lc)`: positions match the text's own distances as far as the document reaches.
    - `start`:
        - document: as above; the first chunk begins the document.
        - anywhere: all `v_i` are shifted by one draw from `U{0..Lx-Lc-v_{N-1}}`, so that the distant context is not
          always a title and a license.
        - mixed: a quarter of the examples as document, since short requests begin there too, the others as anywhere.

    Why flat gives flat coverage. N = 2: a distance D >= Lc is trained when `u_1 + 1 <= D <= u_1 + Lc - 1`. For every D
    in `Lc..Lt-Lc` these are `Lc - 1` of the `Lt + Lc - 1` equally likely draws. The clipped draws add to the short
    window and to the last `Lc` distances, which get between one and two times as much. (Exact equality up to `Lt - 1`
    would force `u_1` onto a grid of step `Lc - 1`; then very few pairs would train distances near the grid points.)
    N > 2: the last skip is the largest of all distances between chunks. If these `N(N-1)/2` distances were independent
    and uniform, their maximum would have exactly this distribution. For N = 3, chunks of equal length and `Lt >> Lc`
    they are uniform; for larger N nearly so.

    Attributes:
        chunks: number of chunks N, from 1 (no skip) to the training window.
        text: which text goes with the chunks after the first.
        skips: how far the chunks after the first skip ahead.
        start: where the first chunk's text begins.

    Source: PoSE, arXiv 2309.10400, section 3 and figure 6; simplex, flat and anywhere are our own. The authors' code
    draws `l_0` from `U{1..(Lc+1)//2}`; we follow the paper.
    """

    uses_sentence_ends: ClassVar[bool] = False

    chunks: int = 2
    text: str = "uniform"
    skips: str = "sequential"
    start: str = "document"

    def __post_init__(self) -> None:
        _check_count("sampler.chunks", self.chunks)
        _check_choice("sampler.text", self.text, TEXTS)
        _check_choice("sampler.skips", self.skips, SKIPS)
        _check_choice("sampler.start", self.start, STARTS)

    def sample(self, num_tokens: int, window: Window, rng: np.random.Generator) -> PositionSample:
        """See `PositionSampler.sample`."""
        _check_document(num_tokens, window)
        if self.chunks > window.train:
            raise PositionError(
                f"sampler.chunks is {self.chunks} and window.train {window.train} tokens; every chunk needs a token: "
                f"use at most {window.train} chunks"
            )
        lengths = [1 + piece for piece in _stick_breaking(self.chunks - 1, window.train - self.chunks, rng)]
        lengths.append(window.train - sum(lengths))
        skips = [0, *self._draw_skips(window, rng)]
        room = num_tokens - window.train
        if self.text == "uniform":
            offsets = [0, *itertools.accumulate(_stick_breaking(self.chunks - 1, room, rng))]
        elif self.text == "aligned":
            offsets = [min(skip, room) for skip in skips]
        else:
            offsets = [0] * self.chunks
        if self.start == "anywhere" or (self.start == "mixed" and rng.random() >= FROM_THE_BEGINNING):
            start = int(rng.random() * (room - offsets[-1] + 1))
            offsets = [start + offset for offset in offsets]
        return PositionSample._unchecked(_in_chunks(lengths, offsets), _in_chunks(lengths, skips))

    def _draw_skips(self, window: Window, rng: np.random.Generator) -> list[int]:
        """`u_1 .. u_{N-1}`, non-decreasing, in `0..Lt-Lc`."""
        num_skips, budget = self.chunks - 1, window.target - window.train
        if num_skips == 0:
            return []
        if self.skips == "sequential":
            return list(itertools.accumulate(_stick_breaking(num_skips, budget, rng)))
        if self.skips == "simplex":
            return _sorted_draws(num_skips, budget, rng)
        # Draws the largest of n uniform draws by inversion: P(largest <= k-th value) = (k / values)^n.
        num_pairs, num_values = self.chunks * num_skips // 2, window.target + window.train - 1
        largest = int(num_values * rng.random() ** (1.0 / num_pairs)) - (window.train - 1)
        last = min(max(largest, 0), budget)
        return [*_sorted_draws(num_skips - 1, last, rng), last]


@dataclass(frozen=True, slots=True, kw_only=True)
class RandPos:
    """`Lc` distinct positions drawn uniformly from `{0..Lt-1}`, sorted. Text: contiguous, from a uniformly drawn start.

    Source: randomized positional encodings, arXiv 2305.16843, section 3.
    """

    uses_sentence_ends: ClassVar[bool] = False

    def sample(self, num_tokens: int, window: Window, rng: np.random.Generator) -> PositionSample:
        """See `PositionSampler.sample`."""
        token_index = _contiguous_text(num_tokens, window, rng)
        return PositionSample._unchecked(token_index, _sorted_subset(window.train, window.target, rng))


@dataclass(frozen=True, slots=True, kw_only=True)
class CREAM:
    """Head and tail of `h` tokens at the two ends of the target range, and the rest in one chunk between them.

    Per example, `h` is `Lc // 3` (many distances) or `4 * alpha` (continuity), with probability 1/2 each, and at most
    `(Lc - 1) // 2`. The middle chunk has `m = Lc - 2h` tokens. With `alpha = Lt / Lo`, its last position is
    `P_e ~ U{h + (m-1) x/2 .. Lo x/2 - h - 1}`, where x is a Gaussian of mean `1 + alpha` and standard deviation
    `sigma`, truncated to `[2, 2 alpha]` and rounded. Text: contiguous, from a uniformly drawn start.

    Attributes:
        sigma: standard deviation of x, above 0.

    Source: CREAM, arXiv 2406.07138, section 3. Deliberate deviations from the authors' code: the truncated CDF is
    normalized (theirs moves the mass outside onto the ends); `h` is drawn per example (theirs per 3000); x is rounded
    to the nearest integer (theirs down, which never reaches the last half window). If window.train is above
    window.original, both bounds of `P_e` are clipped so that the middle overlaps neither head nor tail.
    """

    uses_sentence_ends: ClassVar[bool] = False

    sigma: float = 3.0

    def __post_init__(self) -> None:
        if isinstance(self.sigma, bool) or not isinstance(self.sigma, int | float) or not 0 < self.sigma < np.inf:
            raise ConfigError(f"sampler.sigma is {self.sigma!r}; it must be a number above 0")

    def sample(self, num_tokens: int, window: Window, rng: np.random.Generator) -> PositionSample:
        """See `PositionSampler.sample`."""
        token_index = _contiguous_text(num_tokens, window, rng)
        alpha = window.factor
        end_tokens = window.train // 3 if rng.random() < 0.5 else int(4 * alpha)
        end_tokens = min(end_tokens, (window.train - 1) // 2)
        middle_tokens = window.train - 2 * end_tokens

        gaussian = NormalDist(1 + alpha, self.sigma)
        low, high = gaussian.cdf(2.0), gaussian.cdf(2 * alpha)
        drawn = gaussian.inv_cdf(low + (high - low) * rng.random()) if low < high else 2.0
        half_x = min(max(round(drawn), 2.0), 2 * alpha) / 2

        first, last = end_tokens + middle_tokens - 1, window.target - end_tokens - 1
        earliest = min(int(end_tokens + (middle_tokens - 1) * half_x), last)
        latest = max(int(window.original * half_x) - end_tokens - 1, earliest)
        middle_end = max(int(rng.integers(earliest, min(latest, last) + 1)), first)
        position_ids = np.arange(window.train)
        position_ids[end_tokens:] += middle_end - first
        position_ids[window.train - end_tokens :] = np.arange(window.target - end_tokens, window.target)
        return PositionSample._unchecked(token_index, position_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class SentenceGaps:
    """Gaps at sentence ends: the sentences keep their order, with random gaps between them.

    The `Lt - Lc` unused positions and the S sentences form a sequence that begins with the first sentence. Every
    arrangement of the rest is equally likely. Text: contiguous, from a uniformly drawn start.

    Attributes:
        sentence_tokens: length in tokens of artificial sentences, 1 or more, where sentence ends are unknown (as in
            `coverage`).

    Source: LongRecipe, arXiv 2409.00509, section 3.2 (without its choice of tokens).
    """

    uses_sentence_ends: ClassVar[bool] = True

    sentence_tokens: int = 24

    def __post_init__(self) -> None:
        _check_count("sampler.sentence_tokens", self.sentence_tokens)

    def sample(
        self, num_tokens: int, window: Window, rng: np.random.Generator, *, sentence_ends: np.ndarray | None = None
    ) -> PositionSample:
        """See `PositionSampler.sample`.

        Args:
            num_tokens: length of the document, `Lx`.
            window: the three lengths.
            rng: source of all draws.
            sentence_ends: bool (num_tokens,), True where a token ends a sentence; None for artificial sentences of
                fixed length.
        """
        token_index = _contiguous_text(num_tokens, window, rng)
        if sentence_ends is None:
            starts = np.arange(self.sentence_tokens, window.train, self.sentence_tokens)
        elif sentence_ends.shape != (num_tokens,) or sentence_ends.dtype != np.bool_:
            raise PositionError(
                f"sentence_ends is {sentence_ends.dtype} of shape {sentence_ends.shape}; it must be bool of shape "
                f"({num_tokens},), one for each token of the document"
            )
        else:
            # A sentence starts after each end, except after the window's last token.
            starts = np.flatnonzero(sentence_ends[token_index[0] : token_index[-1]]) + 1
        slots = _sorted_subset(len(starts), window.target - window.train + len(starts), rng)
        steps = np.ones(window.train, dtype=np.int64)
        steps[0] = 0
        # Slots are distinct places in the sequence of sentences and unused positions; a step of k is a gap of k - 1.
        slots[1:] -= slots[:-1] + 1
        steps[starts] += slots
        return PositionSample._unchecked(token_index, steps.cumsum())


@dataclass(frozen=True, slots=True, kw_only=True)
class EndPrompt:
    """The window as it is, but for its last few tokens, which stand at the end of the target.

    Positions are `0..Lc-e-1`, then `u + [Lc-e, Lc)` for the last `e = tokens` tokens, with `u = Lt - Lc`. So the short
    window stays whole, and the few last tokens are trained at distances of nearly `Lt` from all others. Distances
    between are not trained at all; the paper argues that interpolated attention is smooth enough to do without. Text
    begins at a uniformly drawn token.

    Attributes:
        tokens: number of tokens at the end, `e`, 1 or more; a shorter training window keeps one token before them.
        text: which text the last tokens have. contiguous: what follows in the document. aligned: text as far ahead as
            the positions are, as far as the document reaches.
        end: where they stand. target: their last position is `Lt - 1`, as in the paper. anywhere: `u ~ U{0..Lt-Lc}`, as
            in a variant of the authors' code.

    Source: EndPrompt, arXiv 2605.14589, as in the authors' code. Deviation: they append a prompt of 18 to 20 tokens,
    always the same, to each text; here the last tokens are text of the document. In retrieval exercises they are the
    question and its answer.
    """

    uses_sentence_ends: ClassVar[bool] = False

    tokens: int = 20
    text: str = "contiguous"
    end: str = "target"

    def __post_init__(self) -> None:
        _check_count("sampler.tokens", self.tokens)
        _check_choice("sampler.text", self.text, END_TEXTS)
        _check_choice("sampler.end", self.end, ENDS)

    def sample(self, num_tokens: int, window: Window, rng: np.random.Generator) -> PositionSample:
        """See `PositionSampler.sample`."""
        _check_document(num_tokens, window)
        skip = window.target - window.train
        if self.end == "anywhere":
            skip = int(rng.integers(0, skip + 1))
        room = num_tokens - window.train
        ahead = min(skip, room) if self.text == "aligned" else 0
        start = int(rng.integers(0, room - ahead + 1))
        tokens = min(self.tokens, window.train - 1)
        lengths = [window.train - tokens, tokens]
        return PositionSample._unchecked(_in_chunks(lengths, [start, start + ahead]), _in_chunks(lengths, [0, skip]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plain:
    """A short window without skips: positions `0..Lc-1`. Text: contiguous, from a uniformly drawn start."""

    uses_sentence_ends: ClassVar[bool] = False

    def sample(self, num_tokens: int, window: Window, rng: np.random.Generator) -> PositionSample:
        """See `PositionSampler.sample`."""
        return PositionSample._unchecked(_contiguous_text(num_tokens, window, rng), np.arange(window.train))


@dataclass(frozen=True, slots=True, kw_only=True)
class FullLength:
    """The whole target without skips: `min(Lt, Lx)` tokens in a row. Text: from a uniformly drawn start."""

    uses_sentence_ends: ClassVar[bool] = False

    def sample(self, num_tokens: int, window: Window, rng: np.random.Generator) -> PositionSample:
        """See `PositionSampler.sample`."""
        _check_document(num_tokens, window)
        length = min(window.target, num_tokens)
        start = rng.integers(0, num_tokens - length + 1)
        return PositionSample._unchecked(np.arange(start, start + length), np.arange(length))


SAMPLERS: dict[str, type[PositionSampler]] = {
    "pose": PoSE,
    "randpos": RandPos,
    "cream": CREAM,
    "sentences": SentenceGaps,
    "endprompt": EndPrompt,
    "plain": Plain,
    "full": FullLength,
}


def sampler_from(settings: str | Mapping[str, Any]) -> PositionSampler:
    """Makes a sampler from its settings.

    Args:
        settings: a kind (`"randpos"`), or a mapping of `kind` and its fields
            (`{"kind": "pose", "chunks": 3, "skips": "flat"}`). `FILE.py:CLASS` and `MODULE:CLASS` are kinds, too: a
            sampler of your own. Its code is run.

    Raises:
        ConfigError: an unknown kind or field, with the nearest known name; a field out of range; or code of your own
            that is not there, cannot be imported or is no sampler.
    """
    given = {"kind": settings} if isinstance(settings, str) else dict(settings)
    kind = given.pop("kind", None)
    if is_own(kind):
        sampler = own_sampler_class(kind)
    elif kind in list(SAMPLERS):
        sampler = SAMPLERS[kind]
    else:
        raise ConfigError(f"sampler.kind is {kind!r}; {_known(str(kind), SAMPLERS)}; or FILE.py:CLASS of your own")
    allowed = [field.name for field in fields(sampler)]  # type: ignore[arg-type]
    for name in given:
        if name not in allowed:
            raise ConfigError(f"sampler.{name} is not a setting of {kind!r}; {_known(str(name), allowed)}")
    return sampler(**given)


def sampler_kind(sampler: PositionSampler) -> str:
    """The name of a sampler in `SAMPLERS`; the class name of a user's sampler."""
    return next(
        (kind for kind, variant in SAMPLERS.items() if isinstance(sampler, variant)), type(sampler).__qualname__
    )


def sampler_label(sampler: PositionSampler) -> str:
    """The name of a sampler in tables and plots: `pose, 2 chunks, flat`."""
    if not isinstance(sampler, PoSE):
        return sampler_kind(sampler)
    return f"pose, {sampler.chunks} chunk{'s' * (sampler.chunks > 1)}, {sampler.skips}"


def _known(name: str, allowed: Collection[str]) -> str:
    """The known names, for the message about an unknown one, with the nearest first."""
    return f"{did_you_mean(name, allowed)}known: {', '.join(allowed)}" if allowed else "it has no settings"


def _check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} is {value!r}; {_known(str(value), allowed)}")


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} is {value!r}; it must be a whole number, 1 or more")


def _check_document(num_tokens: int, window: Window) -> None:
    if num_tokens < window.train:
        raise PositionError(
            f"a document has {num_tokens} tokens and window.train is {window.train}; skip or join shorter documents, "
            "or lower the training window",
            page="no-long-documents",
        )


def _contiguous_text(num_tokens: int, window: Window, rng: np.random.Generator) -> np.ndarray:
    """Indices of `Lc` consecutive tokens from a uniformly drawn start."""
    _check_document(num_tokens, window)
    start = rng.integers(0, num_tokens - window.train + 1)
    return np.arange(start, start + window.train)


def _stick_breaking(num_pieces: int, total: int, rng: np.random.Generator) -> list[int]:
    """Sizes of pieces, each drawn uniformly from 0 to the rest of `total` that the earlier ones left."""
    pieces = [0] * num_pieces
    for i in range(num_pieces):
        if total == 0:  # about log2(total) draws use it up, however many pieces are requested
            break
        # Four times as fast as rng.integers, and uniform up to the 53 bits of a float.
        pieces[i] = int(rng.random() * (total + 1))
        total -= pieces[i]
    return pieces


def _sorted_draws(num_draws: int, largest: int, rng: np.random.Generator) -> list[int]:
    """Independent draws from `U{0..largest}`, sorted."""
    if num_draws > 8:
        return np.sort(rng.integers(0, largest + 1, size=num_draws)).tolist()
    # For few draws, plain Python is four times as fast as numpy.
    return sorted(int(rng.random() * (largest + 1)) for _ in range(num_draws))


def _in_chunks(lengths: list[int], shifts: list[int]) -> np.ndarray:
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


def _sorted_subset(size: int, population: int, rng: np.random.Generator) -> np.ndarray:
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
