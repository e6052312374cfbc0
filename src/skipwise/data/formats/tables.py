"""Tables as text: a row on a line, its cells separated by ` | `; and CSV files.

No header is repeated and no ruling is drawn: of a long table these fill the context with what says nothing. Without a
column that is the text field, a table is one document, as the rows belong together.
"""

import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any, BinaryIO

from skipwise.data.formats.encodings import Encoding
from skipwise.data.formats.faults import Found, UnreadableError
from skipwise.data.formats.lines import text_lines
from skipwise.data.formats.records import DEFAULT_FIELD, no_field

# Not the wide space of Japanese, which is a character of the text.
_WHITE_SPACE = re.compile(r"[ \t\r\n\f\v]+")
_LARGEST_CELL = (1 << 31) - 1
# Lines that the delimiter is told by; Excel may say it in a line of its own.
_FIRST_LINES = 20
_SAID = re.compile(r"sep=(.)\s*")


def row_text(cells: Iterable[str]) -> str:
    """A row on one line; empty if all its cells are. Empty cells at its end are left out."""
    return " | ".join(_WHITE_SPACE.sub(" ", cell).strip(" ") for cell in cells).rstrip(" |")


def read_csv(
    file: BinaryIO, name: str, field: str, cut: bool = False, encoding: Encoding | None = None
) -> Iterator[Found]:
    """A CSV or TSV file: one document a row if a column is the text field, else one document."""
    csv.field_size_limit(_LARGEST_CELL)
    lines = _lines(file, name, cut, encoding)
    try:
        first = [*islice(lines, _FIRST_LINES)]
        said = _SAID.fullmatch(first[0]) if first else None
        rows = csv.reader(chain(first, lines), delimiter=said[1] if said else _delimiter(first, name))
        if said:
            next(rows)
        header = next(rows, [])
        if field in header:
            yield from _texts_of_rows(rows, header.index(field))
        elif field != DEFAULT_FIELD:
            yield 0, no_field(dict.fromkeys(header), field, name)
        else:
            yield 0, "\n".join(line for row in chain([header], rows) if (line := row_text(row)))
    except UnreadableError as error:
        yield 0, error
    except csv.Error as error:
        yield 0, UnreadableError("record", name, f"is not a table ({error})", "save it again as CSV")


def _texts_of_rows(rows: Any, column: int) -> Iterator[Found]:
    line = rows.line_num
    for row in rows:
        begin, line = line + 1, rows.line_num
        if row:
            yield begin, row[column] if column < len(row) else ""


def _lines(file: BinaryIO, name: str, cut: bool, encoding: Encoding | None) -> Iterator[str]:
    for _, line in text_lines(file, name, cut, encoding):
        if isinstance(line, UnreadableError):
            raise line
        yield line


def _delimiter(first: Sequence[str], name: str) -> str:
    """That of the header; below a title without any, the one that most of the first lines have equally often.

    Programs that write a decimal comma separate by semicolons; Excel's "Unicode text" by tabs.
    """
    if ".tsv" in name.lower():
        return "\t"
    plain = ["".join(line.split('"')[::2]) for line in first]

    def evidence(delimiter: str) -> tuple[int, int, int]:
        counts = Counter(filter(None, (line.count(delimiter) for line in plain)))
        lines, number = max(((lines, number) for number, lines in counts.items()), default=(0, 0))
        return plain[0].count(delimiter) if plain else 0, lines, number

    return max(",;\t|", key=evidence)
