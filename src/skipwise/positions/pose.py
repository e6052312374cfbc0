"""PoSE, and variants of its text, skips and start."""

import itertools
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from skipwise.errors import PositionError
from skipwise.positions.draws import in_chunks, sorted_draws, stick_breaking
from skipwise.positions.sample import PositionSample, check_choice, check_count, check_document
from skipwise.window import Window

TEXTS = ("uniform", "contiguous", "aligned")
SKIPS = ("sequential", "simplex", "flat")
STARTS = ("document", "anywhere", "mixed")
FROM_THE_BEGINNING = 0.25  # share of examples that start at the document's beginning, with start="mixed"


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
        check_count("sampler.chunks", self.chunks)
        check_choice("sampler.text", self.text, TEXTS)
        check_choice("sampler.skips", self.skips, SKIPS)
        check_choice("sampler.start", self.start, STARTS)

    def sample(self, num_tokens: int, window: Window, rng: np.random.Generator) -> PositionSample:
        """See `PositionSampler.sample`."""
        check_document(num_tokens, window)
        if self.chunks > window.train:
            raise PositionError(
                f"sampler.chunks is {self.chunks} and window.train {window.train} tokens; every chunk needs a token: "
                f"use at most {window.train} chunks"
            )
        lengths = [1 + piece for piece in stick_breaking(self.chunks - 1, window.train - self.chunks, rng)]
        lengths.append(window.train - sum(lengths))
        skips = [0, *self._draw_skips(window, rng)]
        room = num_tokens - window.train
        if self.text == "uniform":
            offsets = [0, *itertools.accumulate(stick_breaking(self.chunks - 1, room, rng))]
        elif self.text == "aligned":
            offsets = [min(skip, room) for skip in skips]
        else:
            offsets = [0] * self.chunks
        if self.start == "anywhere" or (self.start == "mixed" and rng.random() >= FROM_THE_BEGINNING):
            start = int(rng.random() * (room - offsets[-1] + 1))
            offsets = [start + offset for offset in offsets]
        return PositionSample.unchecked(in_chunks(lengths, offsets), in_chunks(lengths, skips))

    def _draw_skips(self, window: Window, rng: np.random.Generator) -> list[int]:
        """`u_1 .. u_{N-1}`, non-decreasing, in `0..Lt-Lc`."""
        num_skips, budget = self.chunks - 1, window.target - window.train
        if num_skips == 0:
            return []
        if self.skips == "sequential":
            return list(itertools.accumulate(stick_breaking(num_skips, budget, rng)))
        if self.skips == "simplex":
            return sorted_draws(num_skips, budget, rng)
        # Draws the largest of n uniform draws by inversion: P(largest <= k-th value) = (k / values)^n.
        num_pairs, num_values = self.chunks * num_skips // 2, window.target + window.train - 1
        largest = int(num_values * rng.random() ** (1.0 / num_pairs)) - (window.train - 1)
        last = min(max(largest, 0), budget)
        return [*sorted_draws(num_skips - 1, last, rng), last]
