"""Documents: texts with names, from wherever users keep them."""

import hashlib
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Folders of the standard library that are not everywhere, not text of its own, or deliberately malformed.
_STDLIB_SKIPPED = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test", "lib2to3", "encodings"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One text and the name it is known by (a path, or a path with a line number)."""

    name: str
    text: str


def is_held_out(name: str, share: float = 0.1) -> bool:
    """Whether a document of this name is kept out of training; depends on the name alone."""
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < share


def stdlib_documents() -> Iterator[Document]:
    """The Python sources of the running interpreter's standard library, in a fixed order: real long text on every machine."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if _STDLIB_SKIPPED.isdisjoint(relative.parts):
            yield Document(name=relative.as_posix(), text=path.read_text(encoding="utf-8"))
