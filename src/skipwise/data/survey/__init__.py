"""Survey: what a corpus is made of, before anything is trained on it.

    documents -> measures of each, in threads -> lengths of all, and a sample by content -> facts

Memory is about 45 bytes for each document, and at most 300 MB for samples.

reading.py   one pass over the documents
sketches.py  near-duplicates by MinHash
facts.py     what is reported
"""

from skipwise.data.survey.facts import Facts, find_facts
from skipwise.data.survey.reading import Surveyed, estimated_tokens, survey

__all__ = ["Facts", "Surveyed", "estimated_tokens", "find_facts", "survey"]
