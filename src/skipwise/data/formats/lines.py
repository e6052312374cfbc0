"""The lines of plain and compressed files."""

import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from skipwise.data.formats.encodings import Encoding
from skipwise.data.formats.faults import Found, UnreadableError, one_line

COMPRESSIONS = ("", ".gz", ".zst")


def text_lines(file: BinaryIO, name: str, cut: bool = False, encoding: Encoding | None = None) -> Iterator[Found]:
    """Lines of a plain, gzip or zstd file as text, counted from 1; for a line that cannot be decoded, its error.

    Args:
        file: the open file.
        name: its name, which tells how it is compressed.
        cut: whether it is a sample; its last line is dropped, since it may be incomplete.
        encoding: is told what the file is read as; or says it, if decided before.

    Raises:
        UnreadableError: the file breaks off.
    """
    return (encoding or Encoding()).lines(_raw_lines(file, name, cut), name, cut)


def _raw_lines(file: BinaryIO, name: str, cut: bool) -> Iterator[bytes]:
    """Lines of a plain, gzip or zstd file as bytes; a truncated compressed file is an error, not a short file.

    With `cut`, the last line is dropped, since it may be incomplete.
    """
    number = 0
    held: bytes | None = None
    try:
        with _decompressed(file, name, cut) as stream:
            for number, line in enumerate(stream, start=1):  # noqa: B007 - read below, when the stream fails
                if not cut:
                    yield line
                    continue
                if held is not None:
                    yield held
                held = line
    except (OSError, EOFError, zlib.error) as error:
        # A truncated gzip file ends in an EOFError; for zstd, Arrow raises only a general OSError.
        if cut and (isinstance(error, EOFError) or name.lower().endswith(".zst")):
            return
        raise UnreadableError(
            "broken", name, f"cannot be read past line {number} ({one_line(error)})", "fetch it again"
        ) from None


def _decompressed(file: BinaryIO, name: str, cut: bool) -> BinaryIO:
    match Path(name).suffix.lower():
        case ".gz":
            return gzip.open(file)  # type: ignore[return-value]
        case ".zst":
            import pyarrow

            # The zstandard package ends silently at a truncated frame. Arrow's stream raises, but loses the data of the
            # read in which it does, so a sample is read in small steps.
            at_a_time = 1 << 12 if cut else 1 << 20
            return io.BufferedReader(pyarrow.input_stream(file, compression="zstd"), at_a_time)  # type: ignore[arg-type]
        case _:
            return file
