"""The checks of a checkpoint's files. Each check gives a verdict, and fixes a fault if it knows the right value."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from skipwise.doctor.checkpoint import TABLE_TOLERANCE
from skipwise.doctor.patient import TOKENIZER, Patient, number
from skipwise.errors import SkipwiseError
from skipwise.model.library import library_config, library_tables
from skipwise.names import first_line
from skipwise.rope import RopeState, eras, read_rope
from skipwise.rope.tables import deviation

_FALLBACK = 10_000.0
# From this window on, a Qwen2 model with the fallback base has either lost its own or derives from a math model.
_UNTOLD_QWEN2 = 32768
# A tokenizer without a limit has a model_max_length such as 1e30.
_NO_LIMIT = 10**12


class Finding(NamedTuple):
    """The result of one check: a `Verdict` without its name."""

    status: Literal["pass", "fail", "note"]
    detail: str
    cure: str = ""


def _judge(good: bool, detail: str, cure: str) -> Finding:
    return Finding("pass", detail) if good else Finding("fail", detail, cure)


def _lengths(patient: Patient) -> Finding:
    """Lengths must be integers."""
    wrong = []
    for holder in (patient.text, *patient.entries):
        for key in (eras.maximum_name(patient.text), eras.ORIGINAL):
            value = holder.get(key)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
                wrong.append(f"{key} is {value!r}")
                if isinstance(value, int | float | str) and (whole := number(value)) is not None:
                    holder[key] = round(whole)
    return _judge(not wrong, "; ".join(wrong) or "lengths are whole numbers", "write them as whole numbers of tokens")


def _eras(patient: Patient) -> Finding:
    """`rope_parameters` and `rope_scaling` must agree; if they differ, transformers 5 uses `rope_scaling`."""
    text, faults = patient.text, []
    if patient.passed_over:
        return Finding(
            "fail",
            f"rope_parameters has one entry for all layers, which transformers ignores for {text.get('model_type')}",
            f"if the model was trained with it, write it under {eras.GLOBAL_LAYERS!r} in rope_parameters",
        )
    if unlike := eras.unlike_types({**patient.defaults, **text}):
        return Finding(
            "fail",
            f"the rope entry has rope_type {unlike[0]!r} and type {unlike[1]!r}; transformers uses the first",
            "write the type that the model was trained with under both names",
        )
    if len(patient.entries) == 2:
        today, old = patient.entries
        for key in ("rope_type", "factor", eras.ORIGINAL, "attention_factor", "rope_theta"):
            named = [_spelled(entry).get(key) for entry in (today, old)]
            if key == "rope_type":
                named = [value and eras.standard_type(text.get("model_type", ""), value) for value in named]
            if None not in named and named[0] != named[1]:
                faults.append(f"{key} is {named[0]!r} in rope_parameters and {named[1]!r} in rope_scaling")
    if faults:
        fits = [entry for entry in patient.entries if _fits(entry, patient)]
        if len(fits) == 1:
            right = {"rope_theta": text.get("rope_theta"), **_spelled(fits[0])}
            # Changed in place, because an entry may be one of several for different layers.
            for entry, more in zip(patient.entries, ({}, {"type": right["rope_type"]}), strict=True):
                entry.clear()
                entry.update({name: value for name, value in right.items() if name != "type"} | more)
    return _judge(
        not faults,
        "; ".join(faults) or "rope_parameters and rope_scaling agree",
        "if exactly one entry has the factor maximum / original, it is used; otherwise make them agree",
    )


def _base(patient: Patient) -> Finding:
    """The RoPE base must not have been lost."""
    text = patient.text
    found = [patient.entries[0].get("rope_theta") if patient.entries else None, text.get("rope_theta")]
    found = [float(value) for value in (*found, patient.value("rope_theta")) if value is not None]
    if not found and patient.defaults.get("rope_theta"):
        found = [float(patient.defaults["rope_theta"])]  # The family's default; published Gemma 3 configs rely on it.
    known, _, who = patient.known()
    grown = text.get("original_rope_theta")
    if patient.kind == "default" and grown is not None and grown not in found:
        # The changed base is this model's interpolation.
        return _judge(
            len({*found}) == 1, f"base {found[:1]}, raised from {grown:g}", "write the same base in all places"
        )
    if not found and text.get("model_type") not in ("llama", "mistral", "gpt_neox", "gptj", "codegen"):
        detail = "rope_theta is missing, and readers fall back to a default base"
        return _mend_base(patient, detail, known if known is not None else grown)
    if len({*found}) > 1:
        detail = f"rope_theta is {' and '.join(f'{value:g}' for value in sorted({*found}))} in different places"
        sure = known if known in found else next(iter({*found} - {_FALLBACK}), None) if len({*found}) == 2 else None
        return _mend_base(patient, detail, sure)
    theta = found[0] if found else _FALLBACK
    if theta == _FALLBACK and known is None and grown not in (None, theta):
        detail = f"rope_theta is {theta:g}, which readers fall back to, but original_rope_theta is {grown:g}"
        return _mend_base(patient, detail, grown)
    if patient.base is not None and known is not None and theta != known and patient.kind != "default":
        return _mend_base(patient, f"rope_theta is {theta:g}, but {known:g} in {who}", known)
    if theta == _FALLBACK and who and known != _FALLBACK:
        what = "another" if known is None else f"{known:g}"
        return _mend_base(patient, f"rope_theta is {theta:g}, which readers fall back to, but {who} has {what}", known)
    if theta == _FALLBACK and not who and text.get("model_type") == "qwen2" and patient.maximum >= _UNTOLD_QWEN2:
        detail = (
            f"rope_theta is {theta:g}, which readers fall back to; of qwen2 models with such a window, only those "
            "derived from its math models have it: give the base model with --base to check"
        )
        return Finding("note", detail)
    return Finding("pass", f"base {theta:g}")


def _mend_base(patient: Patient, detail: str, theta: float | None) -> Finding:
    cure = "give the base model with --base" if theta is None else f"the base is {theta:g}"
    if theta is not None:
        if not patient.entries:
            patient.text["rope_parameters"] = {"rope_type": "default"}
        patient.text["rope_theta"] = theta
        patient.write("rope_theta", theta)
        if "original_rope_theta" in patient.text and patient.kind != "default":
            patient.text["original_rope_theta"] = theta
    return Finding("fail", detail, cure)


def _original(patient: Patient) -> Finding:
    """The original window must be the base model's."""
    own, maximum, factor = patient.original, patient.maximum, patient.value("factor")
    _, known, who = patient.known()
    fault, right = None, None
    if own is None and patient.kind in eras.KINDS_WITH_ORIGINAL and known not in (None, patient.value(eras.ORIGINAL)):
        taken = patient.value(eras.ORIGINAL)
        fault = f"no original window is recorded; transformers assumes {taken}, but it is {known} in {who}"
        right = known
    elif own is None:
        return _unrecorded(patient)
    elif known is not None and own != known:
        fault, right = f"original window is {own}, but {known} in {who}", known
    elif len(patient.recorded_originals) > 1:
        where = "beside the entry" if own == patient.text.get(eras.ORIGINAL) else "inside the entry"
        fault = f"original window is {' and '.join(map(str, sorted(patient.recorded_originals)))} in different places"
        fault, right = f"{fault}; transformers uses the one {where}", own
    elif own > maximum:
        fault = f"original window is {own}, longer than the maximum of {maximum}"
    elif own == maximum and known is None and (factor or 1) > 1 and _is_ours(patient):
        fault = f"original window and maximum are both {own}, but the model is scaled by {factor:g}"
    if fault is None:
        return Finding("pass", f"original window {own}, maximum {maximum}")
    if right is None:
        cure = "the maximum was never raised, or the original window was overwritten; give the base model with --base"
        return Finding("fail", fault, cure)
    patient.text[eras.ORIGINAL] = right
    if patient.kind in eras.KINDS_WITH_ORIGINAL or patient.value(eras.ORIGINAL) is not None:
        patient.write(eras.ORIGINAL, right)
    cure = f"the original window is {right}"
    is_of_own = bool(factor and own) and math.isclose(factor * own, maximum, rel_tol=1e-6)
    if is_of_own and patient.kind != "llama3" and maximum > right:
        # The factor was computed from a window that was already extended.
        patient.write("factor", maximum / right)
        cure += f", so the factor is {maximum / right:g}"
    return Finding("fail", fault, cure)


