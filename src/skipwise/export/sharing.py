"""Prepare the folder of an export for other people: nothing of this machine or of the documents' names leaves with it.

The card, the records and the settings of a run name folders and documents. They are rewritten in place before a push,
so that what is on the hub is, byte for byte, what is in the folder. A last check reads every text file for names that
must not leave. Weights and vocabularies hold no names.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from skipwise.errors import CheckpointError
from skipwise.export import RECORD_FILE as EXPORT_FILE
from skipwise.export.modelfile import FILE as MODELFILE
from skipwise.records.runs import RECORD_FILE
from skipwise.report.model_card import data_text

CARD, NOT_NAMED = "README.md", "(not named)"
# Names of documents that are shorter and have neither a dot nor a slash are words, such as `docs`.
_TELLING = 8
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# Files that only the tokenizer writes, with texts of its own; no names of this machine are in them.
_VOCABULARIES = {"tokenizer.json", "vocab.json", "merges.txt", "vocab.txt"}
_TEXTS = {".json", ".md", ".jinja", ".txt", ".yaml", ""}
# What is kept of a run's record, and of what it says of documents and of the Trainer.
_KEPT = (
    *("window", "widest_tokens", "sampler", "interpolation", "reasons", "preflight", "calibration", "seed", "versions"),
    *("steps", "resumed_at_step", "seconds", "training_seconds", "peak_bytes", "log"),
)
_KEPT_OF_CORPUS = ("fingerprint", "documents", "shards", "counts", "format", "kinds_not_read")
_KEPT_TEXTS_OF_TRAINING = ("lr_scheduler_type", "optim")


def make_shareable(folder: Path, repository: str, license: str | None = None) -> None:
    """Rewrites the card, the records and the settings of an export, and adds the record of its run.

    Args:
        folder: the export.
        repository: where it goes, `OWNER/NAME`; commands name this instead of the folder.
        license: of the base model; None if it is not known.

    Raises:
        CheckpointError: a file still has a name that must not leave; nothing has been sent.
    """
    made = read_export(folder)
    run, before = Path(made["source"]).absolute(), made.get("repository")
    # What was pushed before has the run's record, and names the run no longer.
    record = {} if before else json.loads(_text(run / RECORD_FILE) or "{}")
    bases = [str(name) for name in dict.fromkeys((made["base"], record.get("config", {}).get("model"))) if name]
    paths = {
        **dict.fromkeys(_forms(folder), repository),
        **dict.fromkeys(_forms(run), run.name),
        **{form: hub_name(base) or Path(base).name for base in bases for form in _forms(Path(base))},
        # An adapter names its base by the folder that it was loaded from.
        **{path: Path(path).name for path in [_adapters_base(folder)] if Path(path).is_absolute()},
    }
    # Settings of the model, where a word may mean something else than a document.
    for file in folder.glob("*.json"):
        if file.name not in _VOCABULARIES | {RECORD_FILE, EXPORT_FILE}:
            settings = json.loads(file.read_text(encoding="utf-8"))
            if (public := _renamed(settings, paths)) != settings:
                _write(file, public)
    documents = _documents(record)
    names = {**dict.fromkeys(documents, NOT_NAMED), **paths}
    if record:
        _write(folder / RECORD_FILE, _renamed(shared_record(record), names))
    commands = _renamed(made["commands"], _places(folder, before, repository))
    card = _text(folder / CARD)
    for old, new in zip(made["commands"].values(), commands.values(), strict=True):
        card = card.replace(old, new)
    base = next((found for one in bases if (found := hub_name(one))), None)
    card = _renamed(_share_card(card, made["format"], repository, base, license), names)
    (folder / CARD).write_text(_without_sources(card, record), encoding="utf-8")
    shared = _renamed({**made, "commands": commands}, names)
    _write(folder / EXPORT_FILE, {**shared, "source": run.name, "repository": repository})
    try:
        check_nothing_private(folder, [path for path in paths if Path(path).is_absolute()], documents)
    except CheckpointError:
        # It names the source, from which all of this is read the next time.
        _write(folder / EXPORT_FILE, made)
        raise


def read_export(folder: Path) -> dict[str, Any]:
    """The record of an export.

    Raises:
        CheckpointError: there is none that can be read.
    """
    try:
        return dict(json.loads((folder / EXPORT_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{str(folder)!r} is no finished export ({EXPORT_FILE} cannot be read)") from error


def shared_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a run without sources and names of documents, folders and settings of loggers."""
    config, corpus = dict(record["config"]), record.get("corpus", {})
    config.pop("output", None)
    config["model"] = hub_name(str(config["model"])) or Path(str(config["model"])).name
    config["data"] = {name: value for name, value in config["data"].items() if name not in ("source", "mixture")}
    config["training"] = {
        name: value
        for name, value in config["training"].items()
        if name in _KEPT_TEXTS_OF_TRAINING or not isinstance(value, str | list | dict)
    }
    kept = {name: record[name] for name in _KEPT if name in record}
    if "reasons" in kept:
        kept["reasons"] = [_without_names(reason, _sources(record)) for reason in kept["reasons"]]
    return {
        "config": config,
        **kept,
        "corpus": {name: corpus[name] for name in _KEPT_OF_CORPUS if name in corpus},
        "left_out": "sources and names of documents, folders, and settings of loggers",
    }


