"""Export an extended model to the format of another program, and check that it is still the same model.

source.py            load the trained model: of a run, with its adapter merged in float32, or of a checkpoint
merging.py           the weighted mean of base and extended weights
gguf.py              GGUF files; gguf_rope.py, gguf_tokenizer.py: their rotary embedding and tokenizer
runners.py           run an export: with transformers or with llama.cpp
comparison.py        compare rotary tables, lengths, token ids, logits and greedy text with the trained model's
modelfile.py         the Modelfile of Ollama beside a GGUF file
card.py              commands for vLLM, SGLang, llama.cpp and Ollama, and the card
sharing.py           take out what must not leave this machine; pushing.py: to the Hugging Face hub
"""

from typing import TYPE_CHECKING

from skipwise.errors import ConfigError
from skipwise.imports import lazily
from skipwise.names import did_you_mean

if TYPE_CHECKING:
    from skipwise.export.card import Exported
    from skipwise.export.exporting import export
    from skipwise.export.pushing import Destination, find_destination, push

_HOMES = {
    "Destination": "pushing",
    "Exported": "card",
    "export": "exporting",
    "find_destination": "pushing",
    "push": "pushing",
}

__all__ = [
    "FORMATS",
    "RECORD_FILE",
    "Destination",
    "Exported",
    "check_base_weight",
    "check_format",
    "default_ending",
    "export",
    "find_destination",
    "push",
]

FORMATS = ("hf", "gguf", "adapter")
"""Formats of exports."""

RECORD_FILE = "export.json"
"""The record of an export, in its folder."""

__getattr__ = lazily(__name__, _HOMES)


def check_format(name: str) -> None:
    """Raises for an unknown format, before anything is loaded.

    Raises:
        ConfigError: the format is unknown; the message has the nearest.
    """
    if name not in FORMATS:
        raise ConfigError(f"--to is {name!r}; {did_you_mean(name, FORMATS)}give one of {', '.join(FORMATS)}")


def default_ending(to: str, base_weight: float | None) -> str:
    """What the name of an export's folder has after the run's, by default: `gguf`, `base-0.5-hf`."""
    return to if base_weight is None else f"base-{base_weight:g}-{to}"


def check_base_weight(weight: float) -> None:
    """Raises for a share of the base model that is not within 0 to 1.

    Raises:
        ConfigError: it is not.
    """
    if not 0 <= weight <= 1:
        raise ConfigError(f"--merge-with-base is {weight:g}; give the base model's share, from 0 to 1")
