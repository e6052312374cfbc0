"""Documents: texts with names, from wherever users keep them.

A source is a file, a folder, a glob, `stdlib`, the name of a hub data set, or a list of these. `find_sources` tells
them apart by what exists. Sources are read lazily and in a fixed order, so a corpus may be larger than memory.
`look_through` inspects them first and reports everything unreadable at once.

document.py     a text with its name, and whether it is held out
finding.py      the files of folders and globs, each once
sources.py      the sources: local files and hub data sets
passed_over.py  counts of unreadable files and records
threads.py      work on documents in parallel
"""

import glob
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from skipwise.data.conversations import Format, conversation_field, form_of
from skipwise.data.documents.document import Document, is_held_out, split_point
from skipwise.data.documents.finding import Finder, FoundFiles, printable
from skipwise.data.documents.passed_over import PassedOver, codecs_line, kinds_line, numbers_of, unpackaged_line
from skipwise.data.documents.sources import SOURCES, HubDataset, LocalFiles, Source
from skipwise.data.documents.threads import in_threads
from skipwise.data.formats import ALLOWED, INSTALL, UnreadableError, is_other_json, missing_package, reader_of
from skipwise.errors import DataError

__all__ = [
    "Document",
    "HubDataset",
    "LocalFiles",
    "PassedOver",
    "Source",
    "Sources",
    "find_sources",
    "in_threads",
    "inspect",
    "is_held_out",
    "kinds_line",
    "look_through",
    "numbers_of",
    "printable",
    "read_documents",
    "split_point",
    "stdlib_documents",
    "unpackaged_line",
]

logger = logging.getLogger(__name__)

# `name`, `owner/name`, each with `:split` or `:config:split`.
_HUB_NAME = re.compile(r"(?P<name>[\w.-]+(?:/[\w.-]+)?)(?::(?P<config>[\w.-]+)(?=:))?(?::(?P<split>[\w.-]+))?")
# Inspecting more than this may take long, so it is logged.
_LOGGED_BYTES, _LOGGED_FILES = 32 << 20, 5000


def stdlib_documents() -> Iterator[Document]:
    """Python sources of the running interpreter's standard library, in a fixed order: long text on every machine."""
    for file in Finder().standard_library().files:
        yield Document(name=file.name, text=file.path.read_text(encoding="utf-8"), is_canonical=True)


def read_documents(source: str | Path | Sequence[str | Path], *, field: str = "text") -> Iterator[Document]:
    """Reads the documents of a source one by one, in an order that depends only on the source.

    Args:
        source: a file, folder or glob of the kinds in `data.formats.READERS`; `stdlib`; a hub data set as `owner/name`,
            `owner/name:split` or `owner/name:config:split` (split `train` when left out); or a list of these.
        field: name of the text field in JSON lines, CSV, Parquet and hub data sets; `a.b` is field `b` of field `a`,
            unless a field is named `a.b`.

    Yields:
        Documents. Their name is the path relative to the source, followed by `:line` where a file holds several. A null
        or empty row has an empty text.

    Raises:
        DataError: the source is none of these, or something in it cannot be read; the message names file and line.
    """
    sources = find_sources(source, field)
    for found in sources:
        yield from found.documents(field)
    if line := codecs_line({name: codec for found in sources for name, codec in found.codecs.items()}):
        logger.warning(line)


def find_sources(source: str | Path | Sequence[str | Path], field: str = "text") -> list[Source]:
    """Tells what kind a source is by what exists; returns each file once. Of files, only JSON ones are opened.

    Args:
        source: as in `read_documents`.
        field: as there. In folders and globs it tells JSON files of records from others, which are passed over.

    Returns:
        The sources to read from. Missing or inaccessible paths are in the `faults` of a source.

    Raises:
        DataError: the source is empty.
    """
    if not source:
        raise DataError(f"the source of documents is empty; {SOURCES}")
    finder = Finder()
    found: list[Source] = []
    for one in [source] if isinstance(source, str | Path) else source:
        try:
            made = _source(one, finder, field)
        except OSError as error:
            reason = f"cannot be accessed ({error.strerror})"
            made = _faulty(UnreadableError("closed", printable(one), reason, "fix its permissions or leave it out"))
        # A file belongs to the first source that has it. A source without files of its own is dropped.
        if made is not None and made not in found:
            found.append(made)
    return found


def require_there(source: str | Path | Sequence[str | Path]) -> None:
    """Refuses sources that do not exist, before anything is read; no folder is walked for it.

    Raises:
        DataError: one does not exist.
    """
    passed_over = PassedOver()
    for one in [source] if isinstance(source, str | Path) else source:
        if not _may_exist(one) and not glob.has_magic(str(one)) and str(one) != "stdlib":
            made = _source(one, Finder(), "")
            for fault in made.faults if made is not None else ():
                passed_over.add(fault)
    if passed_over:
        raise _refusal(passed_over, "", False)


