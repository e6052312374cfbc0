"""Which windows each step has: numbered as a loop over all places numbers them, however many are trained at a time."""

from fractions import Fraction
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from skipwise.train.layout import SHORT, Layout


@st.composite
def layouts(draw: st.DrawFn) -> dict[str, Any]:
    num_steps = draw(st.integers(1, 12))
    begins = [0, *sorted(draw(st.sets(st.integers(1, 12), max_size=2)))]
    tokens = st.sampled_from([64, 128, 200, 512])
    at_a_time = draw(st.integers(1, 6))
    return {
        "stages": [(begin, draw(tokens)) for begin in begins if begin < num_steps],
        "num_steps": num_steps,
        "window_tokens": 64,
        "items_per_step": at_a_time * draw(st.integers(1, 4)),
        "items_at_a_time": at_a_time,
        "keep_tokens": draw(st.booleans()),
        "short_tokens": draw(st.sampled_from([None, 64, 128])),
        "short_share": draw(st.sampled_from([Fraction(1, 3), Fraction(7, 10), 0.34, 0.1])),
    }


@given(layouts())
def test_windows_are_numbered_as_they_come(how: dict[str, Any]) -> None:
    layout, counts, numbers = Layout(**how), {True: 0, False: 0}, dict[tuple[bool, int], int]()
    for place in range(len(layout)):
        if layout.taken(place) is not None:
            stage = layout.stage_of(place // layout.items_per_step)
            kind = stage == SHORT
            assert layout.number(place) == counts[kind]
            numbers[kind, counts[kind]] = stage
            counts[kind] += 1
    for place in range(len(layout)):
        assert layout.number_in_run(place) == counts[layout.stage_of(place // layout.items_per_step) == SHORT]
    stretches = {
        (stage == SHORT, number): stage for stage, begin, end in layout.stretches() for number in range(begin, end)
    }
    assert stretches == numbers


@given(layouts(), st.integers(1, 6))
def test_another_batch_size_trains_on_the_same_places(how: dict[str, Any], at_a_time: int) -> None:
    """A run that is resumed with other batches: `items_at_a_time` stays as begun."""
    one, other = Layout(**how), Layout(**how, evenly=True)
    trained = [[layout.taken(place) for place in range(len(layout))] for layout in (one, other)]
    assert [place for place in trained[0] if place is not None] == [place for place in trained[1] if place is not None]
