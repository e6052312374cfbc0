"""Documents that are no plain text: how each kind becomes text, once.

A converter takes the bytes of a file and its name, and returns its text or raises an `UnreadableError`. What takes long
is kept in the cache folder under a hash of the bytes, since a run reads its documents several times: to check them,
to tokenize them, and again when it resumes. Blank lines separate pages, slides and sheets; a sheet begins with its
name. No marker is written into a text that its author has not written.
"""

import contextlib
import hashlib
import importlib.util
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from skipwise.data.formats import mail, odf, office, pdf, rtf, sheets
from skipwise.data.formats.encodings import Encoding
from skipwise.data.formats.faults import Found, UnreadableError, one_line
from skipwise.data.formats.signatures import suffix_of
from skipwise.files import cache_folder, replace_file

logger = logging.getLogger(__name__)

# A text that is converted faster is not worth a file.
_CACHED_SECONDS = 0.1
# Of a page, `\x00` and lone surrogates are no characters.
_NO_TEXT = dict.fromkeys([0, *range(0xD800, 0xE000)])


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of documents.

    Attributes:
        convert: its converter, `convert(content, name) -> text`, or the text and a remark.
        version: counts what changes the text of the same bytes; part of the key of token files.
        package: the package that converts it, in the extra `documents`; None for Python itself.
        module: the name that it is imported by.
    """

    convert: Callable[[bytes, str], str | tuple[str, str]]
    version: int = 1
    package: str | None = None
    module: str = ""


_SHEETS = Kind(sheets.text_of_sheets, version=2, package="python-calamine", module="python_calamine")
KINDS: dict[str, Kind] = {
    ".pdf": Kind(pdf.text_of_pdf, package="pypdfium2", module="pypdfium2"),
    ".docx": Kind(office.text_of_docx),
    ".pptx": Kind(office.text_of_pptx),
    **dict.fromkeys((".xlsx", ".xlsm", ".xls", ".ods"), _SHEETS),
    ".odt": Kind(odf.text_of_odf),
    ".odp": Kind(odf.text_of_odf),
    ".epub": Kind(office.text_of_epub),
    ".rtf": Kind(rtf.text_of_rtf, package="striprtf", module="striprtf"),
    ".msg": Kind(mail.text_of_msg, package="olefile", module="olefile"),
    ".eml": Kind(mail.text_of_eml),
}


def kind_of(name: str) -> Kind | None:
    """The kind of a document by its name; None for a file of another format."""
    return KINDS.get(Path(name).suffix.lower())


@lru_cache
def is_installed(module: str) -> bool:
    """Whether a package can be imported; nothing is imported."""
    return not module or importlib.util.find_spec(module) is not None


def read_document(
    file: BinaryIO, name: str, field: str, cut: bool = False, encoding: Encoding | None = None
) -> Iterator[Found]:
    """The text of a document of the kinds in `KINDS`."""
    kind = kind_of(name)
    assert kind is not None, name
    try:
        content = file.read()
        text, remark = _cached_text(kind, content, name) if content else ("", "")
        if remark:
            _say_once(f"{name}: {remark}")
        yield 0, text
    except UnreadableError as error:
        yield 0, error


@lru_cache(maxsize=4096)
def _say_once(line: str) -> None:
    logger.warning(line)


def _cached_text(kind: Kind, content: bytes, name: str) -> tuple[str, str]:
    """The text of a document, and a remark; a cached file is a hash of both, the remark and the text."""
    depends_on = [Path(name).suffix.lower(), kind.version, _version(kind.package), hashlib.sha256(content).hexdigest()]
    key = hashlib.sha256(repr(depends_on).encode()).hexdigest()[:32]
    cached = cache_folder() / "texts" / key[:2] / f"{key}.txt"
    with contextlib.suppress(OSError):
        # As bytes, since Python would change the ends of lines.
        digest, _, held = cached.read_bytes().partition(b"\n")
        if hashlib.sha256(held).hexdigest().encode() == digest:
            remark, _, text = held.decode("utf-8").partition("\n")
            return text, remark
    begun = time.perf_counter()
    text, remark = _converted(kind, content, name)
    if time.perf_counter() - begun > _CACHED_SECONDS:
        with contextlib.suppress(OSError):  # It is converted again.
            cached.parent.mkdir(parents=True, exist_ok=True)
            digest = hashlib.sha256(f"{remark}\n{text}".encode()).hexdigest()
            replace_file(cached, f"{digest}\n{remark}\n{text}")
    return text, remark


def _converted(kind: Kind, content: bytes, name: str) -> tuple[str, str]:
    """Raises UnreadableError, whatever a converter raises about a file."""
    try:
        made = kind.convert(content, name)
        text, remark = (made, "") if isinstance(made, str) else made
        text = text.translate(_NO_TEXT) if "\x00" in text or not _is_encodable(text) else text
        if not text.strip():
            cure = "run OCR on it, as by ocrmypdf, or leave it out" if name.lower().endswith(".pdf") else "leave it out"
            raise UnreadableError("textless", name, "has no text", cure)
        return text, remark
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # A panic of a library in Rust is no Exception.
        suffix = suffix_of(content)
        if suffix is not None and KINDS.get(suffix) is not kind:
            reason, cure = f"is a {suffix} file by its content", "rename it, or leave it out"
            raise UnreadableError("broken", name, reason, cure) from None
        if isinstance(error, UnreadableError):
            raise
        reason = f"cannot be read ({one_line(error)[:200]})"
        raise UnreadableError("broken", name, reason, "open it, save it again, or leave it out") from None


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@lru_cache
def _version(package: str | None) -> str:
    from importlib.metadata import version

    return version(package) if package else ""