def check_nothing_private(folder: Path, paths: Iterable[str], documents: Iterable[str] = ()) -> None:
    """Raises if a text file has one of these paths, or the home or current folder; or if the card or a record has a
    name of documents.

    Raises:
        CheckpointError: it has; the message names the file and the word.
    """
    here = [str(path) for path in (Path.home(), Path.cwd()) if len(path.parts) > 1]
    for file in sorted(folder.rglob("*")):
        if not file.is_file() or file.name in _VOCABULARIES or file.suffix not in _TEXTS:
            continue
        ours = file.name in (CARD, RECORD_FILE, EXPORT_FILE)
        words = {*paths, *here, *(documents if ours else ())}
        if words and (found := _whole(words).search(file.read_text(encoding="utf-8", errors="replace"))):
            raise CheckpointError(
                f"{file.name} of {str(folder)!r} names {found[1]!r}, which must not leave this machine, so nothing was "
                "sent; take it out of the file and push again"
            )


def hub_name(model: str) -> str | None:
    """A model's name if it is one on the hub; None for a folder, a file and the embedded model."""
    return model if _HUB_NAME.fullmatch(model) and not Path(model).exists() else None


def _share_card(card: str, format: str, repository: str, base: str | None, license: str | None) -> str:
    """The card with the hub's front matter, and for a GGUF file how it is fetched."""
    import yaml

    found = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    front = dict(yaml.safe_load(found[1])) if found else {}
    front["tags"] = sorted({*front.get("tags", ()), "long-context", "skipwise", *(["gguf"] * (format == "gguf"))})
    front["pipeline_tag"] = "text-generation"
    if format != "gguf":
        front["library_name"] = "peft" if format == "adapter" else "transformers"
    front |= {name: value for name, value in (("base_model", base), ("license", license)) if value}
    body = card[found.end() :] if found else card
    if format == "gguf":
        heading, fetch = "\n## Export\n", f"The files come with `hf download {repository} --local-dir .`."
        body = re.sub(r"\nThe files come with `hf download .*\n", "", body).replace(heading, f"{heading}\n{fetch}\n", 1)
    return f"---\n{yaml.safe_dump(front, sort_keys=True, allow_unicode=True)}---\n\n{body.lstrip()}"


def _without_sources(card: str, record: Mapping[str, Any]) -> str:
    """The card with the number of documents and their settings for their sources."""
    if not record:
        return card
    count, documents = iter(range(1, 1000)), record.get("corpus", {}).get("documents")
    told = f"{f'{documents:,} documents' if documents else 'documents'} {NOT_NAMED}"
    data = f"- Data: {data_text(shared_record(record)['config']['data'], told)}"
    card = re.sub(r"(?m)^- Data: .*$", lambda _: data, card)
    return re.sub(r"(?m)^- Drawn from .*?: (?=\d)", lambda _: f"- Drawn from source {next(count)}: ", card)


def _sources(record: Mapping[str, Any]) -> list[str]:
    """Sources of documents that a run's record names."""
    sources = record.get("config", {}).get("data", {}).get("source", [])
    return [source for source in ([sources] if isinstance(sources, str) else sources) if source != "stdlib"]


def _without_names(reason: str, sources: Iterable[str]) -> str:
    """Why a run has a setting, without the sources in it, however short their names are."""
    for source in sources:
        reason = re.sub(rf"(?<=\bof ){re.escape(source)}(?![\w/.-])", NOT_NAMED, reason)
    return reason


def _documents(record: Mapping[str, Any]) -> list[str]:
    """Sources and names of documents that a run's record has, except words that may well mean something else."""
    found = [form for source in _sources(record) for form in (source, str(Path(source).absolute()))]
    ends = record.get("corpus", {}).get("held_out_end") or []
    found += [end["document"] for end in ([ends] if isinstance(ends, dict) else ends) if end.get("document")]
    return [word for word in found if len(word) >= _TELLING or "/" in word or "." in word]


def _adapters_base(folder: Path) -> str:
    text = _text(folder / "adapter_config.json")
    return str(json.loads(text).get("base_model_name_or_path") or "") if text else ""


def _places(folder: Path, before: str | None, repository: str) -> dict[str, str]:
    """What commands call the folder and the files that they name, and what they call them on the hub."""
    forms = {*map(str, (folder, folder.absolute(), folder.resolve())), *([before] if before else ())}
    files = [MODELFILE, *(path.name for path in folder.glob("*.gguf"))]
    return {
        **{str(Path(form, file)): file for form in forms for file in files},
        # An adapter has the name of its repository.
        **{f"{Path(form).name}={form}": f"{Path(repository).name}={repository}" for form in forms},
        **dict.fromkeys(forms, repository),
    }


def _forms(path: Path) -> list[str]:
    """A path as given, absolute and without links. A bare name is no path that could be private."""
    return [form for form in dict.fromkeys(map(str, (path, path.absolute(), path.resolve()))) if "/" in form]


def _whole(words: Iterable[str]) -> re.Pattern[str]:
    """Words that are not a part of a longer name or path; the longest first."""
    either = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    return re.compile(rf"(?<![\w/.-])({either})(?![\w-])")


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    """A JSON value whose texts have public names."""
    if isinstance(value, Mapping):
        return {name: _renamed(each, names) for name, each in value.items()}
    if isinstance(value, list):
        return [_renamed(each, names) for each in value]
    if not isinstance(value, str) or not names:
        return value
    # What is in a folder of documents is named no more than the folder.
    text = _whole(names).sub(lambda found: names[found[1]], value)
    return re.sub(rf"{re.escape(NOT_NAMED)}/[^\s'\",;:)\]]*", NOT_NAMED, text)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
