"""Files and folders of results -> the `Evidence` of a report.

    results.jsonl            records as `skipwise eval --out` writes them: one arm, named after the file
    NAME=results.jsonl       the same, called NAME
    folder/comparison.json   a comparison, with its records in `records.jsonl` beside it
    folder/skipwise.json     a model that `skipwise extend` left: what was run and what it cost

A record with `compared` in its details belongs to the arm of that name, whatever the file is called. An arm's results
come from one place, unless further ones are given its name: NAME=FILE.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from skipwise.errors import CheckpointError, ConfigError, DataError, PositionError, UnsupportedModelError
from skipwise.records.comparison import Comparison, ExtendedRun
from skipwise.records.results import EvalResult
from skipwise.records.runs import RECORD_FILE
from skipwise.report.evidence import Arm, Evidence, Output
from skipwise.rope import read_rope

COMPARISON_FILE, RECORDS_FILE = "comparison.json", "records.jsonl"
_FORMS = (
    f"give .jsonl files of results, NAME=FILE, folders of a comparison ({COMPARISON_FILE}) or of an extended model "
    f"({RECORD_FILE})"
)
_MOST_OUTPUTS = 6
_MOST_LETTERS = 200


_RECORD, _COMPARISON, _RUN = TypeAdapter(EvalResult), TypeAdapter(Comparison), TypeAdapter(ExtendedRun)


def read_evidence(
    sources: Sequence[str], *, original_tokens: int | None = None, samples: Path | None = None
) -> Evidence:
    """Reads all that a report is made from.

    Args:
        sources: files and folders, each in one of the forms above.
        original_tokens: window of the base model; None: what the sources say of it.
        samples: a file as `skipwise eval --samples` writes it, of which a few outputs are to be shown.

    Raises:
        ConfigError: for a source of no known form, two arms of one name, or an original window that nothing tells.
        DataError: for a file that cannot be read, with its name and the line.
        CheckpointError: for an extended model whose record cannot be read.
    """
    by_arm: dict[str, list[EvalResult]] = {}
    found_in: dict[str, Path] = {}
    comparisons: list[Comparison] = []
    runs: list[ExtendedRun] = []
    for source in sources:
        given, path = _name_and_path(source)
        if path.is_dir() and (path / COMPARISON_FILE).is_file():
            comparisons.append(comparison := read_comparison(path))
            records = [(_arm_of(record, path.name), record) for record in _records_beside(path)]
            for name in dict.fromkeys((*comparison.arms, *(name for name, _ in records))):
                _one_place(found_in, name, path)
                by_arm.setdefault(name, [])
            for name, record in records:
                by_arm[name].append(record)
            continue
        if path.is_dir() and (path / RECORD_FILE).is_file():
            runs.append(read_run(path))
            continue
        if not path.is_file() or path.suffix != ".jsonl":
            raise ConfigError(f"{source!r} is no results; {_FORMS}")
        for record in read_records(path):
            name = _arm_of(record, given or path.stem)
            if not given or name != given:
                _one_place(found_in, name, path)
            by_arm.setdefault(name, []).append(record)
    if len(comparisons) > 1:
        raise ConfigError(f"{len(comparisons)} comparisons were given; a report is of one, so write one for each")
    comparison = comparisons[0] if comparisons else None
    if not any(by_arm.values()) and comparison is None:
        raise DataError(f"{', '.join(map(repr, sources))} has no results; `skipwise eval --out` writes them")
    arms = [arm for name, records in by_arm.items() if records for arm in _by_step(name, records)]
    windows = [comparison.window] if comparison else [run.window for run in runs]
    windows += [window for arm in arms for window in _windows_of_models(arm)]
    original = original_tokens or next((window["original"] for window in map(_lengths, windows)), None)
    if original is None:
        raise ConfigError(
            "nothing here tells the base model's original window; give it as --original TOKENS, such as --original 4k"
        )
    return Evidence(
        arms=arms,
        original_tokens=original,
        target_tokens=max((window["target"] for window in map(_lengths, windows) if window["target"]), default=None),
        comparison=comparison,
        runs=runs,
        outputs=() if samples is None else read_outputs(samples),
    )


def read_records(path: Path) -> list[EvalResult]:
    """Records of a file, in its order; empty lines are passed over.

    Raises:
        DataError: with file and line, when one is no record.
    """
    return [_valid(_RECORD, value, where) for where, value in _json_lines(path)]


def read_comparison(folder: Path) -> Comparison:
    """The comparison in a folder.

    Raises:
        DataError: when it cannot be read, with what is wrong and where.
    """
    path = folder / COMPARISON_FILE
    value = _without_nulls(_json(path, DataError))
    if not isinstance(value, dict) or value.get("kind") != "comparison":
        raise DataError(f"{str(path)!r} is no comparison: its kind must be 'comparison'; `skipwise compare` writes it")
    return _with_plain_names(_valid(_COMPARISON, value, repr(str(path))))


def read_run(folder: Path) -> ExtendedRun:
    """What was run to make an extended model.

    Raises:
        CheckpointError: when its record cannot be read.
    """
    path = folder / RECORD_FILE
    value = _without_nulls(_json(path, CheckpointError))
    name = _one_line(folder.resolve().name)
    return _valid(_RUN, {**value, "name": name} if isinstance(value, dict) else value, repr(str(path)), CheckpointError)


def read_outputs(path: Path) -> list[Output]:
    """A few outputs out of a samples file: the first of each task and length, at most six, cut short.

    Raises:
        DataError: with file and line, when one is no sample, or none holds an output.
    """
    found: dict[tuple[str, int], Output] = {}
    for where, value in _json_lines(path):
        if not isinstance(value, dict) or not isinstance(value.get("task"), str):
            raise DataError(f"{where} is no sample; `skipwise eval --samples` writes them")
        if isinstance(value.get("output"), str) and isinstance(value.get("length_tokens"), int):
            expected = value.get("references", value.get("answer", ""))
            text = ", ".join(map(str, expected)) if isinstance(expected, list) else str(expected)
            found.setdefault(
                (value["task"], value["length_tokens"]),
                Output(
                    task=_one_line(value["task"]),
                    length_tokens=value["length_tokens"],
                    output=value["output"][:_MOST_LETTERS],
                    expected=text[:_MOST_LETTERS],
                ),
            )
    if not found:
        raise DataError(f"{str(path)!r} has no sample with an output; perplexities, for one, leave none")
    return list(found.values())[:_MOST_OUTPUTS]


def _name_and_path(source: str) -> tuple[str, Path]:
    """`NAME=FILE` in two; a file that is called so comes first."""
    if Path(source).exists():
        return "", Path(source)
    name, equals, path = source.partition("=")
    return (_one_line(name), Path(path)) if equals and name else ("", Path(source))


def _one_place(found_in: dict[str, Path], name: str, path: Path) -> None:
    """Refuses a second source of an arm's results: they may be of another model that is called the same."""
    if (first := found_in.setdefault(name, path)) != path:
        raise ConfigError(
            f"{str(first)!r} and {str(path)!r} both have an arm {name!r}; leave one out, write a report for each, or "
            f"name a file of results: NAME={path}"
        )