def _may_exist(path: str | Path) -> bool:
    """Whether something is there; also where that cannot be told, which `look_through` reports."""
    try:
        return Path(path).expanduser().exists()
    except OSError:
        return True


def _source(source: str | Path, finder: Finder, field: str) -> Source | None:
    text, path = str(source), Path(source).expanduser()
    if text == "stdlib" and not path.exists():
        files = finder.standard_library().files
        return LocalFiles(files=files, is_canonical=True) if files else None
    if path.is_file():
        if reader_of(path) is None:
            reason = "is of an unsupported kind"
            return _faulty(UnreadableError("kind", printable(path), reason, f"give {ALLOWED}"))
        if package := missing_package(path):
            reason = f"needs the package {package}, which is missing"
            return _faulty(UnreadableError("package", printable(path), reason, f"run: {INSTALL}"))
        if not path.stat().st_size:
            return _faulty(UnreadableError("empty", printable(path), "is empty", "give a file with text"))
        return _local(finder.file(path), text)
    if path.is_dir():
        return _local(_without_other_json(finder.walked(path), field), text)
    if glob.has_magic(text):
        return _local(_without_other_json(finder.globbed(path), field), text)
    if isinstance(source, str) and (match := _HUB_NAME.fullmatch(text)):
        return HubDataset(name=match["name"], config=match["config"], split=match["split"] or "train")
    return _faulty(UnreadableError("missing", f"no documents at {printable(text)!r}:", "it does not exist", SOURCES))


def _local(found: FoundFiles, source: str) -> LocalFiles | None:
    faults = found.faults
    if not found.files and not faults:
        if found.repeated:
            return None
        holds = kinds_line(found.passed_over + found.unpackaged) or "no files at all"
        kind = "package" if found.unpackaged else "kind" if found.passed_over else "missing"
        cure = f"to read the {kinds_line(found.unpackaged)}, run: {INSTALL}" if found.unpackaged else SOURCES
        faults = [UnreadableError(kind, f"no documents at {printable(source)!r}:", f"it holds {holds}", cure)]
    return LocalFiles(files=found.files, passed_over=found.passed_over, unpackaged=found.unpackaged, faults=faults)


def _without_other_json(found: FoundFiles, field: str) -> FoundFiles:
    """JSON files without records count as of an unsupported kind."""
    kept = [file for file in found.files if not is_other_json(file.path, field)]
    if others := len(found.files) - len(kept):
        found.files = kept
        found.passed_over[".json"] += others
    return found


