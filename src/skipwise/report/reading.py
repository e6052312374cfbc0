"""Files and folders of results -> the `Evidence` of a report.

    results.jsonl            records as `skipwise eval --out` writes them: one arm, named after the file
    NAME=results.jsonl       the same, called NAME
    folder/comparison.json   a comparison, with its records in `records.jsonl` beside it
    folder/pilot.json        beside them: what fitted into the time of a pilot
    folder/skipwise.json     a model that `skipwise extend` left: what was run and what it cost

A record with `compared` in its details belongs to the arm of that name, whatever the file is called. An arm's results
come from one place, unless further ones are given its name: NAME=FILE.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from skipwise.errors import CheckpointError, ConfigError, DataError, PositionError, SkipwiseError, UnsupportedModelError
from skipwise.records.comparison import COMPARISON_FILE, RECORDS_FILE, Comparison, ExtendedRun, one_line
from skipwise.records.pilot import PILOT_FILE, Pilot
from skipwise.records.results import EvalResult
from skipwise.records.runs import RECORD_FILE, Run
from skipwise.report.evidence import MOST_OUTPUT_LETTERS, MOST_OUTPUTS, Arm, Evidence, Output
from skipwise.rope import read_rope

_FORMS = (
    f"give .jsonl files of results, NAME=FILE, folders of a comparison ({COMPARISON_FILE}) or of an extended model "
    f"({RECORD_FILE})"
)

_RECORD, _COMPARISON, _RUN = TypeAdapter(EvalResult), TypeAdapter(Comparison), TypeAdapter(ExtendedRun)
_PILOT = TypeAdapter(Pilot)


def read_evidence(
    sources: Sequence[str], *, original_tokens: int | None = None, samples: Path | None = None
) -> Evidence:
    """Reads all that a report is made from.

    Args:
        sources: files and folders, each in one of the forms above.
        original_tokens: window of the base model; None to take it from the sources.
        samples: a file as `skipwise eval --samples` writes it, of which a few outputs are to be shown.

    Raises:
        ConfigError: a source has no known form, two arms have one name, or the original window is unknown.
        DataError: a file cannot be read; the message has its name and the line.
        CheckpointError: the record of an extended model cannot be read.
    """
    by_arm: dict[str, list[EvalResult]] = {}
    found_in: dict[str, Path] = {}
    comparisons: list[Comparison] = []
    runs: list[ExtendedRun] = []
    pilot: Pilot | None = None
    for source in sources:
        given, path = _name_and_path(source)
        if (path / COMPARISON_FILE).is_file():
            comparisons.append(comparison := read_comparison(path))
            pilot = read_pilot(path) if (path / PILOT_FILE).is_file() else pilot
            # A comparison all of whose arms failed may have left no records.
            records = read_records(path / RECORDS_FILE) if (path / RECORDS_FILE).exists() else []
            found = {name: [] for name in comparison.arms} | _by_arm(records, path.name)
        elif (path / RECORD_FILE).is_file():
            runs.append(read_run(path))
            continue
        elif path.is_file() and path.suffix == ".jsonl":
            found = _by_arm(read_records(path), given or path.stem)
        else:
            raise ConfigError(f"{source!r} is neither a file nor a folder of results; {_FORMS}", page="not-found")
        for name, records in found.items():
            if name != given and (first := found_in.setdefault(name, path)) != path:
                # They may be of another model that is called the same.
                raise ConfigError(
                    f"{str(first)!r} and {str(path)!r} both have an arm {name!r}; leave one out, write a report for "
                    f"each, or name a file of results: NAME={path}"
                )
            by_arm.setdefault(name, []).extend(records)
    if len(comparisons) > 1:
        raise ConfigError(f"{len(comparisons)} comparisons were given; a report is of one, so write one for each")
    if not comparisons and not by_arm:
        raise DataError(
            f"{', '.join(map(repr, sources))} has no results; `skipwise eval --out` writes them",
            page="unusable-results",
        )
    arms = [arm for name, records in by_arm.items() if records for arm in _by_step(name, records)]
    windows: list[tuple[int, int | None]] = [(made.window.original, made.window.target) for made in comparisons or runs]
    windows += _windows_of_models(arms)
    if original_tokens is None and not windows:
        raise ConfigError(
            "nothing here tells the base model's original window; give it as --original TOKENS, such as --original 4k",
            page="unclear-config",
        )
    return Evidence(
        arms=arms,
        original_tokens=original_tokens or windows[0][0],
        target_tokens=max((target for _, target in windows if target), default=None),
        comparison=comparisons[0] if comparisons else None,
        runs=runs,
        outputs=() if samples is None else read_outputs(samples),
        pilot=pilot,
    )


def read_records(path: Path) -> list[EvalResult]:
    """Records of a file, in its order; empty lines are skipped.

    Raises:
        DataError: a line is not a record; the message has the file and the line.
    """
    return [_valid(_RECORD, value, where) for where, value in _json_lines(path)]


def read_comparison(folder: Path) -> Comparison:
    """The comparison in a folder.

    Raises:
        DataError: it cannot be read; the message has what is wrong and where.
    """
    path = folder / COMPARISON_FILE
    value = _without_nulls(_json(_text(path), repr(str(path))))
    if not isinstance(value, dict) or value.get("kind") != "comparison":
        raise DataError(
            f"{str(path)!r} is not a comparison: its kind must be 'comparison'; `skipwise compare` writes it",
            page="unusable-results",
        )
    return _valid(_COMPARISON, value, repr(str(path)))


def read_pilot(folder: Path) -> Pilot:
    """What a pilot left in its folder.

    Raises:
        DataError: it cannot be read; the message has what is wrong and where.
    """
    path = folder / PILOT_FILE
    where = repr(str(path))
    return _valid(_PILOT, _without_nulls(_json(_text(path), where)), where)


def read_run(folder: Path) -> ExtendedRun:
    """What was run to make an extended model.

    Raises:
        CheckpointError: its record cannot be read.
    """
    value = {**_without_nulls(Run.open(folder).record()), "name": folder.resolve().name}
    return _valid(_RUN, value, repr(str(folder / RECORD_FILE)), CheckpointError)


def read_outputs(path: Path) -> list[Output]:
    """A few outputs out of a samples file: the first of each task and length, at most `MOST_OUTPUTS`, cut short.

    Raises:
        DataError: a line is not a sample, or none holds an output; the message has the file and the line.
    """
    found: dict[tuple[str, int], Output] = {}
    for where, value in _json_lines(path):
        if not isinstance(value, dict) or not isinstance(task := value.get("task"), str):
            raise DataError(f"{where} is not a sample; `skipwise eval --samples` writes them", page="unusable-results")
        output, length = value.get("output"), value.get("length_tokens")
        if isinstance(output, str) and isinstance(length, int):
            expected = value.get("references", value.get("answer", ""))
            text = ", ".join(map(str, expected)) if isinstance(expected, list) else str(expected)
            cut = {"output": output[:MOST_OUTPUT_LETTERS], "expected": text[:MOST_OUTPUT_LETTERS]}
            found.setdefault((task, length), Output(task=one_line(task), length_tokens=length, **cut))
    if not found:
        raise DataError(
            f"{str(path)!r} has no sample with an output; perplexities, for one, leave none", page="unusable-results"
        )
    return list(found.values())[:MOST_OUTPUTS]


def _name_and_path(source: str) -> tuple[str, Path]:
    """`NAME=FILE` in two; a file whose own name is like that comes first."""
    name, equals, path = source.partition("=")
    is_named = equals and name and not Path(source).exists()
    return (one_line(name), Path(path)) if is_named else ("", Path(source))


def _by_arm(records: Iterable[EvalResult], otherwise: str) -> dict[str, list[EvalResult]]:
    """Records by the arm that each names, or else by this name."""
    found: dict[str, list[EvalResult]] = {}
    for record in records:
        compared = record.details.get("compared")
        found.setdefault(one_line(compared if isinstance(compared, str) else otherwise), []).append(record)
    return found


def _by_step(name: str, records: Sequence[EvalResult]) -> list[Arm]:
    """One arm, or one for each checkpoint where records are of several training steps."""
    by_step: dict[Any, list[EvalResult]] = {}
    for record in records:
        by_step.setdefault(record.details.get("step"), []).append(record)
    return [
        Arm(name=name if step is None or len(by_step) < 2 else f"{name}, step {step}", results=of_step)
        for step, of_step in by_step.items()
    ]


def _windows_of_models(arms: Sequence[Arm]) -> Iterator[tuple[int, int | None]]:
    """Original and target window of the measured models, where they lie on this machine."""
    for arm in arms:
        models = {record.details.get("model") for record in arm.results}
        for folder in sorted(Path(model) for model in models if isinstance(model, str) and model):
            config = folder / "config.json"
            if Run.open(folder).is_finished:
                window = read_run(folder).window
                yield window.original, window.target
            elif config.is_file():
                try:
                    state = read_rope(_json(_text(config, CheckpointError), repr(str(config)), CheckpointError))
                except (ConfigError, UnsupportedModelError):
                    continue  # A report can be made of a model that cannot be extended.
                yield state.original, state.maximum if state.maximum != state.original else None


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Every line that is not empty: where it stands, for a message, and its value."""
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if line.strip():
            where = f"{str(path)!r} line {number}"
            yield where, _json(line, where)


def _text(path: Path, kind: type[SkipwiseError] = DataError) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        # Only the reason: the text of an OSError repeats the path.
        reason = error.strerror if isinstance(error, OSError) else error
        raise kind(f"{str(path)!r} cannot be read ({reason}); {_FORMS}", page="unusable-results") from error


def _json(text: str, where: str, kind: type[SkipwiseError] = DataError) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise kind(f"{where} is not valid JSON ({error}); correct or remove it", page="unusable-results") from error


def _without_nulls(value: Any) -> Any:
    """The value without nulls, so that they take their defaults."""
    if isinstance(value, dict):
        return {name: _without_nulls(entry) for name, entry in value.items() if entry is not None}
    return [_without_nulls(entry) for entry in value] if isinstance(value, list) else value


def _valid(adapter: TypeAdapter[Any], value: Any, where: str, kind: type[SkipwiseError] = DataError) -> Any:
    """The validated value; otherwise an error with the place and kind of the first fault."""
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise kind(
            f"{where}{f', {place}' if place else ''}: {first['msg'].lower()}; correct or remove it",
            page="unusable-results",
        ) from error
    except PositionError as error:
        raise kind(f"{where}: {error}", page="unusable-results") from error
