"""docs/reference/formats.md: the files that skipwise writes, with the fields of the classes that write them."""

import dataclasses
import importlib
import importlib.util
import typing
from typing import Any

from reference_pages.settings import values
from reference_pages.text import attributes, code, parts_of, sentence, table
from skipwise.evals.suite.item import Item
from skipwise.records.comparison import ArmRun, ComparedArm, Comparison, Cost, Difference, Reached
from skipwise.records.results import EvalResult
from skipwise.records.verdict import Verdict
from skipwise.serve.audit import AuditRecord

RUN_FIELDS = {
    "config": "All [settings](settings.md) of the run, including those that it chose itself.",
    "reasons": "What the run chose itself and why, one line each.",
    "window": "The three lengths in tokens: `train`, `original` and `target`.",
    "widest_tokens": "The longest training window, in tokens.",
    "sampler": "The position sampler with its settings.",
    "interpolation": "The interpolation with its settings.",
    "corpus": "The documents: `fingerprint` (a hash of their tokens), `documents` and `counts`, `unreadable` files and records; "
    "for a mixture also `sources`, with what was drawn from each.",
    "preflight": "The verdicts of `doctor` on this model before the first step, as [below](#verdicts).",
    "seed": "Seed of all random draws.",
    "versions": "Versions of skipwise and of the libraries that the result depends on.",
    "steps": "Number of optimizer steps.",
    "resumed_at_step": "Step at which the last process of the run began; null if it was never resumed.",
    "seconds": "Wall-clock seconds of the last process, with preflight and validation.",
    "training_seconds": "Seconds within the training steps alone.",
    "peak_bytes": "Peak memory of the last process, in bytes: of the accelerator if there is one, else of the process.",
    "bad_steps": "Steps whose loss was not finite or exploded, and which the optimizer skipped.",
    "skipped_items": "Items that were left out by `--skip-bad-items`.",
    "log": "The Trainer's log: a line for each step (`loss`, `grad_norm`, `learning_rate`, `step_seconds`), and for each "
    "validation (`eval_perplexity_<tokens>`).",
    "calibration": "The attention factor that was chosen, and the measurements that it was chosen by.",
    "merge": "With `tuning: qlora`: how the adapter was merged into the dequantized weights.",
}
"""Fields of `skipwise.json`; a test compares them with a run."""

SUITE_FIELDS = {
    "format": "Version of this format.",
    "seed": "Seed by which questions and documents were chosen.",
    "lengths": "Lengths of the prompts, in tokens of `tokenizer`.",
    "num_items": "Number of questions of each kind and length.",
    "kinds": "By kind of question: its description and how it is scored.",
    "tokenizer": "The tokenizer that lengths were counted with, and its hash.",
    "documents": "The documents: how many, and a hash of them.",
    "languages": "Codes of the languages of the questions, if there are others than English.",
    "files": "SHA-256 of every other file in the folder.",
    "sha256": "SHA-256 of these fields. A suite that was changed is refused.",
}
"""Fields of `suite.json`; a test compares them with a suite."""


def page() -> str:
    """The page."""
    return "".join(
        [
            "# Formats\n\nEvery file is JSON, JSON Lines (one object per line) or a standard format. Times are in seconds, "
            "memory in bytes, lengths in tokens. Later versions may add fields.\n\n",
            _run(), _evaluations(), _comparison(), _pilot(), _suite(), _audit(),
        ]
    )  # fmt: skip


_OBJECTS = {
    "list of ArmRun": "list of [runs](#runs-of-an-arm)",
    "list of Cost": "list of [costs](#costs)",
    "list of Difference": "list of [differences](#differences)",
    "list of FullRun": "list of [full runs](#full-runs)",
    "list of Reached": "list of [tokens](#tokens-to-reach-a-perplexity)",
    "Window": "lengths",
}


def _sentence(text: str) -> str:
    return sentence(text.replace("None", "null"))


