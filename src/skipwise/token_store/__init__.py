"""Token store: a source's documents as tokens on disk, and views of those that a run trains on or is measured on.

files.py   all documents of a source, tokenized once, in flat memory-mapped files with checksums
writer.py  how they are written, and several put together
view.py    the documents of one part that are long enough, or joined: index arrays over those files
"""

from skipwise.token_store.files import FORMAT, TokenFiles
from skipwise.token_store.view import Counts, Part, TokenStore, View
from skipwise.token_store.writer import StoreWriter

__all__ = ["FORMAT", "Counts", "Part", "StoreWriter", "TokenFiles", "TokenStore", "View"]