def _unrecorded(patient: Patient) -> Finding:
    """The verdict if no original window is recorded in the place that transformers reads."""
    if patient.kind in eras.KINDS_WITH_ORIGINAL and patient.recorded_originals:
        detail = (
            f"original window {min(patient.recorded_originals)} is beside the rope entry, where transformers ignores "
            f"it for this model and uses {patient.value(eras.ORIGINAL)}"
        )
        cure = "write it into the entry if the model was trained with it, otherwise remove it"
        return Finding("fail", detail, cure)
    if patient.kind in eras.KINDS_WITH_ORIGINAL:
        detail = (
            f"no original window is recorded, and transformers assumes {patient.value(eras.ORIGINAL)}: this is right "
            "only if that was the window before scaling"
        )
        return Finding("note", detail)
    detail = f"no original window is recorded; the maximum is {patient.maximum}"
    return Finding("pass", detail)


def _maximum(patient: Patient) -> Finding | None:
    """The maximum must be the length that the scaling reaches."""
    try:
        state = read_rope(patient.whole)
    except Exception:  # The check `readable` reports it.
        return None
    written = patient.maximum
    is_guessed = patient.kind in eras.KINDS_WITH_ORIGINAL and patient.original is None
    if state.kind == "linear" and state.ambiguity is not None and state.factor > 1:
        detail = (
            f"scaled linearly by {state.factor:g}; the maximum of {written} may be the window before or after scaling"
        )
        cure = "to extend the model, give the window before scaling as the setting 'original'"
        return Finding("note", detail, cure)
    if is_guessed and state.maximum > written:
        detail = f"maximum of {written}, scaled by {state.factor:g} from a window that is not recorded"
        return Finding("note", detail)
    if state.kind in eras.KINDS_WITH_ORIGINAL and state.maximum == state.original:
        detail = f"{state.kind} scales a window of {written} to the same length; one of the two lengths may be lost"
        return Finding("note", detail)
    if state.maximum <= written or "original" in patient.unfixed:
        return Finding("pass", f"the model handles {written} tokens")
    patient.text[eras.maximum_name({**patient.defaults, **patient.text})] = state.maximum
    if state.kind == "linear":
        patient.text[eras.ORIGINAL] = state.original  # A linear entry does not record it otherwise.
    patient.lifted_from = written
    detail = (
        f"scaled by {state.factor:g} from {state.original}, so the window is {state.maximum} tokens, but the maximum "
        f"is {written}, and some readers accept no more than that"
    )
    return Finding("note", detail, f"the maximum is {state.maximum}")


