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
dataclass in a file of its own, whose fields are its hyperparameters, and one line in `SAMPLERS`.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from skipwise.errors import ConfigError
from skipwise.own_samplers import is_own, own_sampler_class
from skipwise.positions.cream import CREAM
from skipwise.positions.endprompt import END_TEXTS, ENDS, EndPrompt
from skipwise.positions.pose import SKIPS, STARTS, TEXTS, PoSE
from skipwise.positions.randpos import RandPos
from skipwise.positions.sample import PositionSample, PositionSampler, known_names
from skipwise.positions.sentences import SentenceGaps
from skipwise.positions.unskipped import FullLength, Plain

__all__ = [
    "CREAM",
    "ENDS",
    "END_TEXTS",
    "SAMPLERS",
    "SKIPS",
    "STARTS",
    "TEXTS",
    "EndPrompt",
    "FullLength",
    "Plain",
    "PoSE",
    "PositionSample",
    "PositionSampler",
    "RandPos",
    "SentenceGaps",
    "sampler_from",
    "sampler_kind",
    "sampler_label",
]

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
        raise ConfigError(f"sampler.kind is {kind!r}; {known_names(str(kind), SAMPLERS)}; or FILE.py:CLASS of your own")
    allowed = [field.name for field in fields(sampler)]  # type: ignore[arg-type]
    for name in given:
        if name not in allowed:
            raise ConfigError(f"sampler.{name} is not a setting of {kind!r}; {known_names(str(name), allowed)}")
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
