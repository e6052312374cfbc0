"""A document: a text with a name, and whether it is held out of training."""

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One text and its name.

    Attributes:
        name: path relative to the source, with a line number where a file holds several documents. It depends on how
            the source was written.
        text: its content.
        is_canonical: whether the name does not depend on how the source was written, as in the standard library.
    """

    name: str
    text: str
    is_canonical: bool = False

    @property
    def identity(self) -> str:
        """What identifies the document wherever it is stored: its text, or its name if that is canonical.

        Identity by text is the same in a folder, in a part of that folder and under another name. Modules of the
        standard library are identified by name, because names last from one version of Python to the next and most
        texts do not.
        """
        return self.name if self.is_canonical else self.text.strip()


def is_held_out(identity: str, share: float = 0.1) -> bool:
    """Whether the document is held out of training. Monotone: held out at 0.1 implies held out at 0.2."""
    return split_point(identity) / 2**64 < share


def split_point(identity: str) -> int:
    """Hash of a document's identity in [0, 2**64). Documents below `share * 2**64` are held out."""
    return int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "big")
