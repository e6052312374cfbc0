"""Weights of labels by their effective left context: those with a far one get a fixed extra weight together.

Source: EXACT, arXiv 2605.10544: effective contexts in logarithmic buckets; a fixed extra weight for the long tail,
shared by inverse frequency of the buckets. Where the tail begins, the least frequency and the scale are our own.
"""

from collections.abc import Collection, Sequence

import numpy as np

from skipwise.data.items import IGNORED_LABEL, TrainingItem
from skipwise.train.exercises import Items, RetrievalExercises

# Windows whose labels are counted.
COUNTED_WINDOWS = 256
# A bucket counts for at least this share of the labels; weights of buckets with next to none would have no bound.
_LEAST_SHARE = 0.01


class FarLabels:
    """Weights of labels by their effective left context, in buckets of powers of two of the original window.

    A label's effective left context is its position less that of the first token of its document in the window. With
    skips it is as long as positions say, not as many tokens as the window shows.

    With `n_b` labels in bucket b (b = 0 for contexts below the original window `Lo`, else `Lo 2^(b-1) .. Lo 2^b - 1`),
    `N` labels in all and `m_b = max(n_b, N / 100)`:

        extra_b = c / m_b for b > 0, else 0, with c such that the sum over b of n_b * extra_b is extra * N
        weight_b = (1 + extra_b) / (1 + extra)

    so the mean over all labels is 1. Without labels in any bucket but the first, all weights are 1.

    Args:
        counts: labels of each bucket, the first one's first.
        original: the original window, in tokens.
        extra: extra weight of all far labels together, as a share of the weight of all.
        separators: ids of tokens that end a document within a window.
    """

    def __init__(self, counts: Sequence[int], original: int, extra: float, separators: Collection[int] = ()) -> None:
        self._original, self._separators = original, np.array(sorted(separators), np.int64)
        number = np.asarray(counts, np.float64)
        shares = np.maximum(number, _LEAST_SHARE * number.sum())[1:]
        self.weights = np.ones(len(number), np.float32)
        if number[1:].any():
            found = extra * number.sum() / (number[1:] / shares).sum() / shares
            self.weights[:] = np.append(1.0, 1 + found) / (1 + extra)

    @classmethod
    def counted(
        cls,
        items: Items | RetrievalExercises,
        places: Collection[int],
        *,
        original: int,
        target: int,
        extra: float,
        separators: Collection[int] = (),
    ) -> "FarLabels":
        """Counts the labels of the items at these places.

        Args:
            items: of a stage.
            places: in the run.
            original: the original window, in tokens.
            target: the target, in tokens.
            extra: as for the class.
            separators: as for the class.
        """
        number = 1 + int(_bucket(np.array([target - 1]), original)[0])
        own = cls([0] * number, original, extra, separators)
        counts = np.zeros(number, np.int64)
        for place in places:
            item = items.at(place)
            counts += np.bincount(own.buckets(item)[_scored(item)], minlength=number)
        return cls(counts.tolist(), original, extra, separators)

    def buckets(self, item: TrainingItem) -> np.ndarray:
        """The bucket of each token, int64 (n,)."""
        positions = item.position_ids
        begins = np.zeros(len(positions), np.int64)
        begins[1:] = np.where(np.isin(item.input_ids[:-1], self._separators), np.arange(1, len(positions)), 0)
        return _bucket(positions - positions[np.maximum.accumulate(begins)], self._original)

    def weighted(self, item: TrainingItem) -> TrainingItem:
        """The item with the weights of its labels."""
        return item._replace(label_weights=self.weights[np.minimum(self.buckets(item), len(self.weights) - 1)])


def _bucket(contexts: np.ndarray, original: int) -> np.ndarray:
    """0 below the original window, k + 1 from `2^k` times that on; int64."""
    # The exponent of a float is exact, where a logarithm may round to the next bucket.
    return np.frexp(contexts / original)[1].clip(min=0).astype(np.int64)


def _scored(item: TrainingItem) -> np.ndarray:
    """Whether each token has a label, bool (n,); nothing in the window predicts its first token."""
    scored = item.labels != IGNORED_LABEL
    scored[0] = False
    return scored
