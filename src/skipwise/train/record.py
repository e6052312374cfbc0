"""What was done, for people and machines: `skipwise.json` and the model card beside an extended model."""

import dataclasses
import importlib.metadata
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object

from skipwise.config import RunConfig
from skipwise.data.corpus import MixedStore, TokenStore
from skipwise.data.documents import PassedOver, Sources, numbers_of
from skipwise.data.stream import DocumentStream, LaneCounts
from skipwise.files import replace_file
from skipwise.positions import PositionSampler
from skipwise.records.runs import RECORD_FILE
from skipwise.report.model_card import write_model_card
from skipwise.train.drawn import Drawn
from skipwise.train.session import Session


def run_record(run: Session, documents: TokenStore | MixedStore | DocumentStream) -> dict[str, Any]:
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


def _corpus(sources: Sequence[Sources], documents: TokenStore | MixedStore | DocumentStream) -> dict[str, Any]:
    kinds: dict[str, Any] = {"kinds_not_read": dict(sum((own.kinds_passed_over for own in sources), Counter[str]()))}
    if codecs := {name: codec for own in sources for name, codec in own.codecs.items()}:
        kinds["read_as"] = numbers_of(codecs)
    if isinstance(documents, DocumentStream):
        return {"fingerprint": documents.fingerprint, "shards": documents.num_shards, **kinds}
    unreadable = _passed_over(sources)
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


def _passed_over(sources: Sequence[Sources]) -> PassedOver:
    passed_over = PassedOver()
    for own in sources:
        passed_over.update(own.passed_over().to_json())
    return passed_over


def streamed_counts(stream: DocumentStream, sources: Sequence[Sources]) -> dict[str, Any]:
    """What the lanes of all processes have skipped since they started: unreadable rows, and rows without text."""
    several = PartialState().num_processes > 1
    furthest: dict[int, LaneCounts] = {}
    for lanes in gather_object([stream.counts()]) if several else [stream.counts()]:
        for lane, counted in lanes.items():
            # Processes that hold windows together have the same lanes.
            if lane not in furthest or counted.up_to > furthest[lane].up_to:
                furthest[lane] = counted
    unreadable = _passed_over(sources)
    for counted in furthest.values():
        unreadable.update(counted.unreadable.to_json())
    return {"unreadable": unreadable.to_json(), "empty": sum(counted.empty for counted in furthest.values())}


def write_record(run: Session, record: dict[str, Any], *, note: str | None, factor: str | None) -> None:
    """Writes the model card and then `skipwise.json`, whose presence says that the run is finished.

    Args:
        run: that is finished.
        record: what was done.
        note: for the card; None if there is none.
        factor: what a calibration chose, in a line for the card; None if there was none.
    """
    settings = record["config"]
    drawn = [Drawn(**each) for each in record["corpus"].get("sources", ())]
    # A mixture is told by what was drawn from it.
    left_out = {"mixture", "source"} if drawn else {"mixture"}
    made_by_settings = record["sampler"] == sampler_text(RunConfig.from_mapping(settings).build_sampler())
    write_model_card(
        run.folder.path,
        base=settings["model"],
        window=run.window,
        interpolation=settings["interpolation"],
        sampler=settings["sampler"] if made_by_settings else {"kind": record["sampler"]},
        tuning=settings["tuning"],
        data={name: value for name, value in settings["data"].items() if name not in left_out},
        drawn={each.source: each.told() for each in drawn},
        attention_factor=factor,
        verdicts=run.verdicts,
        notes=[note] if note else [],
    )
    replace_file(run.folder.path / RECORD_FILE, json.dumps(record, indent=2, allow_nan=False, default=str) + "\n")


def sampler_text(sampler: PositionSampler) -> str:
    """A sampler with its settings; the name of its class if it has no `repr` of its own (never a memory address)."""
    return type(sampler).__qualname__ if type(sampler).__repr__ is object.__repr__ else repr(sampler)


def versions(*more: str) -> dict[str, str]:
    """Versions of the packages that a result depends on."""
    names = ("skipwise", "torch", "transformers", "accelerate", "peft", "numpy", *more)
    return {name: importlib.metadata.version(name) for name in names}
