"""docs/reference/settings.md: every setting of a run, of a comparison and of the tasks of an evaluation."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from reference_pages.text import attributes, code, parts_of, sentence, table, yaml_block
from skipwise.compare.settings import ARM_KINDS, Comparison, CostConfig, EvaluationConfig
from skipwise.config import RunConfig
from skipwise.config.base import Length, as_length
from skipwise.config.mixture import SourceConfig
from skipwise.config.recipes import RECIPES
from skipwise.config.run import (
    DataConfig,
    FullTuning,
    GrownWindow,
    GrowthConfig,
    GuardConfig,
    LoraTuning,
    LossConfig,
    ParallelConfig,
    QloraTuning,
    ValidationConfig,
)
from skipwise.evals import TASK_GROUPS, TASKS
from skipwise.positions import END_TEXTS, ENDS, SAMPLERS, SKIPS, STARTS, TEXTS
from skipwise.rope import INTERPOLATIONS
from skipwise.train.arguments import _DEFAULTS, _SAID_ELSEWHERE

_MEASURED = {
    "by_length": "interpolated to the length of each input",
    "dual_chunk": "dual chunk attention (arXiv 2402.17463)",
    "shifted": "far distances shifted to nearer ones (STRING, arXiv 2410.18745)",
}
_HEADINGS = ("setting", "meaning", "values", "default")
_WORDS = {int: "whole number", float: "number", str: "text", bool: "`true`, `false`"}
_GROUPS = {
    DataConfig: "[data](#data)",
    FullTuning: "[tuning](#tuning)",
    GrowthConfig: "list of [stages](#growth)",
    GuardConfig: "[guard](#guard)",
    LossConfig: "[loss](#loss)",
    ParallelConfig: "[parallel](#parallel)",
    ValidationConfig: "[validation](#validation)",
    SourceConfig: "list of [sources](#data-mixture)",
    EvaluationConfig: "[evaluation](#evaluation)",
    CostConfig: "[costs](#costs)",
}
_VALUES = {
    "attention": "`eager`, `sdpa`, `flash_attention_2`, ...",
    "interpolation": "a [kind](#interpolation), or `kind` and its settings",
    "sampler": "a [kind](#sampler), or `kind` and its settings",
    "training": "[settings](#training) of the Trainer",
    "tuning": "a [kind](#tuning), or `kind` and its settings",
    "arms": "list of [arms](#arms)",
    "recipe": ", ".join(map(code, ["auto", *RECIPES])),
    "tasks": "list of [tasks](#tasks-of-an-evaluation), by name or as `kind` and settings",
}
# Of a comparison, completed before it is validated; and the interpolation, which depends on the model.
_FOUND = ("reference", "output", "interpolation")
_CHOICES = {
    (SAMPLERS["pose"], name): ", ".join(map(code, known))
    for name, known in (("skips", SKIPS), ("text", TEXTS), ("start", STARTS))
} | {(SAMPLERS["endprompt"], name): ", ".join(map(code, known)) for name, known in (("text", END_TEXTS), ("end", ENDS))}


def values(annotation: Any, metadata: tuple[Any, ...] = ()) -> str:
    """What a setting may be, in words."""
    if annotation == GrownWindow:
        return "tokens, such as `8k`, or a multiple of the training window, such as `4x`"
    if typing.get_origin(annotation) is typing.Annotated:
        inner, *more = typing.get_args(annotation)
        return values(inner, (*more, *metadata))
    if any(getattr(one, "func", None) is as_length for one in metadata) or annotation == Length:
        return "tokens, such as `32k`"
    if any("length_or_times" in str(getattr(one, "func", "")) for one in metadata):
        return "tokens, such as `8k`, or a multiple of the training window, such as `4x`"
    origin, inside = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        kinds = [values(kind, metadata) for kind in inside if kind is not type(None)]
        return " or ".join(dict.fromkeys(kinds))
    if origin is Literal:
        return ", ".join(code(value) for value in inside)
    if origin in (list, tuple, typing.get_origin(typing.Sequence[int])):
        kind = next((one for one in inside if one is not Ellipsis), str)
        return values(kind) if values(kind).startswith("list") else f"list of {_plural(values(kind))}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return _GROUPS.get(annotation, annotation.__name__)
    if origin is dict or origin is typing.get_origin(Mapping[str, int]) or annotation is dict:
        return "`name: value`"
    return _WORDS.get(annotation, getattr(annotation, "__name__", str(annotation))) + _bounds(metadata)


def _plural(kind: str) -> str:
    return {"text": "texts", "whole number": "whole numbers", "number": "numbers"}.get(kind, kind)


def _bounds(metadata: tuple[Any, ...]) -> str:
    limits = {}
    for one in metadata:
        for inner in getattr(one, "metadata", [one]):
            limits |= {name: getattr(inner, name) for name in ("ge", "gt", "le", "lt") if hasattr(inner, name)}
    if limits.get("lt", 0) >= 1 << 53:  # A bound of the format of numbers, which no value reaches.
        del limits["lt"]
    if not limits:
        return ""
    low = f"{limits['ge']:g} or more" if "ge" in limits else f"above {limits['gt']:g}" if "gt" in limits else ""
    high = f"{limits['le']:g} or less" if "le" in limits else f"below {limits['lt']:g}" if "lt" in limits else ""
    if low == "0 or more" and high == "1 or less":
        return " from 0 to 1"
    return ", " + ", ".join(filter(None, (low, high)))


def shown(value: Any) -> str:
    """A default as YAML writes it."""
    if value is None or value == "" or value == [] or value == {}:
        return ""
    if isinstance(value, BaseModel):
        return ""
    if isinstance(value, bool):
        return code(str(value).lower())
    if isinstance(value, float):
        return code(f"{value:g}")
    if isinstance(value, Mapping):
        return code("{" + ", ".join(f"{name}: {inner}" for name, inner in value.items()) + "}")
    if isinstance(value, (list, tuple)):
        inside = [shown(one).strip("`") for one in value]
        return code("[" + ", ".join(inside) + "]")
    return code(value)


def _model_rows(model: type[BaseModel], skip: tuple[str, ...] = ()) -> list[list[str]]:
    said = attributes(model)
    rows = []
    for name, field in model.model_fields.items():
        if name in skip:
            continue
        what = _VALUES.get(name) or _field_values(field)
        default = shown(field.get_default(call_default_factory=True)) if not field.is_required() else "required"
        rows.append([code(name), sentence(said.get(name, "")), what, "" if name in _FOUND else default])
    return rows


def _field_values(field: FieldInfo) -> str:
    return values(field.annotation, tuple(field.metadata))


def _dataclass_rows(kind: type) -> list[list[str]]:
    said, hints = attributes(kind), typing.get_type_hints(kind, include_extras=True)
    rows = []
    for field in dataclasses.fields(kind):
        if not field.init:
            continue
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        what = _CHOICES.get((kind, field.name)) or values(hints[field.name])
        told = "required" if default is dataclasses.MISSING else shown(default)
        rows.append([code(field.name), sentence(said.get(field.name, "")), what, told])
    return rows


def _about(thing: Any) -> str:
    """The text of a docstring as paragraphs, with its source."""
    text, sections = parts_of(thing)
    source = " ".join(sections.get("Source", "").split())
    return text + "\n\n" + (f"Source: {source}\n\n" if source else "")


def _section(title: str, thing: Any, rows: list[list[str]], level: int = 3) -> str:
    about = _about(thing)
    return f"{'#' * level} {title}\n\n{about}" + (table(_HEADINGS, rows) if rows else "")


def _kinds(title: str, lead: str, kinds: Mapping[str, Any], rows: Any, prefix: str) -> str:
    text = f"### {title}\n\n{lead}\n\n"
    for name, kind in kinds.items():
        text += _section(f"{prefix} {name}", kind, [row for row in rows(kind) if row[0] != "`kind`"], level=4)
    return text


def page() -> str:
    """The page."""
    return "".join([_INTRODUCTION, _run(), _training(), _comparison(), _tasks()])


_INTRODUCTION = """# Settings

