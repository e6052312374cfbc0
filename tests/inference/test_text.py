from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizer_kinds import tokenizer_of_kind
from transformers import AutoTokenizer

from skipwise.inference.text import TextStream


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_checkpoint)


def pieces(tokenizer: Any, text: str, *stop: str) -> list[str]:
    stream = TextStream(tokenizer, stop)
    given = [stream.add(token) for token in tokenizer(text)["input_ids"]]
    return [*given, stream.finish()]


@given(text=st.text(max_size=30), stop=st.lists(st.text(min_size=1, max_size=4), max_size=3))
def test_pieces_make_the_text_up_to_the_first_stop(tokenizer: Any, text: str, stop: list[str]) -> None:
    # One token a byte: letters come in up to four.
    text = text.encode("utf-8", "ignore").decode()
    found = [text.find(one) for one in stop if one in text]
    # A stop text that is complete sooner ends the output, though a longer one may have begun before it.
    ends = [place + len(one) for one in stop if (place := text.find(one)) >= 0]
    given = "".join(pieces(tokenizer, text, *stop))
    if not found:
        assert given == text
    else:
        assert text.startswith(given)
        assert len(given) <= min(ends)
        assert not any(one in given for one in stop)


spellings = cache(tokenizer_of_kind)


def streamed(tokenizer: Any, ids: list[int]) -> str:
    stream = TextStream(tokenizer)
    return "".join(stream.add(token) for token in ids) + stream.finish()


@pytest.mark.parametrize("kind", ["qwen", "unigram"])
@given(places=st.lists(st.integers(0, 10**6), max_size=30))
def test_pieces_of_any_tokens_make_what_they_spell_together(kind: str, places: list[int]) -> None:
    # Tokens as a model may write them: spaces at their beginning, bytes of letters that never come to an end.
    ids = [place % len(spellings(kind)) for place in places]
    assert streamed(spellings(kind), ids) == spellings(kind).decode(ids, skip_special_tokens=True)


@given(text=st.text(max_size=20))
def test_letters_in_bytes_between_pieces_with_spaces(text: str) -> None:
    tokenizer = spellings("llama2")
    ids = tokenizer(text.encode("utf-8", "ignore").decode(), add_special_tokens=False)["input_ids"]
    assert streamed(tokenizer, ids) == tokenizer.decode(ids, skip_special_tokens=True)


def test_a_byte_that_spoils_those_before_is_no_error() -> None:
    """`DecodeStream` of the tokenizers library gives nothing more from here on; what was given stays as it was."""
    tokenizer = spellings("llama2")
    vocabulary = tokenizer.get_vocab()
    ids = [vocabulary[token] for token in ("<0x48>", "<0x88>", "<0x22>")]
    assert tokenizer.decode(ids) == "\ufffd" * 3
    assert streamed(tokenizer, ids) == "H" + "\ufffd" * 2


def test_letters_wait_until_they_are_whole(tokenizer: Any) -> None:
    assert pieces(tokenizer, "a\N{EURO SIGN}b") == ["a", "", "", "\N{EURO SIGN}", "b", ""]


def test_what_may_become_a_stop_text_waits(tokenizer: Any) -> None:
    assert pieces(tokenizer, "xENy", "END") == ["x", "", "", "ENy", ""]
    assert pieces(tokenizer, "xEND!", "END") == ["x", "", "", "", "", ""]
    assert pieces(tokenizer, "xEN", "END") == ["x", "", "", "EN"]


def test_half_a_letter_at_the_end_is_shown_as_what_it_is(tokenizer: Any) -> None:
    stream = TextStream(tokenizer)
    first, *_ = tokenizer("\N{EURO SIGN}")["input_ids"]
    assert (stream.add(first), stream.finish()) == ("", "\ufffd")
