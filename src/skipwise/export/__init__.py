"""Exports: an extended model in the form that another program loads, and proof that it is still the same model.

    source.py           the trained model: a run's, with its additions merged in float32, or a checkpoint's
    gguf.py             GGUF files; gguf_rope.py, gguf_tokenizer.py: their rotary embedding and tokenizer
    runners.py          what is exported, loaded again and run: by transformers, or by llama.cpp
    comparison.py       tables, whole numbers, token ids, logits and greedy text against the trained model's
    engines.py, card.py commands for vLLM and llama.cpp, and the card that has them

An export is written beside its folder, loaded again from there, compared, and only then given its name.
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

__all__ = ["FORMATS", "Exported", "check_format", "export"]

FORMATS = ("hf", "gguf", "adapter")
"""What a model is exported to."""

__getattr__ = lazily(__name__, _HOMES)


def check_format(name: str) -> None:
    """Refuses a name that is no format's, before anything is loaded.

    Raises:
        ConfigError: with the nearest.
    """
    if name not in FORMATS:
        raise ConfigError(f"--to is {name!r}; {did_you_mean(name, FORMATS)}give one of {', '.join(FORMATS)}")
