"""Spreadsheets: each sheet is its name and its rows."""

import io
from typing import Any

from skipwise.data.formats.archives import opened_archive, password
from skipwise.data.formats.tables import row_text


def text_of_sheets(content: bytes, name: str) -> str:
    """The sheets of an Excel or OpenDocument file, separated by blank lines.

    Raises:
        UnreadableError: it is protected, or too large unpacked.
    """
    import python_calamine

    if not name.lower().endswith(".xls"):
        with opened_archive(content, name) as archive:
            archive.verify()
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


def _cell(value: Any) -> str:
    """A value as a reader would write it: no `.0` after whole numbers, no midnight after dates."""
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else f"{value:.15g}"
    return str(value)
