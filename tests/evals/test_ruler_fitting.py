"""The search for the size that fills a length, against trying every size."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skipwise.errors import ConfigError
from skipwise.evals.ruler.task import TOLERANCE, Draft, PromptEncoder, filler_lines, filler_words, fit_length

from .ruler_tokenizer import ChatTokenizer, PieceTokenizer


class CountingEncoder(PromptEncoder):
    """Counts the prompts it was given."""

    def __init__(self, tokenizer: PieceTokenizer) -> None:
        super().__init__(tokenizer)
        self.num_encoded = 0

    def encode(self, draft: Draft):
        self.num_encoded += 1
        return super().encode(draft)


def draft_of(units: list[str], filler_after: bool = True):
    """Prompts that begin with so many of the units."""

    def draft(num_units: int, num_filler_words: int) -> Draft:
        filler = filler_words(num_filler_words) if filler_after else ""
        return Draft(request=" ".join(["Ask", *units[:num_units], filler]), answer_prefix="So", references=["x"])

    return draft


def fitted(draft, length: int, *, max_new_tokens: int = 8) -> tuple[int, CountingEncoder]:
    encoder = CountingEncoder(PieceTokenizer())
    found = fit_length(draft, encoder, length, max_new_tokens=max_new_tokens, task="a task")
    return len(found.prompt_ids) + max_new_tokens, encoder


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(600, 3000))
def test_any_units_fill_the_length_and_never_more(sizes: list[int], length: int) -> None:
    units = ["abcd " * (sizes[place % len(sizes)] - 1) + "abcd" for place in range(3000)]
    total, _ = fitted(draft_of(units), length)
    assert length * (1 - TOLERANCE) <= total <= length


@pytest.mark.parametrize("length", [700, 5000, 40000])
def test_it_takes_few_tokenizations(length: int) -> None:
    rng = np.random.default_rng(0)
    units = ["abcd" * int(size) for size in rng.integers(1, 6, size=40000)]
    total, encoder = fitted(draft_of(units), length)
    assert length * (1 - TOLERANCE) <= total <= length
    assert encoder.num_encoded <= 7


def test_units_whose_tokens_jump_are_still_never_overfilled() -> None:
    """A merge over the boundary may make a longer text shorter; what is returned was measured."""
    units = ["abcdefgh" if place % 7 else "z " * 30 + "z" for place in range(4000)]
    for length in range(400, 460, 7):
        total, _ = fitted(draft_of(units), length)
        assert length * (1 - TOLERANCE) <= total <= length


def test_what_runs_out_is_topped_up_with_filler() -> None:
    total, _ = fitted(draft_of(["abcd"] * 20), 1000)
    assert 980 <= total <= 1000
    alone, _ = fitted(draft_of(["abcd"] * 20, filler_after=False), 1000)
    assert alone < 40


def test_a_prompt_that_cannot_fit_is_refused_with_the_numbers() -> None:
    with pytest.raises(
        ConfigError, match=r"a task length is 9 tokens; its smallest prompt takes 3 and the answer 8.*11"
    ):
        fitted(draft_of(["abcd"]), 9)
    assert fitted(draft_of(["abcd"]), 11)[0] == 11


def test_filler_by_lines_is_the_filler_by_words() -> None:
    for count in (0, 1, 19, 20, 21, 22, 60, 61):
        assert " ".join(filler_lines(count)) == filler_words(count)
        assert len(filler_words(count).split()) == count
    assert len(set(filler_lines(60))) == 1


def test_a_chat_puts_the_request_into_the_users_turn_and_the_prefix_after_the_header() -> None:
    tokenizer = ChatTokenizer()
    draft = Draft(request="What is it?", answer_prefix="It is", references=["five"])
    chat = PromptEncoder(tokenizer, chat=True).encode(draft)
    assert tokenizer.decode(chat.prompt_ids) == "<user>What is it?</user><assistant>It is"
    plain = PromptEncoder(tokenizer, bos_ids=[0]).encode(draft)
    assert plain.prompt_ids[0] == 0
    assert tokenizer.decode(plain.prompt_ids) == "<s>What is it? It is"
    with pytest.raises(ConfigError, match="no chat template"):
        PromptEncoder(PieceTokenizer(), chat=True)


def test_answer_ids_are_what_follows_the_prefix_or_nothing() -> None:
    tokenizer = PieceTokenizer()
    encoder = PromptEncoder(tokenizer)
    draft = Draft(request="Ask", answer_prefix="It is", references=["12345"])
    answer = encoder.answer_ids(draft, 8)
    assert answer is not None
    assert tokenizer.decode(answer) == " 12345"
    assert encoder.answer_ids(draft, 4) is None

    class Merging(PieceTokenizer):
        """Writes the prefix's end and the answer's beginning as one token."""

        def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
            return [self._id(text)]

    assert PromptEncoder(Merging()).answer_ids(draft, 8) is None
