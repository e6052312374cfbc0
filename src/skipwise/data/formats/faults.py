"""What is wrong with a file or a record."""

from typing import Any

from skipwise.errors import DataError

INSTALL = "pip install 'skipwise[documents]'"
"""The command that installs what reads PDF files, spreadsheets, RTF and Outlook mail."""

NAME_THE_FIELD = "name the field that holds the text by --set data.field=NAME (eval and build-suite: --field NAME)"
"""The cure of records that have another field."""

FAULTS = {
    "missing": "no documents there",
    "kind": "of an unsupported kind",
    "closed": "cannot be opened",
    "broken": "damaged or incomplete",
    "password": "protected by a password",
    "size": "too large unpacked",
    "textless": "without text, as scans are before OCR",
    "package": f"in need of the extra documents ({INSTALL})",
    "empty": "without records",
    "encoding": "not UTF-8",
    "record": "not a valid record",
    "field": "no text in the field",
    "conversation": "conversations that cannot be used",
}
"""Kinds of faults of files and records, with their descriptions, in the order of reports."""

PAGES = {"missing": "not-found", "package": "missing-extra", "conversation": "unusable-conversations"}
"""Pages about kinds of faults; of the others that of `DataError`."""


class UnreadableError(DataError):
    """A file or a record cannot be read.

    Args:
        kind: a key of `FAULTS`.
        where: the file, with the line or row if it has several.
        reason: what is wrong; a predicate whose subject is `where`.
        cure: what to do.
    """

    def __init__(self, kind: str, where: str, reason: str, cure: str) -> None:
        super().__init__(f"{where} {reason}; {cure}", page=PAGES.get(kind))
        self.kind, self.where, self.reason, self._cure = kind, where, reason, cure

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.kind, self.where, self.reason, self._cure)


Found = tuple[int, str | UnreadableError]
"""What a reader yields: the line, and its text or what is wrong with it."""


def one_line(error: BaseException) -> str:
    """The message of an error on one line."""
    return " ".join(str(error).split()) or type(error).__name__