A run of `skipwise extend` is one YAML file, `--set NAME=VALUE` for any of its settings, or both. A name with a dot is a
setting within a group: `--set data.join=true` is `data: {join: true}`. Flags override the file, and `--set` overrides both.
An unknown name is refused with the nearest known one. `skipwise plan` takes [flags](commands.md#plan) instead.

In formulas `Lo` is the original window, `Lc` the training window, `Lt` the target, `Lx` the length of a document, and
`alpha` is `Lt / Lo`. A pair is two dimensions of a head that rotate together: pair `j` of the `d` rotated dimensions turns
by `inv_freq_j` radians per position. `theta` is the RoPE base.

- A length is a number of tokens: `32768`, `32k` (1k is 1024) or `1M`.
- A share is a number from 0 to 1.
- Where no default is given, the meaning says what happens without the setting.
- The default recipe, `auto`, may choose other values than these defaults; see [recipes](#recipes).

"""


def _run() -> str:
    groups = {
        "loss": LossConfig,
        "validation": ValidationConfig,
        "guard": GuardConfig,
        "parallel": ParallelConfig,
    }
    text = _section("A run", RunConfig, _model_rows(RunConfig), level=2)
    text += _section("data", DataConfig, _model_rows(DataConfig))
    text += _section("data: mixture", SourceConfig, _model_rows(SourceConfig))
    lead = "How rotary frequencies change. `interpolation: yarn` is short for `interpolation: {kind: yarn}`."
    text += _kinds("interpolation", lead, INTERPOLATIONS, _dataclass_rows, "interpolation:")
    lead = (
        "How positions skip in a training window, and which text goes with them. "
        "`sampler: {kind: FILE.py:CLASS}` is [a sampler of your own](../guides/own-sampler.md)."
    )
    text += _kinds("sampler", lead, SAMPLERS, _dataclass_rows, "sampler:")
    lead = "Which parameters are trained. `tuning: lora` is short for `tuning: {kind: lora}`."
    tunings = {"full": FullTuning, "lora": LoraTuning, "qlora": QloraTuning}
    text += _kinds("tuning", lead, tunings, _model_rows, "tuning:")
    text += _section("growth", GrowthConfig, _model_rows(GrowthConfig))
    for name, group in groups.items():
        text += _section(name, group, _model_rows(group))
    text += (
        "### Recipes\n\nA recipe is a named set of settings. The run's own settings override those of its recipe.\n\n"
        "`recipe: auto` chooses `growing`. It chooses `diluted` if windows cannot grow: with `data.streaming`, with too few long "
        "documents, or with `growth: []`. It chooses `paper` if diluted attention is not used: with a sampler other than `pose`, "
        "with your own stages of `growth`, with context parallelism, or if the model or its attention implementation does not "
        "take the mask. The run prints what it chose and why.\n\n"
    )
    for name, recipe in RECIPES.items():
        text += f"`recipe: {name}`" + (
            ":\n\n" + yaml_block(recipe) if recipe else " has the defaults above: PoSE as published.\n\n"
        )
    return text


def _training() -> str:
    rows = [[code(name), shown(value)] for name, value in _DEFAULTS.items()]
    text = (
        "### training\n\nAny setting of `transformers.TrainingArguments`. These defaults differ from those of the library. "
        "`warmup_steps` is 10, or a tenth of all steps if that is less. `gradient_accumulation_steps` is chosen so that a "
        "step has 64 windows.\n\n" + table(["setting", "default"], rows)
    )
    rows = [[code(name), where if " " in where else code(where)] for name, where in _SAID_ELSEWHERE.items()]
    return text + "These cannot be set in `training`:\n\n" + table(["not in `training`", "set by"], rows)


def _comparison() -> str:
    text = (
        "## A comparison\n\n`skipwise compare` reads the settings of a run, which hold for every arm, and these:\n\n"
        + table(_HEADINGS, _model_rows(Comparison, skip=("run",)))
        + "### arms\n\nAn arm is one of these names, or `{name: ..., like: NAME, ...}` with settings of its own.\n\n"
    )
    rows = []
    for name, kind in ARM_KINDS.items():
        what = [] if kind.trained else ["not trained"]
        what += [] if kind.interpolated else ["not interpolated"]
        what += [_MEASURED[kind.measured]] if kind.measured in _MEASURED else []
        what += ["trains in windows of the target length"] if kind.whole_target else []
        what += ["takes the reference's training time, not its tokens"] if kind.as_long_as_reference else []
        settings = ", ".join(f"{key}: {shown(value).strip('`')}" for key, value in kind.settings.items())
        rows.append([code(name), "; ".join(what) or "trained", code(settings) if settings else ""])
    text += table(["arm", "what it is", "its settings"], rows)
    text += _section("evaluation", EvaluationConfig, _model_rows(EvaluationConfig))
    return text + _section("costs", CostConfig, _model_rows(CostConfig))


def _tasks() -> str:
    text = (
        "## Tasks of an evaluation\n\n`skipwise eval --task NAME --set TASK.SETTING=VALUE` sets one task, "
        "`--set SETTING=VALUE` sets all that have the setting. In a comparison a task is `{kind: NAME, SETTING: VALUE}`.\n\n"
    )
    single = {name: task for name, task in TASKS.items() if not any(name in group for group in TASK_GROUPS.values())}
    for name, task in single.items():
        text += _section(name, task, _dataclass_rows(task))
    return text + "".join(_group(name, about) for name, about in _ABOUT_GROUPS.items())


_ABOUT_GROUPS = {
    "ruler": "The 13 tasks of RULER.",
    "reasoning": "Five tasks in which looking for the question's words does not find the answer. Their prompts have exactly the "
    "asked length, and the first possible answer that an output names counts.",
}


def _group(group: str, about: str) -> str:
    """The tasks of a group, whose settings are nearly the same: those that all have, then those of one alone."""
    tasks = {name: TASKS[name] for name in TASK_GROUPS[group]}
    rows = {name: _dataclass_rows(task) for name, task in tasks.items()}
    common = [row for row in next(iter(rows.values())) if all(row in others for others in rows.values())]
    lines = []
    for name, task in tasks.items():
        own = [row for row in rows[name] if row not in common]
        told = " ".join(
            f"{name} ({what}; {default or 'no default'}): {meaning}" for name, meaning, what, default in own
        )
        lines.append([code(name), " ".join(parts_of(task)[0].split()), told])
    return (
        f"### {group}\n\n{about} `--task {group}` runs all of them, and `--set {group}.chat=true` sets `chat` for all.\n\n"
        + table(_HEADINGS, common)
        + table(["task", "what it asks", "settings of its own"], lines)
    )