def _faulty(fault: UnreadableError) -> LocalFiles:
    return LocalFiles(files=[], faults=[fault])


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Sources after inspection by `look_through`.

    Attributes:
        sources: in reading order.
        identities: `Source.identity` of each source at that time.
        field: name of the text field; for conversations, that of `conversation_field`.
        skip_unreadable: whether unreadable files and records are skipped.
        are_conversations: whether the documents are conversations.
    """

    sources: list[Source]
    identities: list[list[Any]]
    field: str
    skip_unreadable: bool
    are_conversations: bool = False

    @property
    def reading(self) -> str:
        """Reading settings that the tokens depend on: the field, and whether unreadable records are skipped."""
        return f"{self.field}, where it can be read" if self.skip_unreadable else self.field

    @property
    def kinds_passed_over(self) -> Counter[str]:
        """Number of files of unsupported kinds, and of kinds whose packages are missing, by suffix."""
        return sum((Counter(found.passed_over) for found in self.sources), Counter(self.unpackaged))

    @property
    def unpackaged(self) -> Counter[str]:
        """Number of files whose kind needs a package that is not installed, by suffix."""
        return sum((Counter(found.unpackaged) for found in self.sources), Counter[str]())

    @property
    def codecs(self) -> dict[str, str]:
        """By name, the codec of each file that is not UTF-8, as far as files have been read."""
        return {name: codec for found in self.sources for name, codec in found.codecs.items()}

    def passed_over(self) -> PassedOver:
        """Folders and files that cannot be accessed. Unreadable content is counted by whoever reads it."""
        return PassedOver(fault for found in self.sources for fault in found.faults)

    def documents(self) -> Iterator[Document]:
        """Yields the documents one by one; skips unreadable ones if `skip_unreadable`."""
        for found in self.sources:
            yield from found.documents(self.field, PassedOver() if self.skip_unreadable else None)

    def refuse_all(self, first: UnreadableError, why_not: Callable[[Document], UnreadableError | None]) -> NoReturn:
        """Reads everything again to raise one error about all that is unreadable.

        Needed when reading finds an error that the inspected samples did not show.

        Args:
            first: the error that was found.
            why_not: what is wrong with a document that can be read; None for nothing.
        """
        passed_over = PassedOver()
        for found in self.sources:
            if isinstance(found, LocalFiles):
                for document in found.documents(self.field, passed_over):
                    if fault := why_not(document):
                        passed_over.add(fault)
        raise _refusal(passed_over or PassedOver([first]), kinds_line(self.kinds_passed_over), True)

    def files(self) -> list[Path]:
        """The files on this machine, in reading order."""
        return [file.path for found in self.sources if isinstance(found, LocalFiles) for file in found.files]

    def empty_files(self) -> list[str]:
        """Names of the files of zero bytes."""
        return [name for found in self.sources if isinstance(found, LocalFiles) for name in found.empty_files()]


def look_through(
    source: "str | Path | Sequence[str | Path] | Sources",
    *,
    field: str = "text",
    skip_unreadable: bool = False,
    format: Format = "text",
) -> Sources:
    """Finds and inspects documents, so that everything unreadable is reported at once.

    Sources up to 256 MiB are inspected as a whole while they are hashed. Of larger sources, only the beginning of each
    file and the columns of Parquet files are inspected.

    Args:
        source: as in `read_documents`; `Sources` are returned as they are.
        field: name of the text field.
        skip_unreadable: skips what cannot be read, with a warning.
        format: what records hold; `auto` finds it and logs it if it is conversations.

    Raises:
        DataError: something cannot be read and is not to be skipped, nothing is left, or it holds both texts and
            conversations.
    """
    if isinstance(source, Sources):
        return source
    looked, passed_over = inspect(source, field=field, skip_unreadable=skip_unreadable, format=format)
    if passed_over:
        _refuse_or_warn(looked, passed_over)
    if kinds := kinds_line(looked.kinds_passed_over - looked.unpackaged):
        logger.warning(f"files of unsupported kinds are skipped: {kinds}")
    for line in filter(None, (unpackaged_line(looked.unpackaged), codecs_line(looked.codecs))):
        logger.warning(line)
    return looked


def inspect(
    source: str | Path | Sequence[str | Path],
    *,
    field: str = "text",
    skip_unreadable: bool = False,
    format: Format = "text",
) -> tuple[Sources, PassedOver]:
    """Finds and inspects documents as `look_through`, and returns what cannot be read instead of raising an error."""
    sources = find_sources(source, field)
    size = sum(found.size_bytes() or 0 for found in sources)
    files = sum(len(found.files) for found in sources if isinstance(found, LocalFiles))
    if size > _LOGGED_BYTES or files > _LOGGED_FILES:
        logger.info(f"inspecting {files:,} files of documents, {size / 1e6:,.0f} MB")
    are_conversations = _hold_conversations(sources, field) if format == "auto" else format == "conversations"
    field = conversation_field(field) if are_conversations else field
    passed_over = PassedOver()
    looked = Sources(
        sources=sources,
        identities=[found.look(field, passed_over) for found in sources],
        field=field,
        skip_unreadable=skip_unreadable,
        are_conversations=are_conversations,
    )
    return looked, passed_over


def _hold_conversations(sources: Sequence[Source], field: str) -> bool:
    """Whether the first records are conversations.

    Raises:
        DataError: some are, and others are texts.
    """
    texts, conversations = list[str](), list[str]()
    for name, record in (first for found in sources for first in found.first_records()):
        form = {"text"} if record is None else form_of(record, field)
        if len(form) > 1:
            raise DataError(
                f"{name} has both in its records, a text in {field!r} and a conversation; say which is meant by "
                "data.format=text or data.format=conversations (in an evaluation --format)",
                page="unusable-conversations",
            )
        (conversations if "conversations" in form else texts).append(name)
    if conversations and texts:
        raise DataError(
            f"{conversations[0]} holds conversations and {texts[0]} texts; train on one of them, or on both as entries "
            "of a mixture, in the run's YAML: data: [{source: CHATS, weight: 0.5}, {source: TEXTS, weight: 0.5}]",
            page="unusable-conversations",
        )
    if conversations:
        more = f" and {len(conversations) - 1:,} more" if len(conversations) > 1 else ""
        logger.info(
            f"{conversations[0]}{more}: conversations, in the model's chat template; the assistant's turns are trained"
        )
    return bool(conversations)


def _refuse_or_warn(looked: Sources, passed_over: PassedOver) -> None:
    """Warns about what is skipped. Raises if skipping is off, or if nothing is left."""
    is_any = any(not isinstance(found, LocalFiles) or found.files for found in looked.sources)
    can_go_on = is_any and "missing" not in passed_over
    if looked.skip_unreadable and can_go_on:
        logger.warning(f"skipping what cannot be read: {passed_over.line()}")
        return
    raise _refusal(passed_over, kinds_line(looked.kinds_passed_over), can_go_on)


def _refusal(passed_over: PassedOver, kinds: str, can_go_on: bool) -> DataError:
    one = passed_over.first if len(passed_over) == 1 else None
    told = str(one) if one is not None else f"some documents cannot be read: {passed_over.line()}"
    others = f"; files of unsupported kinds: {kinds}" if kinds else ""
    leave = "or leave it" if one is not None else f"{passed_over.cure()}, or leave them"
    skip = f"; {leave} out by --set data.skip_unreadable=true (eval and build-suite: --skip-unreadable)"
    return DataError(f"{told}{others}{skip if can_go_on else ''}", page=passed_over.page)