def _arm_of(record: EvalResult, otherwise: str) -> str:
    compared = record.details.get("compared")
    return _one_line(compared if isinstance(compared, str) else otherwise)


def _one_line(name: str) -> str:
    """A name without line breaks, or letters that no drawing can hold."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in name).split()) or "unnamed"


def _with_plain_names(comparison: Comparison) -> Comparison:
    """The comparison with its arms named as the arms of records are."""
    return replace(
        comparison,
        reference=None if comparison.reference is None else _one_line(comparison.reference),
        arms={_one_line(name): arm for name, arm in comparison.arms.items()},
        differences=[
            replace(one, arm=_one_line(one.arm), reference=_one_line(one.reference)) for one in comparison.differences
        ],
        reached=[replace(one, arm=_one_line(one.arm)) for one in comparison.reached],
        costs=[replace(one, arm=_one_line(one.arm)) for one in comparison.costs],
    )


def _records_beside(folder: Path) -> list[EvalResult]:
    """A comparison all of whose arms failed may have left no records."""
    path = folder / RECORDS_FILE
    return read_records(path) if path.exists() else []


def _by_step(name: str, records: Sequence[EvalResult]) -> list[Arm]:
    """One arm, or one for each checkpoint where results tell several steps apart."""
    steps = list(dict.fromkeys(record.details.get("step") for record in records))
    if len(steps) < 2:
        return [Arm(name=name, results=records)]
    return [
        Arm(
            name=name if step is None else f"{name}, step {step}",
            results=[record for record in records if record.details.get("step") == step],
        )
        for step in steps
    ]


def _windows_of_models(arm: Arm) -> Iterator[dict[str, int | None]]:
    """What the measured models say of their windows, where they lie on this machine."""
    models = {record.details.get("model") for record in arm.results}
    for folder in sorted(Path(model) for model in models if isinstance(model, str) and model):
        if (folder / RECORD_FILE).is_file():
            yield _lengths(read_run(folder).window)
        elif (folder / "config.json").is_file():
            try:
                state = read_rope(_json(folder / "config.json", CheckpointError))
            except (ConfigError, UnsupportedModelError):
                continue  # A report needs no model that could be extended.
            yield {"original": state.original, "target": state.maximum if state.maximum != state.original else None}


def _lengths(window: Any) -> dict[str, Any]:
    return window if isinstance(window, dict) else {"original": window.original, "target": window.target}


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Every line that is not empty: where it stands, for a message, and its value."""
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
            if line.strip():
                where = f"{str(path)!r} line {number}"
                try:
                    yield where, json.loads(line)
                except ValueError as error:
                    raise DataError(f"{where} is no JSON ({error}); mend or remove it") from error
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read ({error.strerror}); {_FORMS}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{str(path)!r} is no UTF-8 text ({error.reason} at byte {error.start}); {_FORMS}") from error


def _json(path: Path, kind: type[Exception]) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise kind(f"{str(path)!r} cannot be read ({error}); it must hold one JSON object") from error


def _without_nulls(value: Any) -> Any:
    """What is null takes its default."""
    if isinstance(value, dict):
        return {name: _without_nulls(entry) for name, entry in value.items() if entry is not None}
    return [_without_nulls(entry) for entry in value] if isinstance(value, list) else value


def _valid(adapter: TypeAdapter[Any], value: Any, where: str, kind: type[Exception] = DataError) -> Any:
    """The value as what it should be; otherwise an error that says where the first fault lies and what it is."""
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise kind(f"{where}{f', {place}' if place else ''}: {first['msg'].lower()}; mend or remove it") from error
    except PositionError as error:
        raise kind(f"{where}: {error}") from error
