"""Documents: texts with names, from wherever users keep them.

A source is a file, a folder, a glob, `stdlib`, the name of a hub data set, or a list of these; `find_sources` decides
which by what exists. Sources are read lazily and in a fixed order: a corpus larger than memory passes piece by piece.
Before that `look_through` looks at them, and tells all that cannot be read at once.

document.py     a text with its name, and whether it is held out
finding.py      files of folders and globs, each once
sources.py      what documents are read from
passed_over.py  counts of what cannot be read
"""

import glob
import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from skipwise.data.documents.document import Document, is_held_out, split_point
from skipwise.data.documents.finding import Finder, FoundFiles, printable
from skipwise.data.documents.passed_over import PassedOver, kinds_line
from skipwise.data.documents.sources import SOURCES, HubDataset, LocalFiles, Source
from skipwise.data.formats import ALLOWED, UnreadableError, reader_of
from skipwise.errors import DataError

__all__ = [
    "Document",
    "HubDataset",
    "LocalFiles",
    "PassedOver",
    "Source",
    "Sources",
    "find_sources",
    "is_held_out",
    "kinds_line",
    "look_through",
    "printable",
    "read_documents",
    "split_point",
    "stdlib_documents",
]

logger = logging.getLogger(__name__)

# `name`, `owner/name`, each with `:split` or `:config:split`.
_HUB_NAME = re.compile(r"(?P<name>[\w.-]+(?:/[\w.-]+)?)(?::(?P<config>[\w.-]+)(?=:))?(?::(?P<split>[\w.-]+))?")
# Of more than this a look may take so long that it is said.
_SAID_BYTES, _SAID_FILES = 32 << 20, 5000


def stdlib_documents() -> Iterator[Document]:
    """Python sources of the running interpreter's library, in a fixed order: real long text on every machine."""
    for file in Finder().standard_library().files:
        yield Document(name=file.name, text=file.path.read_text(encoding="utf-8"), is_canonical=True)


def read_documents(source: str | Path | Sequence[str | Path], *, field: str = "text") -> Iterator[Document]:
    """Reads the documents of a source one by one, in an order that depends on the source alone.

    Args:
        source: a file, folder or glob of the kinds in `data.formats.READERS`; `stdlib`; a hub data set as `owner/name`,
            `owner/name:split` or `owner/name:config:split` (split `train` when left out); or a list of these.
        field: name of the entry that holds the text in JSON lines, Parquet and hub data sets; `a.b` is entry `b` of
            entry `a`, where none is named `a.b`.

    Yields:
        Documents named by their path relative to the source, followed by `:line` where a file holds many. Rows that are
        null or empty have no text.

    Raises:
        DataError: when the source is none of these, or anything in it cannot be read; names the file and line.
    """
    for found in find_sources(source):
        yield from found.documents(field)


def find_sources(source: str | Path | Sequence[str | Path]) -> list[Source]:
    """Finds out what a source is, by what exists; opens no file, and finds none twice.

    Args:
        source: as in `read_documents`.

    Returns:
        What documents are read from; what there is none of, or cannot be looked into, is among the `faults` of one.

    Raises:
        DataError: the source is empty.
    """
    if not source:
        raise DataError(f"the source of documents is empty; {SOURCES}")
    finder = Finder()
    found: list[Source] = []
    for one in [source] if isinstance(source, str | Path) else source:
        try:
            made = _source(one, finder)
        except OSError as error:
            reason = f"cannot be looked at ({error.strerror})"
            made = _none(UnreadableError("closed", printable(one), reason, "mend its permissions or leave it out"))
        # A file that an earlier source has is none of this one's; where that leaves nothing, it is no source.
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
        if not Path(one).expanduser().exists() and not glob.has_magic(str(one)) and str(one) != "stdlib":
            made = _source(one, Finder())
            for fault in made.faults if made is not None else ():
                passed_over.add(fault)
    if passed_over:
        raise DataError(_refusal(passed_over, "", False))


def _source(source: str | Path, finder: Finder) -> Source | None:
    text, path = str(source), Path(source).expanduser()
    if text == "stdlib" and not path.exists():
        files = finder.standard_library().files
        return LocalFiles(files=files, is_canonical=True) if files else None
    if path.is_file():
        if reader_of(path) is None:
            reason = "is of a kind that skipwise does not read"
            return _none(UnreadableError("kind", printable(path), reason, f"give {ALLOWED}"))
        if not path.stat().st_size:
            return _none(UnreadableError("empty", printable(path), "is empty", "give a file with text"))
        return _local(finder.file(path), text)
    if path.is_dir():
        return _local(finder.walked(path), text)
    if glob.has_magic(text):
        return _local(finder.globbed(path), text)
    if isinstance(source, str) and (match := _HUB_NAME.fullmatch(text)):
        return HubDataset(name=match["name"], config=match["config"], split=match["split"] or "train")
    return _none(UnreadableError("missing", f"no documents at {printable(text)!r}:", "it does not exist", SOURCES))


