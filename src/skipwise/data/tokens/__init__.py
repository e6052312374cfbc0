"""Tokenizing: texts to ids, exactly as the model's own tokenizer would, but for what a text must not do.

A text that spells a control token, such as `<|im_end|>`, is text: it gets the ids of the letters that it is written in.
Only a chat template, and a corpus that is said to mean them, write control tokens.

engines.py     which tokens control, and a tokenizer's engine that finds none of them in a text
long_texts.py  a long text in pieces, to the ids of the whole
texts.py       one text, or a chat by its template: every prompt that holds what a user wrote goes through here
documents.py   a corpus, in parallel threads
"""

from skipwise.data.tokens.documents import Encoder, tokenized
from skipwise.data.tokens.engines import Reading, require_fast
from skipwise.data.tokens.texts import TextEncoder, encoder_of

__all__ = ["Encoder", "Reading", "TextEncoder", "encoder_of", "require_fast", "tokenized"]
