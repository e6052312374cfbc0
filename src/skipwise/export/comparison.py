"""Compare an export with the trained model: rotary tables, lengths, token ids, logits and greedy text.

Only the number format may differ. The trained model is therefore measured again with its weights rounded to the format,
which shows what the format costs. An engine that computes in float32 must match these logits up to float32 error. An
engine that also rounds activations (llama.cpp) is imitated. It may deviate from these logits by three times as much as
the imitation does.
"""

import argparse
import ast
import inspect
import json
import math
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from skipwise.errors import CheckpointError, ConfigError
from skipwise.export.gguf_tokenizer import TEXTS
from skipwise.export.runners import Runner
from skipwise.records.verdict import Verdict, judge
from skipwise.rope import RopeState, RopeTable, float32_angle_error, read_rope
from skipwise.rope.tables import frequency_deviation

# Allows for frequencies that are computed in float32 and converted several times.
_TABLE_TOLERANCE = 1e-5
_FACTOR_TOLERANCE = 1e-6
# Float32 error of logits, relative to the logits (root mean squares): a constant, and a term per radian of float32
# error in the angles of the last positions.
_FLOAT32_ERROR, _ERROR_PER_RADIAN = 1e-4, 0.5
# Allowed error of an engine's own rounding, relative to the error of its imitation.
_ACTIVATIONS = 3
# Tolerance between two measurements of the truncation error, which are float32 sums over the same values.
_CUT_TOLERANCE = 1e-4
_LAST, _GREEDY = 32, 24
_SHORT_TOKENS = 64
# Length of the long prompt: the whole window up to the first number, else the original window plus the second.
_WHOLE_TOKENS, _BEYOND_TOKENS = 8192, 256
_CURE = "the export is refused and was deleted"

Prompts = Mapping[str, list[int]]
"""Token ids of `short`, a prompt within the original window, and of `long`, which reaches beyond it if it can."""

