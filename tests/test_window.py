import dataclasses
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skipwise.errors import ConfigError, PositionError
from skipwise.window import Window, length_label, parse_length


def test_factor_is_target_over_original_and_not_over_train() -> None:
    assert Window(train=512, original=2048, target=32768).factor == 16.0


def test_a_training_window_above_the_original_is_allowed() -> None:
    assert Window(train=8192, original=2048, target=32768).train == 8192


@pytest.mark.parametrize(
    ("train", "original", "target"),
    [(1, 2, 4), (2, 1, 4), (5, 2, 4), (2, 5, 4), (0, 0, 0), (-2, 2, 4)],
)
def test_lengths_out_of_order_are_refused_with_their_values(train: int, original: int, target: int) -> None:
    with pytest.raises(PositionError, match=rf"train={train}, original={original}, target={target}"):
        Window(train=train, original=original, target=target)


@pytest.mark.parametrize("value", [2.0, "2", True, None])
def test_a_length_that_is_no_whole_number_is_refused(value: object) -> None:
    with pytest.raises(PositionError, match=re.escape(f"window.train is {value!r}")):
        Window(train=value, original=2, target=4)  # pyright: ignore[reportArgumentType]


def test_windows_are_values() -> None:
    window = Window(train=2, original=4, target=8)
    assert window == Window(train=2, original=4, target=8)
    assert len({window, Window(train=2, original=4, target=8)}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        window.train = 3  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("131072", 131072),
        ("32k", 32768),
        ("32K", 32768),
        (" 2 k ", 2048),
        ("1.5k", 1536),
        ("1M", 1048576),
        ("0.5m", 524288),
        ("1_000", 1000),
        ("131,072", 131072),
        (4096, 4096),
    ],
)
def test_lengths_as_people_write_them(text: str | int, tokens: int) -> None:
    assert parse_length(text) == tokens


@pytest.mark.parametrize(
    "text", ["", "k", "0", "-1", "1.5", "0.0001k", "32kb", "1e3", "inf", "nan", "²", "3 2 k", "0x10"]
)
def test_other_texts_are_refused_with_what_was_given(text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(repr(text))):
        parse_length(text)


@given(st.integers(min_value=1, max_value=2**40))
def test_every_positive_number_reads_as_itself_and_in_thousands(tokens: int) -> None:
    assert parse_length(str(tokens)) == tokens
    assert parse_length(f"{tokens}k") == tokens * 1024
    assert parse_length(f"{tokens:_}") == tokens


@given(st.integers(1, 1 << 24))
def test_a_length_is_written_so_that_it_reads_back(length: int) -> None:
    assert parse_length(length_label(length)) == length


@pytest.mark.parametrize(
    ("length", "text"), [(256, "256"), (1536, "1.5k"), (4096, "4k"), (1000, "1000"), (1 << 20, "1M")]
)
def test_lengths_are_written_as_people_write_them(length: int, text: str) -> None:
    assert length_label(length) == text
