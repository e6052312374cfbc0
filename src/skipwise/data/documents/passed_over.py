"""What is unreadable in a source: counts by kind, and the first few names."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from skipwise.data.formats import FAULTS, INSTALL, NAME_THE_FIELD, NAMES, PAGES, UnreadableError

_NAMED = 3


class PassedOver:
    """Counts of unreadable files and records, and the names of the first of each kind."""

    def __init__(self, faults: Iterable[UnreadableError] = ()) -> None:
        self._counts: Counter[str] = Counter()
        self._named: dict[str, list[str]] = {}
        self._reasons: dict[str, str] = {}
        self.first: UnreadableError | None = None
        for fault in faults:
            self.add(fault)

    def __len__(self) -> int:
        return self._counts.total()

    def __contains__(self, kind: str) -> bool:
        return kind in self._counts

    def add(self, fault: UnreadableError) -> None:
        """Counts one fault."""
        self.first = self.first or fault
        self._count(fault.kind, 1, [fault.where], fault.reason)

    def update(self, record: Mapping[str, Any]) -> None:
        """Adds the counts of another `to_json`."""
        for kind, entry in record.items():
            self._count(kind, entry["number"], entry["named"], entry["reason"])

    def to_json(self) -> dict[str, dict[str, Any]]:
        """By kind: the number, the first names, and the reason of the first."""
        return {
            kind: {"number": self._counts[kind], "named": self._named[kind], "reason": self._reasons[kind]}
            for kind in FAULTS
            if kind in self._counts
        }

    @property
    def page(self) -> str | None:
        """The page about the faults, if one is about all of them."""
        pages = {PAGES.get(kind) for kind in self._counts}
        return pages.pop() if len(pages) == 1 else None

    def numbers(self) -> str:
        """The number of each kind, on one line."""
        return ", ".join(f"{self._counts[kind]:,} {FAULTS[kind]}" for kind in FAULTS if kind in self._counts)

    def line(self) -> str:
        """Numbers, first names and reasons of all kinds, on one line."""
        return "; ".join(self._told(kind) for kind in FAULTS if kind in self._counts)

    def cure(self) -> str:
        """What to do, as far as it is told of several at once."""
        if "field" not in self:
            return "fix them"
        return NAME_THE_FIELD if len(self._counts) == 1 else f"fix them ({NAME_THE_FIELD})"

    def _told(self, kind: str) -> str:
        first, *others = self._named[kind]
        number = self._counts[kind]
        more = number - len(self._named[kind])
        also = f", also {', '.join(others)}" if others else ""
        also += f" and {more:,} more" if more else ""
        return f"{number:,} {FAULTS[kind]}: {first} {self._reasons[kind]}{also}"

    def _count(self, kind: str, number: int, named: Iterable[str], reason: str) -> None:
        self._counts[kind] += number
        self._reasons.setdefault(kind, reason)
        known = self._named.setdefault(kind, [])
        known += [*named][: _NAMED - len(known)]


def kinds_line(kinds: Mapping[str, int]) -> str:
    """Counts of file suffixes, most frequent first, such as `2 .docx, 1 .pdf`."""
    by_number = sorted(kinds.items(), key=lambda one: (-one[1], one[0]))
    return ", ".join(f"{number:,} {kind}" for kind, number in by_number)


def unpackaged_line(kinds: Mapping[str, int]) -> str:
    """What is skipped for want of packages, and the command that installs them; empty for nothing."""
    if not kinds:
        return ""
    number = sum(kinds.values())
    files = "1 file is" if number == 1 else f"{number:,} files are"
    return f"{files} skipped that the extra documents reads ({kinds_line(kinds)}): {INSTALL}"


def numbers_of(codecs: Mapping[str, str]) -> dict[str, int]:
    """The number of files of each encoding, most frequent first, from the codec of each file."""
    return dict(Counter(NAMES.get(codec, codec) for codec in codecs.values()).most_common())


def codecs_line(codecs: Mapping[str, str]) -> str:
    """What was assumed of files that are not UTF-8, such as `2 files read as Shift-JIS, 1 as UTF-16: a.txt, ...`.

    Args:
        codecs: by the name of each file.
    """
    if not codecs:
        return ""
    (codec, number), *others = numbers_of(codecs).items()
    counts = [f"{number:,} {'file' if number == 1 else 'files'} read as {codec}"]
    counts += [f"{number:,} as {codec}" for codec, number in others]
    more = f" and {len(codecs) - _NAMED:,} more" if len(codecs) > _NAMED else ""
    return f"{', '.join(counts)}: {', '.join([*codecs][:_NAMED])}{more}; if this is wrong, convert them to UTF-8"