Logits = Mapping[str, np.ndarray]
"""By prompt: float32 (32, vocabulary), logits of its last tokens; fewer rows for a shorter prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """The trained model in numbers, which an export must reproduce.

    Attributes:
        prompts: given to both.
        logits: of the prompts.
        tables: rotary tables for an input of the long prompt's length, `global` and `local`.
        ids: token ids of `TEXTS`.
    """

    prompts: Prompts
    logits: Logits
    tables: Mapping[str, RopeTable]
    ids: Sequence[list[int]]

    @classmethod
    def of(cls, runner: Runner, prompts: Prompts) -> "Reference":
        """Measures the trained model."""
        return cls(
            prompts=prompts,
            logits=measure(runner, prompts),
            tables=runner.tables(len(prompts["long"])),
            ids=[runner.token_ids(text) for text in TEXTS],
        )


def make_prompts(runner: Runner, state: RopeState, long_tokens: int | None = None) -> Prompts:
    """Prompts of real text: sources of Python's standard library.

    Args:
        runner: its tokenizer is used.
        state: rotary settings of the model.
        long_tokens: length of the long prompt, in tokens. None for the whole window if that is at most 8192 tokens,
            else 256 tokens beyond the original window.

    Raises:
        ConfigError: the long prompt is not longer than the original window, or longer than the model's window.
    """
    window = state.maximum
    if long_tokens is None:
        long_tokens = window if window <= _WHOLE_TOKENS else min(window, state.original + _BEYOND_TOKENS)
    elif long_tokens > window or long_tokens <= state.original < window:
        raise ConfigError(
            f"--long-tokens is {long_tokens}; the model's window is {window} tokens, and the long prompt must reach "
            f"beyond the original {state.original}"
        )
    ids: list[int] = []
    for module in cycle((argparse, ast, inspect, typing)):
        ids += runner.token_ids(inspect.getsource(module))
        if len(ids) >= long_tokens:
            break
    return {"short": ids[: min(_SHORT_TOKENS, state.original)], "long": ids[:long_tokens]}


def measure(runner: Runner, prompts: Prompts) -> Logits:
    """Logits of the last tokens of each prompt."""
    return {name: runner.logits(ids, min(_LAST, len(ids))) for name, ids in prompts.items()}


def compare(
    exported: Runner, reference: Reference, rounded: Runner, rounded_logits: Logits, imitated: Logits
) -> list[Verdict]:
    """Compares an export, loaded again, with the trained model.

    Args:
        exported: the export.
        reference: the trained model.
        rounded: the trained model with its weights rounded to the format; greedy text is compared with its.
        rounded_logits: of that model.
        imitated: the same with activations rounded as in the engine; the same as `rounded_logits` for an engine that
            computes in float32.

    Returns:
        One verdict per part.
    """
    found = measure(exported, reference.prompts)
    prompts = reference.prompts
    allowed = {
        name: _FLOAT32_ERROR
        + _ERROR_PER_RADIAN * _angle_error(reference.tables, len(ids))
        + _ACTIVATIONS * _off(imitated[name], rounded_logits[name])
        for name, ids in prompts.items()
    }
    return [
        *_tables_and_ids(exported, reference),
        *(
            _logits(name, found[name], reference.logits[name], rounded_logits[name], allowed[name], len(ids))
            for name, ids in prompts.items()
        ),
        _greedy(exported, rounded, prompts["short"], allowed["short"]),
    ]


def compare_cut(exported: Runner, reference: Reference, stated: float, error: float) -> list[Verdict]:
    """Compares an adapter that was truncated to a rank, loaded again, with the trained model that it approximates.

    Args:
        exported: the base model with the adapter.
        reference: the trained model.
        stated: relative error of the weights, measured at truncation.
        error: relative error of the loaded weights.

    Returns:
        One verdict per part. The error in logits is only a note, because the user must judge it.
    """
    found = measure(exported, reference.prompts)
    good = math.isclose(error, stated, rel_tol=_CUT_TOLERANCE, abs_tol=_CUT_TOLERANCE)
    detail = f"the tuned difference is off by {error:.3f} of its norm, and was by {stated:.3f} when it was truncated"
    verdicts = [*_tables_and_ids(exported, reference), judge("weights", good, detail, _CURE)]
    for name, ids in reference.prompts.items():
        own, wanted = found[name], reference.logits[name]
        detail = (
            f"logits of tokens {len(ids) - len(own)} to {len(ids) - 1} differ from the trained model's by "
            f"{_off(own, wanted):.2g} (relative); same top token: {_same_top(own, wanted):.0%}"
        )
        verdicts.append(Verdict(name=name, status="note", detail=detail))
    return verdicts


def compare_tables(found: Mapping[str, RopeTable], wanted: Mapping[str, RopeTable]) -> list[Verdict]:
    """Verdicts on rotary frequencies and attention factors. Tables are given by `global` and `local`."""
    off = max(frequency_deviation(found.get(kind), table) for kind, table in wanted.items())
    factors = {
        kind: (table.attention_factor, found[kind].attention_factor if kind in found else math.nan)
        for kind, table in wanted.items()
    }
    same = all(math.isclose(own, other, rel_tol=_FACTOR_TOLERANCE) for own, other in factors.values())
    written = ", ".join(f"{other:.7g}, trained {own:.7g} ({kind})" for kind, (own, other) in factors.items())
    return [
        judge(
            "tables",
            off <= _TABLE_TOLERANCE,
            f"inv_freq differs by {off:.2g} (relative, allowed {_TABLE_TOLERANCE:g})",
            _CURE,
        ),
        judge("factor", same, f"attention factor {written}", _CURE),
    ]


def compare_config(folder: Path, state: RopeState) -> Verdict:
    """Whether a `config.json` gives readers of both formats the model's rotary settings, with integer lengths."""
    written = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text = written.get("text_config", written)
    eras = {"transformers 5": written}
    if "rope_scaling" in text:
        eras["transformers 4"] = {name: value for name, value in text.items() if name != "rope_parameters"}
    faults = []
    for era, config in eras.items():
        read = read_rope(config)
        for name in ("kind", "theta", "original", "maximum", "factor", "attention_factor"):
            if getattr(read, name) != getattr(state, name):
                faults.append(f"{name} is {getattr(read, name)} for {era}, should be {getattr(state, name)}")
    lengths = {name: text.get(name) for name in ("max_position_embeddings", "original_max_position_embeddings")}
    faults += [f"{name} is {value!r}" for name, value in lengths.items() if not isinstance(value, int | None)]
    fine = f"{state.kind}, theta {state.theta:g}, {state.original} to {state.maximum} tokens, the same in both formats"
    return judge("integers", not faults, "; ".join(faults) or fine, _CURE)


