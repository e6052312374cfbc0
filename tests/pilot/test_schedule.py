"""How a pilot's time is split: the arithmetic beside plain loops, what is left out, and times that are too short."""

import dataclasses
import itertools
import time
from pathlib import Path
from typing import Any

import pytest

from skipwise.config import RunConfig
from skipwise.config.stages import run_stages
from skipwise.pilot.arms import Pacer
from skipwise.pilot.measures import LEAST_TRIALS, Costs, Measures, Wanted
from skipwise.pilot.preparing import training_seconds, windows_at_a_time
from skipwise.pilot.schedule import (
    LEAST_STEPS,
    RESERVE,
    SMALL_STEPS,
    TooShortError,
    Training,
    duration_label,
    least_seconds,
    longest_target,
    make_schedule,
    schedule_within,
)
from skipwise.pilot.state import PilotFolder
from skipwise.train.layout import Layout
from skipwise.window import Window

LENGTHS = (256, 512, 1024, 2048, 4096)
WANTED = Wanted(
    original=256, target=4096, texts=10, questions={"fact": LENGTHS, "continue": LENGTHS, "which_document": LENGTHS[1:]}
)
TRAINING = Training(seconds_of=lambda steps, batch: 0.1 * steps * batch, most_steps=1000, batches=[64, 32, 16, 8])


def costs(**changes: Any) -> Costs:
    """A pass takes a millisecond a token, a window a second a thousand tokens."""
    how: dict[str, Any] = {
        "passes": {256: 0.256},
        "pass_work": float,
        "token": 0.01,
        "windows": {256: 0.256},
        "window_work": float,
        "start": 5.0,
        "preflight": 2.0,
        "question": {256: 0.01},
    }
    return Costs(**(how | changes))


def test_what_was_not_measured_is_scaled_from_the_next_shorter_length() -> None:
    made = costs(passes={256: 1.0, 1024: 10.0}, pass_work=lambda tokens: tokens**2)
    assert [made.one_pass(tokens) for tokens in (128, 256, 512, 1024, 2048)] == [0.25, 1.0, 4.0, 10.0, 40.0]


def test_the_seconds_of_an_evaluation_are_those_of_its_passes() -> None:
    measures = Measures(
        texts=4,
        perplexity=(256, 4096),
        passkeys=(4096,),
        questions={"fact": (256,), "continue": (512,)},
        serving=(256,),
    )
    passes: list[int] = []  # Of one arm of each, by hand.
    passes += 3 * (4 * [256, 4096] + LEAST_TRIALS * [4096] + LEAST_TRIALS * [256] + 2 * LEAST_TRIALS * [512])
    passes += 2 * 4 * [256, 256]  # Regression: two models read each text, for two arms.
    passes += 4 * [256]  # A warm-up and three requests to one arm.
    decoded = 3 * (LEAST_TRIALS + 2 * LEAST_TRIALS) * 16 + 4 * 8
    parts = 3 * (2 + 1 + 1 + 1) + 2 + 1
    expected = sum(tokens / 1000 for tokens in passes) + 0.01 * decoded + 0.3 * parts
    assert measures.seconds(256, 4096, costs()) == pytest.approx(expected)


