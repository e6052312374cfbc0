"""axolotl's rule of positions as a sampler, to be compared with others in one run.

    arms: [{name: axolotl, like: pose, sampler: {kind: "benchmarks/axolotl_positions.py:AxolotlPoSE"}}]

Read in axolotl at commit 067b021c8b87a9e5e380b9173c704cf7340e30f5 (2026-07-24):

- `src/axolotl/utils/trainer.py`, `add_pose_position_ids`: chunks of equal length `Lc // N` (the last takes the rest);
  the skip before each is uniform over what the earlier ones left of `Lt - Lc`; the text is not touched, so it is
  contiguous.
- the same file, `process_datasets_for_packing`: the function is mapped over the data set once, before training, so that
  a row has the same positions in every epoch.
- `src/axolotl/prompt_strategies/completion.py`, `tokenize_prompt`: a row is one of the consecutive pieces of
  `sequence_len` tokens that a document is cut into.

Nothing is copied from there. `pose_split_on_token_ids`, which moves skips to given tokens, is left out: by default it
is empty. So is a document's last, shorter piece, which axolotl trains with padding.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from skipwise.positions import Plain, PositionSample
from skipwise.window import Window


@dataclass(frozen=True, slots=True, kw_only=True)
class AxolotlPoSE:
    """Equal chunks of contiguous text, with skips that each piece of a document keeps for all epochs.

    A piece is known by its place and its document's length, since a sampler is not told more. Two documents of equally
    many tokens therefore share their draws.

    Attributes:
        chunks: number of chunks N, 1 to the training window; axolotl's `pose_num_chunks`.
        seed: of the draws that are kept.
    """

    uses_sentence_ends: ClassVar[bool] = False

    chunks: int = 2
    seed: int = 0

    def sample(self, num_tokens: int, window: Window, rng: np.random.Generator) -> PositionSample:
        """See `skipwise.positions.PositionSampler.sample`."""
        if num_tokens < window.train:
            return Plain().sample(num_tokens, window, rng)  # which refuses it
        piece = int(rng.integers(num_tokens // window.train))
        kept = np.random.default_rng((self.seed, num_tokens, piece))
        position_ids = np.arange(window.train)
        left = window.target - window.train
        for begin in range(1, self.chunks):
            skip = int(kept.integers(left + 1))
            position_ids[begin * (window.train // self.chunks) :] += skip
            left -= skip
        token_index = piece * window.train + np.arange(window.train)
        return PositionSample(token_index=token_index, position_ids=position_ids)
