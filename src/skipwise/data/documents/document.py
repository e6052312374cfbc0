"""A document: a text with a name, and whether it is held out of training."""

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One text and the name it is known by.

    Attributes:
        name: a path, or a path with a line number, from where the source was given: how it is written decides it.
        text: what it says.
        is_canonical: whether the name is the same however the source is written, as in the standard library.
    """

    name: str
    text: str
    is_canonical: bool = False

    @property
    def identity(self) -> str:
        """What tells the document from others wherever it lies: its text, or a name that is canonical.

        By text a document is the same one in a folder, in a part of it, and under another name. The standard library
        goes by its modules' names, because these last from one version of Python to the next and most texts do not.
        """
        return self.name if self.is_canonical else self.text.strip()


def is_held_out(identity: str, share: float = 0.1) -> bool:
    """Whether the document of this identity is kept out of training; who is at one share also is at any larger one."""
    return split_point(identity) / 2**64 < share


def split_point(identity: str) -> int:
    """Where the document of this identity stands in [0, 2**64): below `share * 2**64` it is held out."""
    return int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "big")