def _doubled(patient: Patient) -> Finding:
    """The model must be scaled only once."""
    factor, own, grown = patient.value("factor"), patient.original, patient.text.get("original_rope_theta")
    theta = patient.value("rope_theta") or patient.text.get("rope_theta")
    if patient.kind in ("yarn", "linear", "llama3") and grown is not None and theta is not None and theta != grown:
        patient.text["rope_theta"] = grown
        patient.write("rope_theta", grown)
        detail = f"{patient.kind} scales a base that was already raised from {grown:g} to {theta:g}"
        return Finding("fail", detail, f"only one applies; the base becomes {grown:g}")
    if not factor or own is None or patient.maximum <= own:
        return Finding("pass", "not scaled" if patient.kind == "default" else "scaled once")
    nominal = patient.maximum / own
    # Only for our own files: in those of others, a factor of 16 for 4 times the window may also be a maximum that was
    # not raised all the way, as in Yarn-Mistral-7b-128k.
    if nominal > 1 and _is_ours(patient) and math.isclose(factor, nominal**2, rel_tol=1e-2):
        patient.write("factor", nominal)
        detail = f"factor is {factor:g} for {nominal:g} times the window, so it was applied twice"
        return Finding("fail", detail, f"the factor is {nominal:g}")
    if factor > nominal and patient.kind == "yarn":
        return Finding("pass", f"scaled by {factor:g}, from {own}")
    if not math.isclose(factor, nominal, rel_tol=1e-6):
        detail = f"factor is {factor:g} for {nominal:g} times the window; some published models do this"
        return Finding("note", detail)
    return Finding("pass", f"scaled by {factor:g}, from {own} to {patient.maximum}")