def _local(found: FoundFiles, source: str) -> LocalFiles | None:
    faults = found.faults
    if not found.files and not faults:
        if found.repeated:
            return None
        holds = kinds_line(found.passed_over) or "no files at all"
        kind = "kind" if found.passed_over else "missing"
        faults = [UnreadableError(kind, f"no documents at {printable(source)!r}:", f"it holds {holds}", SOURCES)]
    return LocalFiles(files=found.files, passed_over=found.passed_over, faults=faults)


def _none(fault: UnreadableError) -> LocalFiles:
    return LocalFiles(files=[], faults=[fault])


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Sources that have been looked through.

    Attributes:
        sources: in reading order.
        identities: what the `identity` of each was.
        field: entry that holds the text.
        skip_unreadable: what cannot be read is left out.
    """

    sources: list[Source]
    identities: list[list[Any]]
    field: str
    skip_unreadable: bool

    @property
    def reading(self) -> str:
        """What tokens depend on beside the files: the field, and whether some is left out."""
        return f"{self.field}, where it can be read" if self.skip_unreadable else self.field

    @property
    def kinds_passed_over(self) -> Counter[str]:
        """Files of kinds that are not read, by suffix."""
        return sum((Counter(found.passed_over) for found in self.sources), Counter[str]())

    def passed_over(self) -> PassedOver:
        """What was found that cannot be looked into; of files and records whoever reads them knows."""
        return PassedOver(fault for found in self.sources for fault in found.faults)

    def documents(self) -> Iterator[Document]:
        """Yields the documents one by one, without those that cannot be read where these are to be left out."""
        for found in self.sources:
            yield from found.documents(self.field, PassedOver() if self.skip_unreadable else None)

    def refuse_all(self, first: UnreadableError) -> NoReturn:
        """Raises for all that cannot be read, when something is found that no look at samples has shown.

        Args:
            first: what was found.
        """
        passed_over = PassedOver()
        for found in self.sources:
            if isinstance(found, LocalFiles):
                for _ in found.documents(self.field, passed_over):
                    pass
        raise DataError(_refusal(passed_over or PassedOver([first]), kinds_line(self.kinds_passed_over), True))

    def empty_files(self) -> list[str]:
        """Names of the files without a byte."""
        return [name for found in self.sources if isinstance(found, LocalFiles) for name in found.empty_files()]


def look_through(
    source: "str | Path | Sequence[str | Path] | Sources", *, field: str = "text", skip_unreadable: bool = False
) -> Sources:
    """Finds documents and looks at them, so that all that cannot be read is told at once.

    Of sources up to 256 MiB everything is looked at, in the same go as it is hashed; of larger ones the beginning of
    each file, and the columns of Parquet files.

    Args:
        source: as in `read_documents`; what has been looked through already is given back.
        field: entry that holds the text.
        skip_unreadable: goes on without what cannot be read, with a warning.

    Raises:
        DataError: something cannot be read and is not to be left out, or there is nothing else.
    """
    if isinstance(source, Sources):
        return source
    sources = find_sources(source)
    size = sum(found.size_bytes() or 0 for found in sources)
    files = sum(len(found.files) for found in sources if isinstance(found, LocalFiles))
    if size > _SAID_BYTES or files > _SAID_FILES:
        logger.info(f"looking through {files:,} files of documents, {size / 1e6:,.0f} MB")
    passed_over = PassedOver()
    identities = [found.look(field, passed_over) for found in sources]
    looked = Sources(sources=sources, identities=identities, field=field, skip_unreadable=skip_unreadable)
    if passed_over:
        _refuse_or_warn(looked, passed_over)
    if kinds := kinds_line(looked.kinds_passed_over):
        logger.warning(f"files of kinds that are not read are passed over: {kinds}")
    return looked


def _refuse_or_warn(looked: Sources, passed_over: PassedOver) -> None:
    """Warns of what is left out; raises where that is not wanted, or there is nothing else."""
    is_any = any(not isinstance(found, LocalFiles) or found.files for found in looked.sources)
    can_go_on = is_any and "missing" not in passed_over
    if looked.skip_unreadable and can_go_on:
        logger.warning(f"going on without what cannot be read: {passed_over.line()}")
        return
    raise DataError(_refusal(passed_over, kinds_line(looked.kinds_passed_over), can_go_on))


def _refusal(passed_over: PassedOver, kinds: str, can_go_on: bool) -> str:
    one = passed_over.first if len(passed_over) == 1 else None
    told = str(one) if one is not None else f"documents cannot all be read: {passed_over.line()}"
    others = f"; of kinds that are not read: {kinds}" if kinds else ""
    without = "go on without by data.skip_unreadable: true (--skip-unreadable)"
    cure = f"; {'or' if one is not None else 'mend them, or'} {without}" if can_go_on else ""
    return f"{told}{others}{cure}"