@pytest.mark.parametrize("changes", [{}, {"recipe": "diluted"}, {"short_steps": 0.25}, {"keep_tokens": False}])
@pytest.mark.parametrize(("steps", "batch"), [(30, 8), (31, 16), (7, 64)])
def test_training_takes_the_seconds_of_every_window_at_every_place(
    changes: dict[str, Any], steps: int, batch: int
) -> None:
    run = RunConfig.from_mapping({"model": "embedded", "target": 65536, "recipe": "growing", **changes})
    window = Window(train=1024, original=4096, target=65536)
    layout = Layout(
        stages=[(stage.begin, stage.window.train) for stage in run_stages(run, window, steps)],
        num_steps=steps,
        window_tokens=1024,
        items_per_step=batch,
        items_at_a_time=windows_at_a_time(1024, batch),
        keep_tokens=run.keep_tokens,
        short_tokens=4096 if run.short_steps else None,
        short_share=run.short_steps,
    )
    seconds = 0.0
    for place in range(steps * batch):
        if layout.taken(place) is not None:
            seconds += (layout.tokens_of(layout.stage_of(place // batch)) / 1024) ** 2
    made = costs(windows={1024: 1.0}, window_work=lambda tokens: tokens**2)
    assert training_seconds(run, window, made)(steps, batch) == pytest.approx(seconds)


@pytest.mark.parametrize("seconds", [0.0, 23.9, 24.0, 100.0, 639.0, 640.0, 641.0, 1e9])
def test_as_many_steps_are_trained_as_fit_with_the_largest_batch_that_leaves_a_hundred(seconds: float) -> None:
    steps, batch = TRAINING.fitting(seconds)
    fitting = {
        (n, size) for n, size in itertools.product(range(1, 1001), TRAINING.batches) if 0.1 * n * size <= seconds
    }
    largest = max((size for n, size in fitting if n == 100), default=8)
    most = max((n for n, size in fitting if size == largest), default=0)
    assert (steps, batch) == (max(LEAST_STEPS, most), largest)


@pytest.mark.parametrize("given", [300.0, 450.0, 600.0, 1800.0, 36000.0])
def test_everything_planned_fits_and_nothing_is_left_out_silently(given: float) -> None:
    if given < least_seconds(20.0, WANTED, costs(), TRAINING):
        with pytest.raises(TooShortError):
            make_schedule(given, 20.0, WANTED, costs(), TRAINING)
        return
    found = make_schedule(given, 20.0, WANTED, costs(), TRAINING)
    seconds = {name: each for name, each, _ in found.rows}
    assert sum(seconds.values()) == pytest.approx(given)
    assert seconds["reserve"] >= RESERVE * given - 1e-6
    assert found.measures.seconds(256, 4096, costs()) <= given
    # What is asked for in all, less what is measured, is named.
    said = " ".join(found.left_out)
    for name, measured in (("Passkeys", found.measures.passkeys), ("Perplexity", found.measures.perplexity)):
        for tokens, label in zip(LENGTHS, ("256", "512", "1k", "2k", "4k"), strict=True):
            sentence = next((one for one in found.left_out if one.startswith(f"{name} at")), "")
            assert (tokens in measured) != (label in sentence.replace(",", " ").split()), (name, label)
    for kind in WANTED.questions:
        assert kind in found.measures.questions or kind.replace("_", " ") in said
    assert found.measures.texts == 10 or f"instead of {found.measures.texts}" in said


def test_more_time_never_measures_or_trains_less() -> None:
    lists = [make_schedule(given, 20.0, WANTED, costs(), TRAINING) for given in (600.0, 1200.0, 4800.0, 90000.0)]
    for less, more in itertools.pairwise(lists):
        assert set(less.measures.perplexity) <= set(more.measures.perplexity)
        assert less.measures.texts <= more.measures.texts
        assert less.steps * less.batch <= more.steps * more.batch
    assert lists[-1].left_out == []
    assert (lists[-1].steps, lists[-1].batch) == (1000, 64)


def test_the_least_time_is_enough_and_less_is_not() -> None:
    least = least_seconds(20.0, WANTED, costs(), TRAINING)
    found = make_schedule(least + 1e-6, 20.0, WANTED, costs(), TRAINING)
    assert (found.steps, found.batch) == (LEAST_STEPS, 8)
    assert found.measures.perplexity == (256, 4096)
    assert found.measures.questions == {"fact": (256, 4096)}
    with pytest.raises(TooShortError, match=f"the least is {duration_label(least)}"):
        make_schedule(least - 1e-6, 20.0, WANTED, costs(), TRAINING)


def test_a_time_that_is_too_short_does_for_a_shorter_target() -> None:
    at = {
        tokens: least_seconds(0.0, dataclasses.replace(WANTED, target=tokens), costs(), TRAINING) for tokens in LENGTHS
    }
    assert longest_target(at[1024], 0.0, WANTED, costs(), TRAINING) == 1024
    assert longest_target(at[1024] - 1, 0.0, WANTED, costs(), TRAINING) == 512
    assert longest_target(1.0, 0.0, WANTED, costs(), TRAINING) is None


def test_passkeys_stand_in_for_questions_that_cannot_be_made() -> None:
    least = dataclasses.replace(WANTED, questions={"fact": (256, 512)}).least()
    assert (least.questions, least.passkeys) == ({"fact": (256,)}, (256, 4096))


def test_what_must_be_measured_comes_first() -> None:
    measures = make_schedule(36000.0, 20.0, WANTED, costs(), TRAINING).measures
    parts = WANTED.parts(measures, costs())
    must = [part.name for part in parts if not part.optional]
    assert must == [part.name for part in parts[: len(must)]]
    assert sorted(must) == sorted(
        [
            *(
                f"{what} at {at}"
                for what in ("questions (fact)", "perplexity of 10 texts", "requests")
                for at in ("256", "4k")
            ),
            "short text beside the base at 256",
        ]
    )


@pytest.mark.parametrize(
    ("seconds", "label"), [(59.2, "60s"), (90.0, "90s"), (91.0, "2m"), (3600.0, "1h"), (9601.0, "2h41m")]
)
def test_durations_are_rounded_up(seconds: float, label: str) -> None:
    assert duration_label(seconds) == label


SMALL = dataclasses.replace(WANTED, small=True, original=4096, target=16384, texts=4)
SMALL_TRAINING = Training(seconds_of=TRAINING.seconds_of, most_steps=1000, batches=[8, 4], least_steps=SMALL_STEPS)


def training_of(small: bool) -> Training:
    return SMALL_TRAINING if small else TRAINING


def test_the_seconds_of_a_small_pilot_are_those_of_its_passes() -> None:
    passes = 3 * [2048, 16384]  # One text each, of three arms.
    passes += 2 * 4 * [2048, 2048]  # Four short texts by two models, for two arms.
    passes += 4 * [2048]  # A warm-up and three requests.
    parts = 3 * 2 + 2 + 1
    expected = sum(passes) / 1000 + 0.01 * 4 * 8 + 0.3 * parts
    assert SMALL.least().seconds(4096, 16384, costs()) == pytest.approx(expected)
    # Starts of four processes, preflight, saving, two validations of one short text, the page; ten steps of four.
    expected += 4 * 5.0 + 2.0 + 2.5 + 2 * 2.048 + 10.0 + 0.1 * 10 * 4
    assert least_seconds(0.0, SMALL, costs(), SMALL_TRAINING) == pytest.approx(expected / 0.85)


def test_a_time_that_is_too_short_to_decide_does_for_a_small_pilot() -> None:
    wanted = dataclasses.replace(SMALL, small=False)
    small, full = (
        least_seconds(20.0, dataclasses.replace(wanted, small=one), costs(), training_of(one)) for one in (True, False)
    )
    assert small < full / 4
    with pytest.raises(TooShortError):
        schedule_within(small - 1e-6, 20.0, wanted, costs(), training_of)
    least = schedule_within(small + 1e-6, 20.0, wanted, costs(), training_of)
    assert (least.small, least.to_decide) == (True, pytest.approx(full))
    assert (least.measures, least.steps, least.batch) == (SMALL.least(), SMALL_STEPS, 4)
    enough = schedule_within(full + 1e-6, 20.0, wanted, costs(), training_of)
    assert (enough.small, enough.measures, enough.steps) == (False, wanted.least(), LEAST_STEPS)


def test_what_is_added_to_a_small_pilot_or_named() -> None:
    added = {"requests at 16k": 16.4, "2 texts": 3 * 18.4, "passkeys": 3 * 5 * 20.5, "4 texts": 3 * 41.0}
    given = 2 * (least_seconds(20.0, SMALL, costs(), SMALL_TRAINING) + added["requests at 16k"] + added["2 texts"])
    found = make_schedule(given, 20.0, SMALL, costs(), SMALL_TRAINING)
    assert (found.measures.texts, found.measures.serving, found.measures.passkeys) == (2, (2048, 16384), ())
    assert found.measures.perplexity == (2048, 4096, 16384)
    assert found.left_out == [
        "5 passkeys at 4k, 16k tokens did not fit into the time.",
        "Perplexity of 4 texts instead of 2 did not fit into the time.",
    ]
    more = make_schedule(given + 2 * sum(added.values()), 20.0, SMALL, costs(), SMALL_TRAINING)
    assert (more.measures.passkeys, more.measures.texts, more.left_out) == ((4096, 16384), 4, [])
    assert {part.task["trials"] for part in SMALL.parts(more.measures, costs()) if "trials" in part.task} == {5}


@pytest.mark.parametrize(("took", "factor"), [(2.0, 2.0), (1.0, 1.0), (0.8, 0.8), (0.1, 0.5)])
def test_steps_follow_the_speed_of_the_arms_before_training(tmp_path: Path, took: float, factor: float) -> None:
    found = make_schedule(2000.0, 0.0, WANTED, costs(), TRAINING)
    folder = PilotFolder(tmp_path, time.time())
    pacer = Pacer(
        folder=folder, schedule=found, wanted=WANTED, costs=costs(), training=TRAINING, base="m", tell=lambda _: None
    )
    # Two starts; what base and interpolation only are asked.
    parts = WANTED.parts(found.measures, costs())
    planned = 10.0 + sum(part.seconds * sum(part.arms >= arms for arms in (3, 2)) for part in parts)
    folder.kept["marks"] = {"base": 100.0, "extended": 100.0 + took * planned}
    left, after = 1500.0, sum(part.seconds for part in parts)
    fixed = 2 * 5.0 + 2.0 + 2.5 + 8 * 0.256  # Starts, preflight, saving, validation.
    # What comes after training is as fast as what came before; training itself is never faster than measured.
    seconds = (left - 0.15 * 0.75 * 2000 - 10.0 - factor * (after + fixed)) / max(1.0, factor)
    most = int(seconds / (0.1 * found.batch))
    assert pacer._steps(left, parts) == max(LEAST_STEPS, min(most, 1000))