def compare_entries(entries: Mapping[str, Any], state: RopeState) -> Verdict:
    """Whether a GGUF file's metadata contain the model's lengths and RoPE base."""
    wanted = {
        "context_length": state.maximum,
        "rope.scaling.original_context_length": state.original,
        "rope.freq_base": float(np.float32(state.parameters["rope_theta"])),
    }
    faults = [
        f"{key} is {entries.get(key)!r}, should be {value!r}"
        for key, value in wanted.items()
        if entries.get(key) != value
    ]
    kind, factor = entries.get("rope.scaling.type"), entries.get("rope.scaling.factor")
    scaled = kind if factor is None else f"{kind} by {factor:g}"
    fine = f"context_length {state.maximum}, original {state.original}, base {entries.get('rope.freq_base')}, {scaled}"
    return judge("integers", not faults, "; ".join(faults) or fine, _CURE)


def require_equal(verdicts: Sequence[Verdict], what: str) -> None:
    """Raises for an export that differs from the model.

    Raises:
        CheckpointError: a verdict failed. The message lists every failed verdict.
    """
    failed = [f"{verdict.name}: {verdict.detail}" for verdict in verdicts if verdict.status == "fail"]
    if failed:
        raise CheckpointError(
            f"{what} differs from the trained model by more than its number format: {'; '.join(failed)}; {_CURE}",
            page="weights-differ",
        )


def _tables_and_ids(exported: Runner, reference: Reference) -> list[Verdict]:
    tables = compare_tables(exported.tables(len(reference.prompts["long"])), reference.tables)
    return [*tables, _token_ids(exported, reference.ids)]


def _logits(
    name: str, found: np.ndarray, trained: np.ndarray, rounded: np.ndarray, allowed: float, length: int
) -> Verdict:
    off, cost = _off(found, rounded), _off(rounded, trained)
    good = bool(np.isfinite(found).all()) and off <= allowed
    detail = (
        f"logits of tokens {length - len(found)} to {length - 1} differ by {off:.2g} (relative, allowed "
        f"{allowed:.2g}); the format itself costs {cost:.2g}; same top token as trained: "
        f"{_same_top(found, trained):.0%}"
    )
    return judge(name, good, detail, _CURE)


def _greedy(exported: Runner, rounded: Runner, prompt: list[int], allowed: float) -> Verdict:
    """Checks that each token of the export's greedy text is the model's best, or ties with it within the error."""
    ids, ties = list(prompt), 0
    for step in range(_GREEDY):
        own, wanted = exported.logits(ids, 1)[0], rounded.logits(ids, 1)[0]
        token, best = int(own.argmax()), int(wanted.argmax())
        if token != best:
            behind = float(wanted.max() - wanted[token])
            # Allows for an error of several root mean squares in each of the two logits.
            if behind > 8 * allowed * _rms(wanted[None]):
                detail = f"token {step + 1} is {token}, whose logit is {behind:.3g} below the trained model's {best}"
                return judge("greedy", False, detail, _CURE)
            ties += 1
        ids.append(token)
    detail = f"{_GREEDY - ties} of {_GREEDY} tokens of greedy text are the trained model's"
    return judge("greedy", True, detail + (f", {ties} tie with them within the allowed error" if ties else ""), _CURE)


def _token_ids(exported: Runner, wanted: Sequence[list[int]]) -> Verdict:
    found = [exported.token_ids(text) for text in TEXTS]
    wrong = [i for i, (own, other) in enumerate(zip(found, wanted, strict=True)) if own != other]
    detail = f"token ids of {len(wanted)} texts are the same ({sum(map(len, wanted))} ids)"
    if wrong:
        own, other = found[wrong[0]], wanted[wrong[0]]
        place = next((i for i, (a, b) in enumerate(zip(own, other, strict=False)) if a != b), min(len(own), len(other)))
        detail = (
            f"token ids of {len(wrong)} of {len(wanted)} texts differ, first {own[place : place + 4]} instead of "
            f"{other[place : place + 4]} in {TEXTS[wrong[0]]!r}"
        )
    return judge("tokens", not wrong, detail, _CURE)


def _angle_error(tables: Mapping[str, RopeTable], length: int) -> float:
    """Largest float32 error of an angle of the last positions, in radians."""
    return max(
        float32_angle_error(table, length - 1 - i) for table in tables.values() for i in range(min(_LAST, length))
    )


def _off(found: np.ndarray, wanted: np.ndarray) -> float:
    """Relative error of logits, in root mean squares."""
    return _rms(found - wanted) / _rms(wanted)


def _same_top(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.mean(found.argmax(-1) == wanted.argmax(-1)))


def _rms(logits: np.ndarray) -> float:
    """Root mean square over tokens and vocabulary, of each token's logits minus their mean."""
    centred = logits.astype(np.float64)
    return float(np.sqrt(np.mean((centred - centred.mean(-1, keepdims=True)) ** 2)))