def _factor(patient: Patient) -> Finding:
    """YaRN's attention factor must follow from its factor or be calibrated, and be the same for all engines."""
    given, relative, factor = patient.value("attention_factor"), patient.value("attn_factor"), patient.value("factor")
    if patient.kind != "yarn" or not factor or patient.value("mscale"):
        return Finding("pass", "no attention factor to check")
    formula = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
    calibrated = patient.text.get("original_attention_factor")
    if given is None and relative in (None, 1):
        return Finding("pass", f"attention factor by the formula, {formula:.6g}")
    if given is None:
        given = relative * formula
        patient.write("attention_factor", given)
        detail = f"attn_factor is {relative:g}, but transformers reads attention_factor, which is missing"
        return Finding("fail", detail, f"attention_factor is {given:.6g}")
    chosen = calibrated is not None or (relative is not None and math.isclose(relative, given / formula, rel_tol=1e-4))
    if not chosen and not math.isclose(given, formula, rel_tol=1e-4):
        other = math.exp(min(10 * (given - 1), 100))
        if not 1.5 <= other < 1e4 or not math.isclose(other, round(other), rel_tol=1e-3):
            detail = (
                f"attention factor is {given:.6g} instead of the formula's {formula:.6g}; it fits no other factor, so "
                "it was probably chosen"
            )
            return Finding("note", detail)
        patient.write("attention_factor", formula)
        patient.drop("attn_factor")
        detail = f"attention factor {given:.6g} belongs to a factor of {other:.3g}; that of {factor:g} is {formula:.6g}"
        cure = f"it becomes {formula:.6g}"
        return Finding("fail", detail, cure)
    if not math.isclose(relative or 1.0, given / formula, rel_tol=1e-4):
        patient.write("attn_factor", given / formula)
        other = (relative or 1.0) * formula
        detail = f"attention_factor is {given:.6g}, but vLLM computes {other:.6g} from attn_factor {relative!r}"
        return Finding("fail", detail, f"attn_factor is {given / formula:.6g}")
    how = "by the formula" if math.isclose(given, formula, rel_tol=1e-4) else "chosen"
    how = how if calibrated is None else f"calibrated from {calibrated:.6g}"
    return Finding("pass", f"attention factor {given:.6g}, {how}")


def _tokenizer(patient: Patient) -> Finding:
    """The tokenizer's limit must be the model's window."""
    if patient.tokenizer is None:
        return Finding("note", f"there is no {TOKENIZER}")
    length = patient.tokenizer.get("model_max_length")
    if length is None or (limit := number(length)) is None or limit > _NO_LIMIT:
        return Finding("pass", "tokenizer has no limit")
    if length == patient.maximum and isinstance(length, int):
        return Finding("pass", f"tokenizer takes {length} tokens, like the model")
    if limit > patient.maximum:
        detail = f"tokenizer takes {limit:.0f} tokens, more than the model's {patient.maximum}, so it truncates nothing"
        cure = ""
        if patient.kind == "default" and limit >= 2 * patient.maximum and not _is_ours(patient):
            cure = "if the model was extended that far, its scaling was lost: see its original config.json"
        return Finding("note", detail, cure)
    detail = f"tokenizer's model_max_length is {length!r}, but the model's window is {patient.maximum}"
    of_the_base = patient.kind != "default" and limit <= (patient.original or 0)
    if not of_the_base and limit != patient.lifted_from and not _is_ours(patient):
        return Finding("note", detail)  # Some models are published like this (DeepSeek-V3).
    patient.tokenizer["model_max_length"] = patient.maximum
    if limit == patient.lifted_from:
        return Finding("note", detail, "it becomes the window")
    return Finding("fail", detail, "longer texts would be truncated or cause a warning; it becomes the window")


