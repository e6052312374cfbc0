"""What was done, for people and machines: `skipwise.json` and the model card beside an extended model."""

import dataclasses
import importlib.metadata
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object

from skipwise.config import RunConfig
from skipwise.data.corpus import TokenStore
from skipwise.data.documents import Sources
from skipwise.data.stream import DocumentStream, LaneCounts
from skipwise.doctor import Verdict
from skipwise.files import replace_file
from skipwise.positions import PositionSampler
from skipwise.records.runs import RECORD_FILE
from skipwise.report.model_card import write_model_card
from skipwise.train.session import Session
from skipwise.window import Window


def run_record(run: Session, documents: TokenStore | DocumentStream) -> dict[str, Any]:
    """What is known about a run before its first step, ready for JSON."""
    config = run.config
    return {
        "config": {**config.model_dump(), "training": run.training},
        "reasons": [*run.resolved.reasons, *run.resolved.warnings],
        "window": dataclasses.asdict(run.window),
        "widest_tokens": max(stage.window.train for stage in run.stages),
        "sampler": sampler_text(run.checked.sampler),
        "interpolation": repr(config.build_interpolation()),
        "corpus": _corpus(run.checked.sources, documents),
        "preflight": [dataclasses.asdict(verdict) for verdict in run.verdicts],
        "seed": config.seed,
        "versions": versions(*(["bitsandbytes"] if config.tuning.kind == "qlora" else [])),
    }


def _corpus(sources: Sources, documents: TokenStore | DocumentStream) -> dict[str, Any]:
    kinds: dict[str, Any] = {"kinds_not_read": dict(sources.kinds_passed_over)}
    if isinstance(documents, DocumentStream):
        return {"fingerprint": documents.fingerprint, "shards": documents.num_shards, **kinds}
    unreadable = sources.passed_over()
    unreadable.update(documents.passed_over)
    if documents.has_turns:
        kinds["format"] = "conversations"
    return {
        "fingerprint": documents.fingerprint,
        "documents": documents.num_documents,
        "counts": dataclasses.asdict(documents.counts),
        "unreadable": unreadable.to_json(),
        **kinds,
    }


def streamed_counts(stream: DocumentStream, sources: Sources) -> dict[str, Any]:
    """What the lanes of all processes have skipped since they started: unreadable rows, and rows without text."""
    several = PartialState().num_processes > 1
    furthest: dict[int, LaneCounts] = {}
    for lanes in gather_object([stream.counts()]) if several else [stream.counts()]:
        for lane, counted in lanes.items():
            # Processes that hold windows together have the same lanes.
            if lane not in furthest or counted.up_to > furthest[lane].up_to:
                furthest[lane] = counted
    unreadable = sources.passed_over()
    for counted in furthest.values():
        unreadable.update(counted.unreadable.to_json())
    return {"unreadable": unreadable.to_json(), "empty": sum(counted.empty for counted in furthest.values())}


def write_record(
    folder: Path,
    record: dict[str, Any],
    window: Window,
    verdicts: Sequence[Verdict],
    notes: Sequence[str],
    factor: str | None = None,
) -> None:
    """Writes the model card and then `skipwise.json`, whose presence says that the run is finished.

    Args:
        folder: of the extended model.
        record: what was done.
        window: its lengths, in tokens.
        verdicts: of the preflight.
        notes: for the card.
        factor: what a calibration chose, in a line for the card; None if there was none.
    """
    settings = record["config"]
    made_by_settings = record["sampler"] == sampler_text(RunConfig.from_mapping(settings).build_sampler())
    write_model_card(
        folder,
        base=settings["model"],
        window=window,
        interpolation=settings["interpolation"],
        sampler=settings["sampler"] if made_by_settings else {"kind": record["sampler"]},
        tuning=settings["tuning"],
        data=settings["data"],
        attention_factor=factor,
        verdicts=verdicts,
        notes=notes,
    )
    replace_file(folder / RECORD_FILE, json.dumps(record, indent=2, allow_nan=False, default=str) + "\n")


def sampler_text(sampler: PositionSampler) -> str:
    """A sampler with its settings; the name of its class if it has no `repr` of its own (never a memory address)."""
    return type(sampler).__qualname__ if type(sampler).__repr__ is object.__repr__ else repr(sampler)


def finite_log(log: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A Trainer's log with None for what is not finite (the gradient norm of a skipped step), which JSON cannot say."""
    return [
        {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in entry.items()
        }
        for entry in log
    ]


def versions(*more: str) -> dict[str, str]:
    """Versions of the packages that a result depends on."""
    names = ("skipwise", "torch", "transformers", "accelerate", "peft", "numpy", *more)
    return {name: importlib.metadata.version(name) for name in names}
