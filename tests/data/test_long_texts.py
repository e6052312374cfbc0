"""Long texts in pieces: the ids of the whole, for every kind of tokenizer, in bounded memory."""

import logging
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest
from corpora import build_store
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import byte_tokenizer
from tokenizer_kinds import END, KINDS, THINK, tokenizer_of_kind

from skipwise import bars
from skipwise.data.documents import threads
from skipwise.data.tokens import Encoder, TextEncoder, texts
from skipwise.data.tokens.long_texts import encode_in_pieces

SIZE, CONTEXT = 300, 64
TEXT = "\n".join(topics.values())[:20_000]
TOKENIZERS = {kind: tokenizer_of_kind(kind) for kind in KINDS} | {"byte": byte_tokenizer()}
ANYWHERE = {kind: kind not in ("unigram", "wordpiece") for kind in TOKENIZERS}

FRAGMENTS = st.sampled_from(
    [
        *("the ", "river ", "is wide. ", "def f(x):\n    return x\n", "Don't ", "HTTPServer ", "naïve ", "3.14159 "),
        *("\n", "\n\n", "  ", "   \n", " \n ", "\t", "\r\n", "\u3000", "a", "aaaa", "1", "12345", "_", "-", "//"),
        *("日本語", "。", "中文的", "a\u0301", "e\u0301", "🙂", "ﬁ", "'s", "'S", END, THINK, "</s>", "\u0600"),
    ]
)
RUNS = st.tuples(FRAGMENTS, st.sampled_from([1, 1, 1, 2, 3, 40, 400])).map(lambda run: run[0] * run[1])
TEXTS = st.lists(RUNS, min_size=10, max_size=80).map("".join)


def whole(kind: str, text: str) -> list[int]:
    return TOKENIZERS[kind].backend_tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=40)
@given(text=TEXTS)
def test_pieces_have_the_ids_of_the_whole(kind: str, text: str) -> None:
    done: list[int] = []
    how = {"anywhere": ANYWHERE[kind], "size": SIZE, "context": CONTEXT}
    ids = encode_in_pieces(text, lambda piece: whole(kind, piece), note=done.append, **how)
    assert ids.tolist() == whole(kind, text)
    assert sum(done) == len(text)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_no_piece_is_much_longer_than_asked(kind: str) -> None:
    text, sizes = TEXT[:12_000], list[int]()

    def encode(piece: str) -> list[int]:
        sizes.append(len(piece))
        return whole(kind, piece)

    ids = encode_in_pieces(text, encode, anywhere=ANYWHERE[kind], size=2000, context=200)
    assert ids.tolist() == whole(kind, text)
    assert max(sizes) <= 1.5 * 2000 + 200
    # Pieces of words (Llama 2, Gemma) take most tries.
    assert sum(sizes) < 4 * len(text), "a cut takes few tries"


def test_letters_whose_bytes_share_tokens_are_cut_where_they_do_not(caplog: pytest.LogCaptureFixture) -> None:
    text = "日本語のテキスト" * 500
    own = whole("qwen", text)
    assert all(whole("qwen", text[:end]) != own[: len(whole("qwen", text[:end]))] for end in range(1, 8))
    with caplog.at_level(logging.WARNING, "skipwise"):
        ids = encode_in_pieces(text, lambda piece: whole("qwen", piece), anywhere=True, size=256, context=CONTEXT)
    assert ids.tolist() == own
    assert not caplog.records


def test_a_text_without_a_place_to_cut_is_read_at_once_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    text = "日本語" * 1000
    with caplog.at_level(logging.WARNING, "skipwise"):
        ids = encode_in_pieces(text, lambda piece: whole("unigram", piece), anywhere=False, size=SIZE, context=CONTEXT)
    assert ids.tolist() == whole("unigram", text)
    assert ["3,000 characters" in record.message for record in caplog.records] == [True]


@pytest.mark.parametrize("kind", ["llama2", "qwen"])
def test_long_documents_and_prompts_are_read_in_pieces(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = TEXT[:12_000]
    tokenizer = TOKENIZERS[kind]
    expected = tokenizer.encode(text, split_special_tokens=True)
    tokenizer.encode("x")
    monkeypatch.setattr(texts, "PIECE", 1500)
    seen: list[int] = []
    original = texts.encode_in_pieces
    monkeypatch.setattr(texts, "encode_in_pieces", lambda *a, **how: seen.append(how["size"]) or original(*a, **how))
    assert TextEncoder(tokenizer).encode(text, add_special_tokens=True) == expected
    encoder = Encoder(tokenizer)
    short, long, again = encoder.encode(["x y", text, "x y"])
    assert (short.tolist(), long.tolist()) == (again.tolist(), expected)
    assert long.dtype == np.uint16
    assert encoder.num_characters == len(text) + 6
    assert seen == [1500, 1500]


def test_the_bar_moves_within_a_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(texts, "PIECE", 2000)
    monkeypatch.setattr(threads, "_LOOK_SECONDS", 0.0)
    monkeypatch.setattr(bars, "LINE_SECONDS", 0.0)
    (tmp_path / "one.txt").write_text("a word and another. " * 20_000, encoding="utf-8")
    build_store(tmp_path / "one.txt", byte_tokenizer(), min_tokens=2, cache_dir=tmp_path / "cache")
    shown = {line.split("%")[0].split()[-1] for line in capfd.readouterr().err.splitlines() if "%" in line}
    assert "100" in shown
    assert len(shown & {str(share) for share in range(1, 100)}) >= 2