def _unapplied(patient: Patient) -> Finding | None:
    """Reports long-context settings that transformers does not apply."""
    found = eras.unapplied(patient.text)
    return Finding("note", "; ".join(found)) if found else None


def _readable(patient: Patient) -> Finding:
    """Readers of both formats must read the same settings, and transformers must compute skipwise's rotary tables."""
    try:
        found = read_rope(patient.whole)
        written = patient.rewritten()
        old = {key: value for key, value in eras.text_part(written).items() if key != "rope_parameters"}
        before = read_rope({**patient.defaults, **old}) if "rope_scaling" in old else found
    except Exception as error:  # A third-party config can contain anything.
        cure = "give the base model with --base" if "rope_theta" in str(error) else ""
        detail = str(error) if isinstance(error, SkipwiseError) else first_line(error)
        return Finding("fail", detail, cure)
    detail = f"{found.kind}, base {found.theta:g}, {found.original} to {found.maximum} tokens"
    if (found.kind, found.theta, found.factor) != (before.kind, before.theta, before.factor):
        return Finding(
            "fail",
            f"{detail} for current readers, but {before.kind} for older ones",
            "write the same entry as rope_parameters and rope_scaling",
        )
    if (fault := _unlike_the_library(patient.config, found)) is None:
        return Finding("pass", detail)
    if _unlike_the_library(written, found) is None:
        patient.config = written
        return Finding("fail", fault, f"it is written as {found.parameters['rope_type']!r}")
    return Finding("fail", fault, "correct config.json as the model's authors intended")


def _unlike_the_library(config: Mapping[str, Any], state: RopeState) -> str | None:
    """How transformers' rotary tables for this config differ from skipwise's; None if they agree or cannot be built."""
    try:
        library = library_config(config)
        if library is None:
            return None  # The model's class is custom code, which is not run.
        tables = library_tables(library, state.maximum)
    except Exception as error:  # The library may raise anything.
        return f"transformers rejects it ({first_line(error)})"
    ours = state.interpolation.table(state.spec, state.window)
    shared = [table for path, table in tables.items() if not path.endswith(eras.LOCAL_LAYERS)]
    off = max((deviation(table, ours) for table in shared), default=0.0)
    return None if off <= TABLE_TOLERANCE else f"transformers computes other rotary tables, off by {off:.2g}"


CHECKS: dict[str, Callable[[Patient], Finding | None]] = {
    "lengths": _lengths,
    "eras": _eras,
    "base": _base,
    "original": _original,
    "doubled": _doubled,
    "maximum": _maximum,
    "factor": _factor,
    "tokenizer": _tokenizer,
    "unapplied": _unapplied,
    "readable": _readable,
}
"""Checks by name, in the order in which they run. A check that does not apply returns None."""


def _spelled(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {**entry, "rope_type": entry.get("rope_type") or entry.get("type")}


def _is_ours(patient: Patient) -> bool:
    """Whether skipwise wrote the config. skipwise raises the maximum together with the factor."""
    return patient.text.get("original_rope_theta") is not None


def _fits(entry: Mapping[str, Any], patient: Patient) -> bool:
    original, factor = entry.get(eras.ORIGINAL) or patient.text.get(eras.ORIGINAL), entry.get("factor")
    return bool(original and factor and math.isclose(patient.maximum / original, factor, rel_tol=1e-6))
