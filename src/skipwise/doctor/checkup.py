"""What is wrong with the files of a checkpoint that others made, and a mended copy of it.

Only `config.json` and `tokenizer_config.json` are looked at, and nothing is loaded. A fault is mended where the
checkpoint, its base model, or its family says what is right; else the verdict says what is missing to know it.
"""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skipwise.doctor.published import PUBLISHED, UNTOLD_QWEN2
from skipwise.doctor.verdict import Verdict, judge
from skipwise.errors import CheckpointError, ConfigError
from skipwise.rope import eras, read_rope, with_legacy_keys

CONFIG, TOKENIZER = "config.json", "tokenizer_config.json"
_FALLBACK = 10_000.0
_ORIGINAL = "original_max_position_embeddings"
# model_max_length of a tokenizer that has no limit is a number like 1e30.
_NO_LIMIT = 10**12
_KINDS_WITH_ORIGINAL = ("yarn", "llama3", "longrope")
# Rope parameters, and what else is looked at, that are numbers above 0 wherever they are written.
_NUMBERS = ("rope_theta", "factor", "attention_factor", "attn_factor", "original_rope_theta")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkup:
    """What was found, and the files as they should be.

    Attributes:
        verdicts: one a check.
        config: content of a mended `config.json`.
        tokenizer: content of a mended `tokenizer_config.json`; None where there is none.
        unmended: names of failed checks that nothing here says the right value for.
    """

    verdicts: list[Verdict]
    config: dict[str, Any]
    tokenizer: dict[str, Any] | None
    unmended: list[str]

    @property
    def healthy(self) -> bool:
        """Whether no check failed."""
        return not any(verdict.status == "fail" for verdict in self.verdicts)


@dataclass(slots=True)
class _Patient:
    """A checkpoint's files, mended while they are looked at, so that each check sees what those before it made
    right."""

    config: dict[str, Any]
    tokenizer: dict[str, Any] | None
    base: Mapping[str, Any] | None
    unmended: list[str] = field(default_factory=list)

    @property
    def text(self) -> dict[str, Any]:
        """The decoder's part of the config."""
        return eras.text_part(self.config)  # pyright: ignore[reportReturnType]

    @property
    def entries(self) -> list[dict[str, Any]]:
        """Every dict that holds rope parameters of the layers that see the whole context, today's first."""
        today = self.text.get("rope_parameters") or {}
        inner = today.get(eras.GLOBAL_LAYERS)
        found = [inner if isinstance(inner, dict) else today, self.text.get("rope_scaling")]
        return [entry for entry in found if entry]

    def value(self, name: str) -> Any:
        """Of a rope parameter, where readers of today take it from: the older entry stands over today's."""
        return next((entry[name] for entry in reversed(self.entries) if entry.get(name) is not None), None)

    def set(self, name: str, value: Any) -> None:
        """Writes a rope parameter wherever it is kept."""
        for entry in self.entries:
            if name in entry or entry is self.entries[0]:
                entry[name] = value

    @property
    def kind(self) -> str:
        """The rope type."""
        return self.value("rope_type") or self.value("type") or "default"

    @property
    def maximum(self) -> int:
        """The longest input by the config, in tokens."""
        return self.text[eras.maximum_name(self.text)]

    @property
    def original(self) -> int | None:
        """The original window by the config, in tokens."""
        return self.value(_ORIGINAL) or self.text.get(_ORIGINAL)

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


def check_up(folder: str | Path, base: Mapping[str, Any] | None = None) -> Checkup:
    """Looks at the files of a checkpoint.

    Args:
        folder: the checkpoint.
        base: config of the base model as a dict, which says the original base and window; None where it is not at hand.

    Raises:
        CheckpointError: a file cannot be read, or has no number where one must be.
    """
    config, tokenizer = _as_read(_read(Path(folder) / CONFIG), folder), None
    if (Path(folder) / TOKENIZER).is_file():
        tokenizer = _read(Path(folder) / TOKENIZER)
    patient = _Patient(config=config, tokenizer=tokenizer, base=base)
    _require_numbers(patient, str(folder))
    verdicts = []
    for name, check in _CHECKS.items():
        before = json.dumps([patient.config, patient.tokenizer])  # In which 512.0 is not 512.
        verdict = check(name, patient)
        verdicts.append(verdict)
        if verdict.status == "fail" and json.dumps([patient.config, patient.tokenizer]) == before:
            patient.unmended.append(name)
    if not patient.unmended and any(verdict.status == "fail" for verdict in verdicts):
        patient.config = with_legacy_keys(patient.config)
    return Checkup(verdicts=verdicts, config=patient.config, tokenizer=patient.tokenizer, unmended=patient.unmended)


