"""The files of a checkpoint under examination: read through `skipwise.rope`, mended in place."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skipwise.doctor.published import PUBLISHED
from skipwise.errors import CheckpointError
from skipwise.rope import eras, read_rope

CONFIG, TOKENIZER = "config.json", "tokenizer_config.json"
# Rope parameters, and what else is looked at, that are numbers above 0 wherever they are written.
_NUMBERS = ("rope_theta", "factor", "attention_factor", "attn_factor", "original_rope_theta")
_ENTRIES = ("rope_parameters", "rope_scaling")


@dataclass(slots=True)
class Patient:
    """A checkpoint's files, mended while they are looked at, so that each check sees what those before it made
    right.

    Attributes:
        config: content of `config.json`.
        tokenizer: content of `tokenizer_config.json`; None where there is none.
        base: config of the base model; None where it is not at hand.
        defaults: what the model's class in transformers takes where the config leaves it out.
        unmended: names of failed checks that nothing here says the right value for.
        lifted_from: the maximum that stood there before it was found to be less than the model handles, in tokens.
    """

    config: dict[str, Any]
    tokenizer: dict[str, Any] | None
    base: Mapping[str, Any] | None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    unmended: list[str] = field(default_factory=list)
    lifted_from: int | None = None

    @property
    def text(self) -> dict[str, Any]:
        """The decoder's part of the config, to be written into."""
        return eras.text_part(self.config)  # pyright: ignore[reportReturnType]

    @property
    def whole(self) -> dict[str, Any]:
        """The config with what its decoder's part leaves out."""
        return eras.with_text_part(self.config, {**self.defaults, **self.text})

    @property
    def entries(self) -> list[dict[str, Any]]:
        """Every dict of the files that transformers takes rope parameters of the global layers from, today's first."""
        by_layer = eras.parameters_by_layer(self.text) is not None
        found = []
        for name in _ENTRIES:
            entry = self.text.get(name) or {}
            inner = entry.get(eras.GLOBAL_LAYERS)
            if isinstance(inner, dict):
                found.append(inner)
            elif not by_layer or name == "rope_scaling":
                found.append(entry)
        return [entry for entry in found if entry]

    @property
    def passed_over(self) -> bool:
        """Whether there are rope parameters for all layers, where transformers takes none but by layer."""
        return bool(self.text.get("rope_parameters")) and eras.reads_by_layer_alone(self.text)

    def value(self, name: str) -> Any:
        """Of a rope parameter, as transformers takes it."""
        return eras.global_entry({**self.defaults, **self.text}).get(name)

    def write(self, name: str, value: Any) -> None:
        """Writes a rope parameter wherever it is kept."""
        for entry in self.entries:
            if name in entry or entry is self.entries[0]:
                entry[name] = value

    def drop(self, name: str) -> None:
        """Removes a rope parameter from wherever it is kept."""
        for entry in self.entries:
            entry.pop(name, None)

    @property
    def kind(self) -> str:
        """The rope type, under transformers' name."""
        return self.value("rope_type")

    @property
    def maximum(self) -> int:
        """The longest input by the config, in tokens."""
        return {**self.defaults, **self.text}[eras.maximum_name({**self.defaults, **self.text})]

    @property
    def original(self) -> int | None:
        """The original window on record where transformers takes it from, in tokens; None where none is."""
        if self.kind in eras.KINDS_WITH_ORIGINAL:
            return self.value(eras.ORIGINAL) if eras.names_original(self.text) else None
        return self.value(eras.ORIGINAL) or self.text.get(eras.ORIGINAL)

    @property
    def recorded_originals(self) -> set[int]:
        """Original windows that the files name, inside a rope entry or beside it, in tokens."""
        named = [holder.get(eras.ORIGINAL) for holder in (self.text, *self.entries)]
        return {value for value in named if value is not None}

    def rewritten(self) -> dict[str, Any]:
        """The config written for readers of both eras, with a base that only its class tells."""
        told = {name: value for name, value in self.defaults.items() if name == "rope_theta"}
        written = eras.with_both_eras(eras.with_text_part(self.config, {**told, **self.text}))
        if self.kind == "yarn" and not eras.names_original(self.text):
            # What transformers takes for it, the maximum, is a guess, and is not to become a record.
            for entry in Patient(config=written, tokenizer=None, base=None).entries:
                entry.pop(eras.ORIGINAL, None)
        return written

    def known(self) -> tuple[float | None, int | None, str]:
        """Base and original window that the model was pre-trained with, as far as they are known, and who says so.

        Who says so is empty where nobody knows anything; a published family says at least that the base is not the one
        that readers fall back to.
        """
        if self.base is not None:
            state = read_rope(self.base)
            return state.theta, state.original, "the base model"
        kind = self.text.get("model_type", "")
        for vocabulary in (self.text.get("vocab_size"), None):
            if found := PUBLISHED.get((kind, vocabulary)):
                is_told = (self.original or self.maximum) <= found.longest
                who = f"every published {kind} model{' of this vocabulary' if vocabulary else ''}"
                who += " and such a window" if is_told and vocabulary else " of such a window" if is_told else ""
                return found.theta if is_told else None, found.original, who
        return None, None, ""


def require_numbers(patient: Patient, folder: str) -> None:
    """Refuses a config that says no window, or has something else where objects and numbers above 0 belong.

    Raises:
        CheckpointError: with what stands there.
    """
    text = {**patient.defaults, **patient.text}
    maximum = eras.maximum_name(text)
    if text.get(maximum) is None:
        raise CheckpointError(f"config.json of {folder!r} has no {maximum}; write the model's window")
    for name in _ENTRIES:
        if not isinstance(text.get(name), dict | None):
            raise CheckpointError(f"config.json of {folder!r} has {name} {text[name]!r}; write an object, or null")
    for holder in (text, *patient.entries):
        for name in (maximum, eras.ORIGINAL, *_NUMBERS):
            value = holder.get(name)
            # Of lengths, texts of digits are mended.
            is_right_kind = not isinstance(value, bool | str) or (isinstance(value, str) and name not in _NUMBERS)
            if value is not None and not (is_right_kind and (number(value) or 0) > 0):
                raise CheckpointError(f"config.json of {folder!r} has {name} {value!r}; write a number above 0")


def number(value: Any) -> float | None:
    """A finite number, also one written as text; None for anything else."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def read_file(file: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        CheckpointError: it cannot be read, or holds something else.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it is no object")
        return content
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{str(file)!r} cannot be read ({error}); give a checkpoint folder") from error