def _fields(kind: Any) -> str:
    said, hints = attributes(kind), typing.get_type_hints(kind, include_extras=True)
    rows = []
    for field in dataclasses.fields(kind):
        what = values(hints[field.name])
        rows.append([code(field.name), _sentence(said.get(field.name, "")), _OBJECTS.get(what, what)])
    return table(["field", "meaning", "values"], rows)


def _told(fields: dict[str, str]) -> str:
    return table(["field", "meaning"], [[code(name), meaning] for name, meaning in fields.items()])


def _section(title: str, kind: Any, level: int = 3) -> str:
    return f"{'#' * level} {title}\n\n{parts_of(kind)[0]}\n\n{_fields(kind)}"


def _run() -> str:
    files = {
        "run.yaml": "The settings that the run began with. `skipwise extend --config run.yaml --resume` continues the run.",
        "skipwise.json": "The record of the run, written when it is finished.",
        "README.md": "The model card.",
        "config.json, model.safetensors, tokenizer files": "A checkpoint as transformers reads it, with the scaling in its config.",
        "adapter/": "The adapter as peft reads it, with `tuning: lora` or `qlora`.",
        "checkpoint-<step>/": "A checkpoint to resume from, with hashes of its files.",
        "begun.json": "What was decided at the start, for a resumed run.",
        "log.jsonl": "The Trainer's log as it grows: an entry a line. The record has the same entries.",
        "bad-items.json": "The items of bad steps, if there were any.",
    }
    rows = [[code(name), meaning] for name, meaning in files.items()]
    return (
        "## A run's folder\n\n" + table(["file", "what it has"], rows)
        + "### skipwise.json\n\n" + _told(RUN_FIELDS)
        + _section("Verdicts", Verdict) + "`skipwise doctor --json` prints them too, one per line, with the address of the verdict's page in `page`.\n\n"
    )  # fmt: skip


def _evaluations() -> str:
    return (
        "## results.jsonl\n\n`skipwise eval --out FILE` appends a line for each measured number; `--json` prints the same "
        "lines.\n\n"
        + _fields(EvalResult)
        + "`--samples FILE` appends a line for each input: what identifies it, the SHA-256 of its token ids, and the model's "
        "outcome. It holds no text of documents, but it holds what the model wrote.\n\n"
    )


def _comparison() -> str:
    files = {
        "comparison.json": "The result, as below.",
        "comparison.yaml": "The settings. `skipwise compare comparison.yaml --resume` continues the comparison.",
        "records.jsonl, records.csv": "The results of all arms.",
        "report.html, report.md": "The page.",
        "<arm>/": "The files of an arm, for each seed: its results and samples, and the folder `model` of its run.",
    }
    text = "## A comparison's folder\n\n" + table(
        ["file", "what it has"], [[code(name), what] for name, what in files.items()]
    )
    text += _section("comparison.json", Comparison)
    for title, kind in (("Arms", ComparedArm), ("Runs of an arm", ArmRun), ("Differences", Difference)):
        text += _section(title, kind, level=4)
    return text + _section("Tokens to reach a perplexity", Reached, level=4) + _section("Costs", Cost, level=4)


def _pilot() -> str:
    if importlib.util.find_spec("skipwise.records.pilot") is None:
        return ""
    pilot = importlib.import_module("skipwise.records.pilot")
    return _section("pilot.json", pilot.Pilot, level=2) + _section("Full runs", pilot.FullRun)


def _suite() -> str:
    return (
        "## A suite's folder\n\n`skipwise eval build-suite` writes `suite.json`, a `README.md` for people, and "
        "`items/<length>-<kind>.jsonl`.\n\n### suite.json\n\n" + _told(SUITE_FIELDS)
        + _section("Items", Item) + "Each line ends with `sha256`, a hash of prompt, answer and choices.\n\n"
    )  # fmt: skip


def _audit() -> str:
    return (
        "## Audit log\n\n`skipwise serve --audit FILE` appends a line for each request, with its `time` in UTC. It has no text of "
        "prompts or answers.\n\n" + _fields(AuditRecord)
    )
