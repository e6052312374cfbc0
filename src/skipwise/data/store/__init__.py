"""Token store: a source's documents as token ids on disk, and views of the documents of one split.

files.py     all documents of a source, tokenized once, in flat memory-mapped files with checksums
writer.py    writing token files, and concatenating several
held_out.py  the held-out end of a document, for corpora with too few held-out documents
numbers.py   sets of document numbers in one bit each
view.py      the documents of one split that are long enough, or joined
"""

from skipwise.data.store.files import FORMAT, Lengths, TokenFiles
from skipwise.data.store.held_out import HeldOutEnd, choose_held_out_end
from skipwise.data.store.view import Counts, Part, TokenStore, View, count_documents
from skipwise.data.store.writer import StoreWriter

__all__ = [
    "FORMAT",
    "Counts",
    "HeldOutEnd",
    "Lengths",
    "Part",
    "StoreWriter",
    "TokenFiles",
    "TokenStore",
    "View",
    "choose_held_out_end",
    "count_documents",
]
