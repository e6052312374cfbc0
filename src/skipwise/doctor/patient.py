"""The files of a checkpoint under examination: read through `skipwise.rope`, fixed in place."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from skipwise.errors import CheckpointError
from skipwise.rope import eras, read_rope

CONFIG, TOKENIZER = "config.json", "tokenizer_config.json"
# Settings other than lengths that must be positive numbers wherever they occur.
_NUMBERS = ("rope_theta", "factor", "attention_factor", "attn_factor", "original_rope_theta")
_ENTRIES = ("rope_parameters", "rope_scaling")


class Published(NamedTuple):
    """What the published models of a family have in common, to detect a RoPE base that was lost.

    Attributes:
        theta: RoPE base of the models whose window before any scaling is at most `longest`. Others use other bases.
        longest: in tokens; 0 if the window does not determine the RoPE base.
        original: window that all of them were pre-trained for, in tokens; None if it differs.
    """

    theta: float
    longest: int
    original: int | None


PUBLISHED: dict[tuple[str, int | None], Published] = {
    ("llama", 128256): Published(500_000.0, 8192, 8192),
    ("mistral", 32768): Published(1e6, 32768, 32768),
    # Nemo. Ministral and Small use 1e8 and more at the same windows.
    ("mistral", 131072): Published(1e6, 0, None),
    # The long-context models of July 2025 use 5e6 and 1e7.
    ("qwen3", None): Published(1e6, 40960, None),
    ("qwen3_moe", None): Published(1e6, 40960, None),
    ("gemma3_text", None): Published(1e6, 131072, None),
}
"""By model type and vocabulary size; None stands for any vocabulary size.

A family is listed only if none of its models uses the base that readers fall back to. Qwen2 is not listed: models
derived from its math models use that base at any window (DeepSeek-R1-Distill-Qwen-1.5B: 10,000 at 131,072 tokens).
"""


@dataclass(slots=True)
class Patient:
    """A checkpoint's files. Checks fix them in place, so that each check sees what earlier checks have fixed.

    Attributes:
        config: content of `config.json`.
        tokenizer: content of `tokenizer_config.json`; None if there is none.
        base: config of the base model; None if not available.
        defaults: values that the model's class in transformers uses for settings that the config omits.
        unfixed: names of failed checks whose right value is not known.
        lifted_from: the maximum, in tokens, before it was raised to what the model handles; None if it was not raised.
    """

    config: dict[str, Any]
    tokenizer: dict[str, Any] | None
    base: Mapping[str, Any] | None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    unfixed: list[str] = field(default_factory=list)
    lifted_from: int | None = None

    @property
    def text(self) -> dict[str, Any]:
        """The decoder's part of the config; changes to it change the config."""
        return eras.text_part(self.config)  # pyright: ignore[reportReturnType]

    @property
    def whole(self) -> dict[str, Any]:
        """A copy of the config whose decoder's part also contains the defaults."""
        return eras.with_text_part(self.config, {**self.defaults, **self.text})

    @property
    def entries(self) -> list[dict[str, Any]]:
        """The dicts that transformers reads rope parameters of the global layers from, `rope_parameters` first."""
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
        """Whether `rope_parameters` is one entry for all layers, but transformers only reads entries per layer type."""
        return bool(self.text.get("rope_parameters")) and eras.reads_by_layer_alone(self.text)

    def value(self, name: str) -> Any:
        """The value of a rope parameter that transformers uses."""
        return eras.global_entry({**self.defaults, **self.text}).get(name)

    def write(self, name: str, value: Any) -> None:
        """Writes a rope parameter into the first entry, and into every other entry that has it."""
        for entry in self.entries:
            if name in entry or entry is self.entries[0]:
                entry[name] = value

    def drop(self, name: str) -> None:
        """Removes a rope parameter from all entries."""
        for entry in self.entries:
            entry.pop(name, None)

    @property
    def kind(self) -> str:
        """The rope type, in transformers' spelling."""
        return self.value("rope_type")

    @property
    def maximum(self) -> int:
        """The longest input according to the config, in tokens."""
        return {**self.defaults, **self.text}[eras.maximum_name({**self.defaults, **self.text})]

    @property
    def original(self) -> int | None:
        """The original window recorded in the place that transformers reads, in tokens; None if there is no record."""
        if self.kind in eras.KINDS_WITH_ORIGINAL:
            return self.value(eras.ORIGINAL) if eras.names_original(self.text) else None
        return self.value(eras.ORIGINAL) or self.text.get(eras.ORIGINAL)

    @property
    def recorded_originals(self) -> set[int]:
        """All original windows that the config records, inside a rope entry or beside it, in tokens."""
        named = [holder.get(eras.ORIGINAL) for holder in (self.text, *self.entries)]
        return {value for value in named if value is not None}

    def rewritten(self) -> dict[str, Any]:
        """The config in both formats, with a RoPE base that only the model's class defines written out."""
        from_class = {name: value for name, value in self.defaults.items() if name == "rope_theta"}
        written = eras.with_both_eras(eras.with_text_part(self.config, {**from_class, **self.text}))
        if self.kind == "yarn" and not eras.names_original(self.text):
            # transformers falls back to the maximum. That is a guess, which must not be recorded as the original.
            for entry in Patient(config=written, tokenizer=None, base=None).entries:
                entry.pop(eras.ORIGINAL, None)
        return written

    def known(self) -> tuple[float | None, int | None, str]:
        """RoPE base and original window of the model's pre-training, if known, and the source of this knowledge.

        The source is empty if nothing is known. If it is a published family, the RoPE base is known at least not to be
        the one that readers fall back to.
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
    """Refuses a config without a window, or with values that are not objects or positive numbers as required.

    Raises:
        CheckpointError: names the setting and its value.
    """
    text = {**patient.defaults, **patient.text}
    maximum = eras.maximum_name(text)
    if text.get(maximum) is None:
        raise CheckpointError(
            f"config.json of {folder!r} has no {maximum}; write the model's window", page="unclear-config"
        )
    for name in _ENTRIES:
        if not isinstance(text.get(name), dict | None):
            raise CheckpointError(f"config.json of {folder!r} has {name} {text[name]!r}; write an object, or null")
    for holder in (text, *patient.entries):
        for name in (maximum, eras.ORIGINAL, *_NUMBERS):
            value = holder.get(name)
            # Lengths written as text are fixed by a check.
            is_right_kind = not isinstance(value, bool | str) or (isinstance(value, str) and name not in _NUMBERS)
            if value is not None and not (is_right_kind and (number(value) or 0) > 0):
                raise CheckpointError(f"config.json of {folder!r} has {name} {value!r}; write a number above 0")


def number(value: Any) -> float | None:
    """Converts a value, possibly written as text, to a finite float; None if that is not possible."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def read_file(file: Path) -> dict[str, Any]:
    """Reads a JSON file that contains an object.

    Raises:
        CheckpointError: the file cannot be read, or contains something else.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it is not a JSON object")
        return content
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{str(file)!r} cannot be read ({error}); give a checkpoint folder") from error