def write_mended(folder: str | Path, checkup: Checkup, output: str | Path) -> Path:
    """Writes a copy of a checkpoint with its files mended; weights and all else are hard links, or copies on another
    disk.

    Args:
        folder: the checkpoint, which is left alone.
        checkup: of it.
        output: a new folder.

    Raises:
        ConfigError: the folder exists or lies inside the checkpoint, or a fault is left that only its maker can decide.
        CheckpointError: it cannot be written.
    """
    source, target = Path(folder), Path(output)
    if (own := _read(source / CONFIG).get("model_type")) != checkup.config.get("model_type"):
        raise ConfigError(
            f"model is {str(folder)!r}, of type {own}, whose config is looked at as the {checkup.config['model_type']} "
            f"model that it is read as: make that one by skipwise export {folder} --to hf, and mend it"
        )
    if checkup.unmended:
        raise ConfigError(
            f"what is right for {', '.join(checkup.unmended)} cannot be told from {str(folder)!r} alone; name the "
            "model it was made of with --base"
        )
    if target.exists():
        raise ConfigError(f"--out is {str(target)!r}, which exists already; give a new folder")
    if source.resolve() in target.resolve().parents:
        raise ConfigError(
            f"--out is {str(target)!r}, inside the checkpoint, which is left alone; give a folder elsewhere"
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as unfinished:
            complete = Path(unfinished) / target.name
            complete.mkdir()
            for each in sorted(each for each in source.iterdir() if each.name not in (CONFIG, TOKENIZER)):
                if each.is_dir():
                    shutil.copytree(each, complete / each.name, copy_function=_link)
                else:
                    _link(each, complete / each.name)
            _write(complete / CONFIG, checkup.config)
            if checkup.tokenizer is not None:
                _write(complete / TOKENIZER, checkup.tokenizer)
            complete.rename(target)
    except OSError as error:
        raise CheckpointError(
            f"mended copy {str(target)!r} cannot be written ({error}); choose another folder"
        ) from error
    return target


def _as_read(config: dict[str, Any], folder: str | Path) -> dict[str, Any]:
    """A config as that of the model which is made of it, where this is another one.

    Raises:
        UnsupportedModelError: none can be made of it.
    """
    if config.get("model_type") != "baichuan":
        return config
    from skipwise.model.baichuan import llama_config
    from skipwise.model.source import ModelSource, one_line_errors

    place = ModelSource(name=str(folder))
    with one_line_errors(place, "the config"):
        return llama_config(config, place).to_dict()


def _require_numbers(patient: _Patient, folder: str) -> None:
    """Refuses a config that says no window, or has something else where objects and numbers above 0 belong."""
    text, maximum = patient.text, eras.maximum_name(patient.text)
    if text.get(maximum) is None:
        raise CheckpointError(f"config.json of {folder!r} has no {maximum}; write the model's window")
    for name in ("rope_parameters", "rope_scaling"):
        if not isinstance(text.get(name), dict | None):
            raise CheckpointError(f"config.json of {folder!r} has {name} {text[name]!r}; write an object, or null")
    for holder in (text, *patient.entries):
        for name in (maximum, _ORIGINAL, *_NUMBERS):
            value = holder.get(name)
            # Of lengths, texts of digits are mended.
            is_right_kind = not isinstance(value, bool | str) or (isinstance(value, str) and name not in _NUMBERS)
            if value is not None and not (is_right_kind and (_number(value) or 0) > 0):
                raise CheckpointError(f"config.json of {folder!r} has {name} {value!r}; write a number above 0")


def _lengths(name: str, patient: _Patient) -> Verdict:
    """Lengths are whole numbers."""
    wrong = []
    for holder in (patient.text, *patient.entries):
        for key in (eras.maximum_name(patient.text), _ORIGINAL):
            value = holder.get(key)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
                wrong.append(f"{key} is {value!r}")
                if isinstance(value, int | float | str) and (number := _number(value)) is not None:
                    holder[key] = round(number)
    return judge(
        name, not wrong, "; ".join(wrong) or "lengths are whole numbers", "write them as whole numbers of tokens"
    )


def _eras(name: str, patient: _Patient) -> Verdict:
    """Both eras' entries say the same; transformers 5 takes the older entry where they do not."""
    text, faults = patient.text, []
    if len(patient.entries) == 2:
        today, old = patient.entries
        spelled = {**old, "rope_type": old.get("rope_type") or old.get("type")}
        for key in ("rope_type", "factor", _ORIGINAL, "attention_factor", "rope_theta"):
            if None not in (today.get(key), spelled.get(key)) and today[key] != spelled[key]:
                faults.append(f"{key} is {today[key]!r} in rope_parameters and {spelled[key]!r} in rope_scaling")
    if faults:
        fits = [entry for entry in patient.entries if _fits(entry, text)]
        if len(fits) == 1:
            right = {"rope_theta": text.get("rope_theta"), **fits[0]}
            right["rope_type"] = right.get("rope_type") or right.get("type")
            # In place: an entry may be one of several, each of some of the layers.
            for entry, more in zip(patient.entries, ({}, {"type": right["rope_type"]}), strict=True):
                entry.clear()
                entry.update({name: value for name, value in right.items() if name != "type"} | more)
    return judge(
        name, not faults, "; ".join(faults) or "rope_parameters and rope_scaling agree",
        "the entry whose factor is maximum / original is taken, where one is",
    )  # fmt: skip


def _base(name: str, patient: _Patient) -> Verdict:
    """The base of the rotary embedding was not lost."""
    text = patient.text
    found = [patient.entries[0].get("rope_theta") if patient.entries else None, text.get("rope_theta")]
    found = [float(value) for value in (*found, patient.value("rope_theta")) if value is not None]
    known, _, who = patient.known()
    grown = text.get("original_rope_theta")
    if patient.kind == "default" and grown is not None and grown not in found:
        # A changed base is this model's interpolation.
        return judge(
            name, len({*found}) == 1, f"base {found[:1]}, grown from {grown:g}", "write one base in all places"
        )
    if not found and text.get("model_type") not in ("llama", "mistral", "gpt_neox", "gptj", "codegen"):
        detail = "no rope_theta is written, and readers fall back to a base of their own"
        return _mend_base(name, patient, detail, known if known is not None else grown)
    if len({*found}) > 1:
        detail = f"rope_theta is {' and '.join(f'{value:g}' for value in sorted({*found}))} in different places"
        sure = known if known in found else next(iter({*found} - {_FALLBACK}), None) if len({*found}) == 2 else None
        return _mend_base(name, patient, detail, sure)
    theta = found[0] if found else _FALLBACK
    if theta == _FALLBACK and known is None and grown not in (None, theta):
        detail = f"rope_theta is {theta:g}, what readers fall back to, and original_rope_theta {grown:g}"
        return _mend_base(name, patient, detail, grown)
    if patient.base is not None and known is not None and theta != known and patient.kind != "default":
        return _mend_base(name, patient, f"rope_theta is {theta:g}, and {known:g} in {who}", known)
    if theta == _FALLBACK and who and known != _FALLBACK:
        what = "another" if known is None else f"{known:g}"
        return _mend_base(
            name, patient, f"rope_theta is {theta:g}, what readers fall back to, and {who} has {what}", known
        )
    if theta == _FALLBACK and not who and text.get("model_type") == "qwen2" and patient.maximum >= UNTOLD_QWEN2:
        detail = (
            f"rope_theta is {theta:g}, what readers fall back to; of qwen2 models with such a window, those that were "
            "made of its math models have it, others do not: --base says which this is"
        )
        return Verdict(name=name, status="note", detail=detail)
    return Verdict(name=name, status="pass", detail=f"base {theta:g}")


def _mend_base(name: str, patient: _Patient, detail: str, theta: float | None) -> Verdict:
    cure = "give the base model with --base" if theta is None else f"the base is {theta:g}"
    if theta is not None:
        if not patient.entries:
            patient.text["rope_parameters"] = {"rope_type": "default"}
        patient.text["rope_theta"] = theta
        patient.set("rope_theta", theta)
        if "original_rope_theta" in patient.text and patient.kind != "default":
            patient.text["original_rope_theta"] = theta
    return Verdict(name=name, status="fail", detail=detail, cure=cure)


def _original(name: str, patient: _Patient) -> Verdict:
    """The original window is the base model's."""
    own, maximum, factor = patient.original, patient.maximum, patient.value("factor")
    _, known, who = patient.known()
    places = {value for value in (patient.value(_ORIGINAL), patient.text.get(_ORIGINAL)) if value is not None}
    if own is None:
        return Verdict(name=name, status="pass", detail=f"no original window is on record; the maximum is {maximum}")
    fault, right = None, None
    if known is not None and own != known:
        fault, right = f"original window is {own}, and {known} in {who}", known
    elif len(places) > 1:
        fitting = [value for value in places if factor and math.isclose(maximum / value, factor, rel_tol=1e-6)]
        fault = f"original window is {' and '.join(map(str, sorted(places)))} in different places"
        right = fitting[0] if len(fitting) == 1 else None
    elif own > maximum:
        fault = f"original window is {own}, longer than the maximum of {maximum}"
    elif own == maximum and known is None and factor and factor > 1 and patient.kind in _KINDS_WITH_ORIGINAL:
        fault = f"original window and maximum are both {own}, and yet it is scaled by {factor:g}"
    if fault is None and own == maximum and factor and factor > 1 and patient.kind in _KINDS_WITH_ORIGINAL:
        detail = f"scaled by {factor:g}, and the maximum was never raised from {own}: readers take no more than that"
        return Verdict(name=name, status="note", detail=detail)
    if fault is None:
        return Verdict(name=name, status="pass", detail=f"original window {own}, maximum {maximum}")
    if right is None:
        cure = "the maximum was never raised, or the original window was written over; give the base model with --base"
        return Verdict(name=name, status="fail", detail=fault, cure=cure)
    patient.text[_ORIGINAL] = right
    if patient.kind in _KINDS_WITH_ORIGINAL or patient.value(_ORIGINAL) is not None:
        patient.set(_ORIGINAL, right)
    cure = f"the original window is {right}"
    if factor and patient.kind != "llama3" and maximum > right and math.isclose(factor * own, maximum, rel_tol=1e-6):
        # It was scaled from what was extended already.
        patient.set("factor", maximum / right)
        cure += f", so the factor is {maximum / right:g}"
    return Verdict(name=name, status="fail", detail=fault, cure=cure)


def _doubled(name: str, patient: _Patient) -> Verdict:
    """The model is scaled once."""
    factor, own, grown = patient.value("factor"), patient.original, patient.text.get("original_rope_theta")
    theta = patient.value("rope_theta") or patient.text.get("rope_theta")
    if patient.kind in ("yarn", "linear", "llama3") and grown is not None and theta is not None and theta != grown:
        patient.text["rope_theta"] = grown
        patient.set("rope_theta", grown)
        detail = f"{patient.kind} scales a base that was raised from {grown:g} to {theta:g} already"
        return Verdict(name=name, status="fail", detail=detail, cure=f"one of the two; the base becomes {grown:g}")
    if not factor or own is None or patient.maximum <= own:
        return Verdict(name=name, status="pass", detail="scaled once" if factor else "not scaled")
    nominal = patient.maximum / own
    if nominal > 1 and math.isclose(factor, nominal**2, rel_tol=1e-2):
        patient.set("factor", nominal)
        detail = f"factor is {factor:g} for {nominal:g} times the window: it was applied twice"
        return Verdict(name=name, status="fail", detail=detail, cure=f"the factor is {nominal:g}")
    if not math.isclose(factor, nominal, rel_tol=1e-6):
        detail = f"factor is {factor:g} for {nominal:g} times the window, as some published models have it"
        return Verdict(name=name, status="note", detail=detail)
    return Verdict(name=name, status="pass", detail=f"scaled by {factor:g}, from {own} to {patient.maximum}")


def _factor(name: str, patient: _Patient) -> Verdict:
    """YaRN's attention factor belongs to its factor, or was calibrated from it, and is said alike to all engines."""
    given, relative, factor = patient.value("attention_factor"), patient.value("attn_factor"), patient.value("factor")
    if patient.kind != "yarn" or not factor or patient.value("mscale"):
        return Verdict(name=name, status="pass", detail="no attention factor to be out of step")
    formula = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
    calibrated = patient.text.get("original_attention_factor")
    if given is None and relative in (None, 1):
        return Verdict(name=name, status="pass", detail=f"attention factor by the formula, {formula:.6g}")
    if given is None:
        given = relative * formula
        patient.set("attention_factor", given)
        detail = f"attn_factor is {relative:g}, and transformers reads attention_factor, which is left out"
        return Verdict(name=name, status="fail", detail=detail, cure=f"attention_factor is {given:.6g}")
    chosen = calibrated is not None or (relative is not None and math.isclose(relative, given / formula, rel_tol=1e-4))
    if not chosen and not math.isclose(given, formula, rel_tol=1e-4):
        other = math.exp(min(10 * (given - 1), 100))
        if not 1.5 <= other < 1e4 or not math.isclose(other, round(other), rel_tol=1e-3):
            detail = (
                f"attention factor is {given:.6g}, and the formula's {formula:.6g}: no factor's own, so taken as chosen"
            )
            return Verdict(name=name, status="note", detail=detail)
        patient.set("attention_factor", formula)
        _drop(patient, "attn_factor")
        detail = f"attention factor is {given:.6g}, that of a factor of {other:.3g}, and {factor:g} has {formula:.6g}"
        cure = f"it becomes {formula:.6g}"
        return Verdict(name=name, status="fail", detail=detail, cure=cure)
    if not math.isclose(relative or 1.0, given / formula, rel_tol=1e-4):
        patient.set("attn_factor", given / formula)
        other = (relative or 1.0) * formula
        detail = f"attention_factor is {given:.6g}, and attn_factor {relative!r} says {other:.6g} to vLLM"
        return Verdict(name=name, status="fail", detail=detail, cure=f"attn_factor is {given / formula:.6g}")
    how = "by the formula" if math.isclose(given, formula, rel_tol=1e-4) else "chosen"
    how = how if calibrated is None else f"calibrated from {calibrated:.6g}"
    return Verdict(name=name, status="pass", detail=f"attention factor {given:.6g}, {how}")


def _tokenizer(name: str, patient: _Patient) -> Verdict:
    """The tokenizer's limit is the model's window."""
    if patient.tokenizer is None:
        return Verdict(name=name, status="note", detail=f"there is no {TOKENIZER}")
    length = patient.tokenizer.get("model_max_length")
    if length is None or (number := _number(length)) is None or number > _NO_LIMIT:
        return Verdict(name=name, status="pass", detail="tokenizer has no limit of its own")
    if length == patient.maximum and isinstance(length, int):
        return Verdict(name=name, status="pass", detail=f"tokenizer takes {length} tokens, as the model")
    if number > patient.maximum:
        detail = f"tokenizer takes {number:.0f} tokens, more than the model's {patient.maximum}, and cuts nothing"
        return Verdict(name=name, status="note", detail=detail)
    patient.tokenizer["model_max_length"] = patient.maximum
    detail = f"tokenizer's model_max_length is {length!r}, and the model's window {patient.maximum}"
    return Verdict(
        name=name, status="fail", detail=detail, cure="longer texts would be cut or warned of; it becomes the window"
    )


def _readable(name: str, patient: _Patient) -> Verdict:
    """What is left can be read by readers of both eras, and says the same to both."""
    try:
        written = with_legacy_keys(patient.config)
        old = {key: value for key, value in eras.text_part(written).items() if key != "rope_parameters"}
        today, before = read_rope(written), read_rope(old) if "rope_scaling" in old else read_rope(written)
    except Exception as error:  # Configs are anyone's.
        return Verdict(
            name=name, status="fail", detail=str(error).splitlines()[0], cure="give the base model with --base"
        )
    same = (today.kind, today.theta, today.factor) == (before.kind, before.theta, before.factor)
    detail = f"{today.kind}, base {today.theta:g}, {today.original} to {today.maximum} tokens"
    return judge(name, same, detail if same else f"{detail} for today's readers, {before.kind} for older ones", "")


_CHECKS: dict[str, Callable[[str, _Patient], Verdict]] = {
    "lengths": _lengths,
    "eras": _eras,
    "base": _base,
    "original": _original,
    "doubled": _doubled,
    "factor": _factor,
    "tokenizer": _tokenizer,
    "readable": _readable,
}


def _fits(entry: Mapping[str, Any], text: Mapping[str, Any]) -> bool:
    original, factor = entry.get(_ORIGINAL) or text.get(_ORIGINAL), entry.get("factor")
    maximum = text[eras.maximum_name(text)]
    return bool(original and factor and math.isclose(maximum / original, factor, rel_tol=1e-6))


def _drop(patient: _Patient, name: str) -> None:
    for entry in patient.entries:
        entry.pop(name, None)


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it is no object")
        return content
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{str(file)!r} cannot be read ({error}); give a checkpoint folder") from error


def _write(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _link(file: str | Path, target: str | Path) -> None:
    try:
        os.link(Path(file).resolve(), target)
    except OSError:
        shutil.copy(file, target)
