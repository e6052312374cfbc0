"""Zip archives as documents are: their size is bounded before anything in them is parsed."""

import io
import zipfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from skipwise.data.formats.faults import UnreadableError, one_line

# Bytes of the parts that are read. Images are no such parts.
_UNPACKED_BYTES = 512 << 20
_OLD_OFFICE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"


class Archive:
    """The parts of a zip archive by name, each as bytes.

    Args:
        archive: the open archive.
        name: its file, for messages.
    """

    def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
        self._archive, self._name, self._left = archive, name, _UNPACKED_BYTES
        self.names: Collection[str] = archive.NameToInfo.keys()

    def read(self, part: str) -> bytes:
        """The content of a part.

        Raises:
            UnreadableError: it is missing, damaged or encrypted, or all parts read so far are too large together.
        """
        try:
            info = self._archive.getinfo(part)
        except KeyError:
            raise UnreadableError("broken", self._name, f"has no part {part!r}", "save it again") from None
        if info.flag_bits & 1:
            raise password(self._name)
        # Not read past this size, whatever the archive holds.
        self._left -= info.file_size
        if self._left < 0:
            size = sum(one.file_size for one in self._archive.infolist()) / 1e6
            reason = f"unpacks to {size:,.0f} MB, and of one file {_UNPACKED_BYTES / 1e6:,.0f} MB are read"
            raise UnreadableError("size", self._name, reason, "split it, or leave it out")
        return self._archive.read(info)

    def parts(self) -> Iterator[tuple[str, bytes]]:
        """Name and content of all parts but images; raises as `read`."""
        for part in self.names:
            if "/media/" not in part and not part.startswith(("Pictures/", "Thumbnails/")):
                yield part, self.read(part)


@contextmanager
def opened_archive(content: bytes, name: str) -> Iterator[Archive]:
    """Context with the parts of a document.

    Raises:
        UnreadableError: it is not such an archive, or a part is damaged.
    """
    if is_old_office(content, name):
        reason = "is in the format of Office before 2007, whatever its name"
        raise UnreadableError("broken", name, reason, "save it in the newer format")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            yield Archive(archive, name)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, EOFError, OSError) as error:
        reason = f"is damaged or incomplete ({one_line(error)})"
        raise UnreadableError("broken", name, reason, "save it again, or leave it out") from None


def is_old_office(content: bytes, name: str) -> bool:
    """Whether a document is in the format of Office before 2007, which also keeps encrypted newer ones.

    Raises:
        UnreadableError: it is encrypted.
    """
    if not content.startswith(_OLD_OFFICE):
        return False
    if "EncryptedPackage".encode("utf-16-le") in content:
        raise password(name)
    return True


def password(name: str) -> UnreadableError:
    """The error of a file that is protected."""
    return UnreadableError("password", name, "is protected by a password", "save it without one, or leave it out")
