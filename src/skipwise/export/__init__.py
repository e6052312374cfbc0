"""Export an extended model to the format of another program, and check that it is still the same model.

source.py            load the trained model: of a run, with its adapter merged in float32, or of a checkpoint
merging.py           the weighted mean of base and extended weights
gguf.py              GGUF files; gguf_rope.py, gguf_tokenizer.py: their rotary embedding and tokenizer
runners.py           run an export: with transformers or with llama.cpp
comparison.py        compare rotary tables, lengths, token ids, logits and greedy text with the trained model's
card.py              commands for vLLM and llama.cpp, and the card
"""

from typing import TYPE_CHECKING

from skipwise.errors import ConfigError
from skipwise.imports import lazily
from skipwise.names import did_you_mean

if TYPE_CHECKING:
    from skipwise.export.card import Exported
    from skipwise.export.exporting import export

_HOMES = {
    "Exported": "card",
    "export": "exporting",
}

__all__ = ["FORMATS", "Exported", "check_base_weight", "check_format", "export"]

FORMATS = ("hf", "gguf", "adapter")
"""Formats of exports."""

__getattr__ = lazily(__name__, _HOMES)


def check_format(name: str) -> None:
    """Raises for an unknown format, before anything is loaded.

    Raises:
        ConfigError: the format is unknown; the message has the nearest.
    """
    if name not in FORMATS:
        raise ConfigError(f"--to is {name!r}; {did_you_mean(name, FORMATS)}give one of {', '.join(FORMATS)}")


def check_base_weight(weight: float) -> None:
    """Raises for a share of the base model that is not within 0 to 1.

    Raises:
        ConfigError: it is not.
    """
    if not 0 <= weight <= 1:
        raise ConfigError(f"--merge-with-base is {weight:g}; give the base model's share, from 0 to 1")
