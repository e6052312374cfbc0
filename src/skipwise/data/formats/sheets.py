"""Spreadsheets: each sheet is its name and its rows."""

import io
import re
from datetime import timedelta
from typing import Any

from skipwise.data.formats.archives import is_old_office, opened_archive, password
from skipwise.data.formats.faults import UnreadableError
from skipwise.data.formats.tables import row_text

# The library holds all cells up to the last one that the file has, 32 bytes each.
_MOST_CELLS = 1 << 24
# The column and row of a cell; of a row with cells, which need not say their own, the row.
_PLACE = re.compile(
    rb"<(?:\w+:)?(?:c\s[^>]*?\br=[\"'](?P<column>[A-Z]{1,3})(?P<row>\d{1,7})"
    rb"|row\s[^>]*?\br=[\"'](?P<of_cells>\d{1,7})[^>]*(?<!/)>(?=\s*<(?:\w+:)?c\b))"
)
_DURATION = re.compile(r"PT(\d+)H(\d\d)M(\d\d)(?:[.,]\d+)?S")


def text_of_sheets(content: bytes, name: str) -> str:
    """The sheets of an Excel or OpenDocument file, separated by blank lines.

    Raises:
        UnreadableError: it is protected, or too large unpacked.
    """
    import python_calamine

    if not is_old_office(content, name):
        with opened_archive(content, name) as archive:
            # All is unpacked within bounds first, as the library has none.
            for _, part in archive.parts():
                _check_extent(part, name)
    try:
        book = python_calamine.CalamineWorkbook.from_filelike(io.BytesIO(content))
    except python_calamine.PasswordError:
        raise password(name) from None
    sheets: list[str] = []
    for sheet in book.sheets_metadata:
        if sheet.typ != python_calamine.SheetTypeEnum.WorkSheet:
            continue
        rows = book.get_sheet_by_name(sheet.name).to_python()
        lines = [line for row in rows if (line := row_text(map(_cell, row)))]
        if lines:
            sheets.append("\n".join([sheet.name, *lines]))
    return "\n\n".join(sheets)


def _check_extent(sheet: bytes, name: str) -> None:
    """Refuses an Excel sheet with a cell so far away that those before it would fill the memory."""
    columns, rows = {b"A"}, 1
    for place in _PLACE.finditer(sheet):
        columns.add(place["column"] or b"A")
        rows = max(rows, int(place["row"] or place["of_cells"]))
    cells = rows * max(map(_number, columns))
    if cells > _MOST_CELLS:
        reason = f"has a sheet of {cells:,} cells up to its last one, and {_MOST_CELLS:,} are read"
        raise UnreadableError("size", name, reason, "clear the cells far away from the others, or leave it out")


def _number(column: bytes) -> int:
    """The number of a column by its letters: 1 for A, 27 for AA."""
    number = 0
    for letter in column:
        number = number * 26 + letter - ord("A") + 1
    return number


def _cell(value: Any) -> str:
    """A value as a reader would write it: no `.0` after whole numbers, no midnight after dates, hours as `30:05:00`."""
    if isinstance(value, timedelta):
        minutes, seconds = divmod(round(value.total_seconds()), 60)
        return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
    if isinstance(value, str) and (duration := _DURATION.fullmatch(value)):
        return f"{int(duration[1])}:{duration[2]}:{duration[3]}"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else f"{value:.15g}"
    return str(value)
