"""What a user gets without training: a model that is read in another way, by `ArmKind.measured` of its arm."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from skipwise.compare.settings import Measured
from skipwise.evals import make_task
from skipwise.model import with_rope
from skipwise.rope import Interpolation
from skipwise.runtime.relative import DualChunk, Shifted, other_distances
from skipwise.window import Window


def pieces_of(task: Mapping[str, Any], lengths: Sequence[int], measured: Measured) -> list[tuple[dict, list[int]]]:
    """A task and its lengths, as often as another model is needed; the same tokens are scored as if it were one.

    Args:
        task: its kind and settings.
        lengths: in tokens.
        measured: how the arm is measured.
    """
    if measured != "by_length":
        return [({**task}, [*lengths])]
    made: Any = make_task(dict(task))
    # Where perplexity cuts documents depends on all lengths, unless it is told.
    cut = {"cut_tokens": made.about(lengths)["cut_tokens"]} if hasattr(made, "cut_tokens") else {}
    return [({**task, **cut}, [length]) for length in lengths]


@contextmanager
def as_measured(
    model: Any, measured: Measured, lengths: Sequence[int], window: Window, interpolation: Interpolation
) -> Iterator[Any]:
    """Context in which the model it yields reads inputs of some lengths as an arm is measured.

    Args:
        model: of the arm; for `by_length` and `dual_chunk` the base model.
        measured: how.
        lengths: of the inputs; one for `by_length`.
        window: lengths of the run.
        interpolation: of the arm.

    Raises:
        UnsupportedModelError: other distances are not known for the model.
    """
    if measured == "by_length":
        (length,) = lengths
        if length <= window.original:
            yield model
            return
        scaled = dataclasses.replace(window, train=min(window.train, length), target=length)
        yield with_rope(model, interpolation, scaled)
    elif measured == "plain":
        yield model
    else:
        distances = DualChunk(window=window.original) if measured == "dual_chunk" else Shifted(window=window.target)
        with other_distances(model, distances):
            yield model
