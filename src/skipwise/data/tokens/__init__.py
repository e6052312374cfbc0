"""Tokenizing: texts to token ids as by the model's own tokenizer, except that texts cannot inject control tokens.

A control token spelled in a text, such as `<|im_end|>`, is read as text: it gets the ids of its characters. Only chat
templates write control tokens, and corpora with `data.control_tokens: tokens`.

engines.py     which tokens are control tokens, and an engine that finds none of them in a text
long_texts.py  tokenizing a long text in pieces, to the ids of the whole
texts.py       one text, or a chat by its template: every prompt with user text goes through here
documents.py   a corpus, in parallel threads
sentence_ends.py   which tokens end a sentence
chats.py       conversations of a corpus, with labels on the assistant's turns
"""

from skipwise.data.tokens.chats import ConversationEncoder, require_chat_template
from skipwise.data.tokens.documents import Encoder, Piece, tokenized
from skipwise.data.tokens.engines import Reading, require_fast
from skipwise.data.tokens.sentence_ends import ends_of_sentences
from skipwise.data.tokens.texts import TextEncoder, encoder_of

__all__ = [
    "ConversationEncoder",
    "Encoder",
    "Piece",
    "Reading",
    "TextEncoder",
    "encoder_of",
    "ends_of_sentences",
    "require_chat_template",
    "require_fast",
    "tokenized",
]
