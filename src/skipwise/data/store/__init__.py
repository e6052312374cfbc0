"""Token store: a source's documents as tokens on disk, and views of those that a run trains on or is measured on.

files.py     all documents of a source, tokenized once, in flat memory-mapped files with checksums
writer.py    how they are written, and several put together
held_out.py  the end of a document, where whole documents do not make up a held-out part
view.py      the documents of one part that are long enough, or joined: index arrays over those files
"""

from skipwise.data.store.files import FORMAT, TokenFiles
from skipwise.data.store.held_out import HeldOutEnd, choose_held_out_end
from skipwise.data.store.view import Counts, Part, TokenStore, View
from skipwise.data.store.writer import StoreWriter

__all__ = [
    "FORMAT",
    "Counts",
    "HeldOutEnd",
    "Part",
    "StoreWriter",
    "TokenFiles",
    "TokenStore",
    "View",
    "choose_held_out_end",
]
