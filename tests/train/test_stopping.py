"""A stop that is asked for while a run validates: at once, with what is trained saved, and nothing lost by it."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_runs import STEPS, assert_equal_weights, run

from skipwise.evals.tasks import perplexity
from skipwise.train.progress import ValidationCost
from skipwise.train.trainer import SkipwiseTrainer

# How a run that validates at steps 0, 2 and 4 scores two documents at lengths of 64, 128 and 256 tokens each time.
TEXTS = 6
RUNS: dict[str, dict[str, Any]] = {
    "full": {"training": {"gradient_accumulation_steps": 1}},
    "low-rank, with dropout": {"tuning": {"kind": "lora", "dropout": 0.2}},
}

pytestmark = pytest.mark.usefixtures("sound_model")


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """`texts` counts those that are scored; the process gets a Ctrl-C within that numbered `stop_in`."""
    seen, own = SimpleNamespace(texts=0, stop_in=None), perplexity.token_nlls

    def token_nlls(*arguments: Any, **keywords: Any) -> torch.Tensor:
        if seen.texts == seen.stop_in:
            seen.stop_in = None
            os.kill(os.getpid(), signal.SIGINT)
        nlls = own(*arguments, **keywords)
        seen.texts += 1
        return nlls

    monkeypatch.setattr(perplexity, "token_nlls", token_nlls)
    return seen


@pytest.fixture
def saves(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps that checkpoints are written of, as often as they are."""
    found: list[int] = []
    own = SkipwiseTrainer.saving

    def saving(trainer: SkipwiseTrainer) -> Any:
        found.append(trainer.state.global_step)
        return own(trainer)

    monkeypatch.setattr(SkipwiseTrainer, "saving", saving)
    return found


@pytest.fixture
def validated(settings: dict[str, Any]) -> dict[str, Any]:
    return {**settings, "validation": {"num_documents": 2, "every_steps": 2}}


def steps_of(log: list[dict[str, Any]], name: str) -> list[int]:
    return [entry["step"] for entry in log if name in entry]


def without_times(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All entries but the last, which is about the whole run."""
    times = ("step_seconds", "tokens_per_second")
    return [{name: value for name, value in entry.items() if name not in times} for entry in log[:-1]]


@pytest.mark.parametrize("kind", RUNS)
@pytest.mark.parametrize("step", [0, 2, STEPS])
def test_a_stop_cuts_the_validation_off_and_the_resumed_run_makes_up_for_it(
    kind: str, step: int, validated: dict[str, Any], scored: SimpleNamespace, tmp_path: Path, saves: list[int]
) -> None:
    whole = run(validated, **RUNS[kind], output=str(tmp_path / "whole"))
    assert steps_of(whole.log, "eval_perplexity_64") == [0, 2, STEPS]

    # Within the second of the six texts.
    scored.texts, scored.stop_in = 0, TEXTS * (step // 2) + 1
    stopped = run(validated, **RUNS[kind])
    assert saves == [step] * (step > 0)
    assert scored.texts == TEXTS * (step // 2) + 1
    assert (stopped.finished, stopped.steps, stopped.record) == (False, step, {})
    assert steps_of(stopped.log, "eval_perplexity_64") == [*range(0, step, 2)]
    assert steps_of(stopped.log, "loss") == [*range(1, step + 1)]
    assert [path.name for path in stopped.folder.glob("checkpoint-*")] == [f"checkpoint-{step}"] * (step > 0)

    resumed = run(validated, **RUNS[kind], resume=True)
    assert (resumed.finished, resumed.record["resumed_at_step"]) == (True, step or None)
    assert_equal_weights(whole.folder, resumed.folder)
    assert without_times(resumed.log) == without_times(whole.log)


def test_a_validation_is_left_out_if_the_stop_came_in_its_step(
    validated: dict[str, Any], scored: SimpleNamespace, stop_after: Callable[[int], None]
) -> None:
    stop_after(2)
    assert run(validated).steps == 2
    assert scored.texts == TEXTS
    assert steps_of(run(validated, resume=True).log, "eval_perplexity_64") == [0, 2, STEPS]
    assert scored.texts == 3 * TEXTS


def test_a_validation_that_was_made_up_for_may_be_cut_off_again(
    validated: dict[str, Any], scored: SimpleNamespace
) -> None:
    scored.stop_in = TEXTS
    run(validated)
    scored.texts, scored.stop_in = 0, 1
    again = run(validated, resume=True)
    assert (again.finished, again.steps, scored.texts) == (False, 2, 1)
    assert steps_of(run(validated, resume=True).log, "eval_perplexity_64") == [0, 2, STEPS]


@pytest.mark.parametrize("step", [0, 2])
def test_a_validation_that_chooses_the_best_checkpoint_is_finished(
    step: int, validated: dict[str, Any], scored: SimpleNamespace
) -> None:
    best = {"metric_for_best_model": "perplexity_256", "save_strategy": "steps", "save_steps": 2}
    scored.stop_in = TEXTS * (step // 2)
    stopped = run(validated, training={**best, "gradient_accumulation_steps": 1})
    assert (stopped.finished, stopped.steps, scored.texts) == (False, step, TEXTS * (step // 2 + 1))
    assert steps_of(stopped.log, "eval_perplexity_64") == [*range(0, step + 1, 2)]


# --- what it costs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("every", "steps", "seconds", "step_seconds", "told"),
    [
        # Of 5 x 100 and 1000 x 0.9 seconds, 36 % are more than a third; of 5 x 100 and 1000 x 1.1 seconds, 31 % not.
        (250, 1000, 100.0, 0.9, ["100 s", "5 times", "36%", "every_steps=0"]),
        (250, 1000, 100.0, 1.1, None),
        # At steps 0, 4, 8 and 10.
        (4, 10, 600.0, 1.0, ["10 min", "4 times", "100%", "every_steps=0"]),
        (0, 10, 600.0, 60.0, ["10 min", "2 times", "67%", "validation.lengths"]),
        # All of it together is less than a minute.
        (4, 10, 10.0, 1.0, None),
        (4, 10, 0.0, 1.0, None),
    ],
)
def test_a_run_that_validates_for_more_than_a_third_of_its_time_says_so_once(
    every: int, steps: int, seconds: float, step_seconds: float, told: list[str] | None, monkeypatch: Any
) -> None:
    lines: list[str] = []
    cost = ValidationCost(lines.append)
    cost.seconds = seconds
    clock = iter([0.0, step_seconds] * 2)
    monkeypatch.setattr("skipwise.train.progress.time", SimpleNamespace(monotonic=lambda: next(clock)))
    args = SimpleNamespace(eval_strategy="steps" if every else "no", eval_steps=every or None)
    state = SimpleNamespace(max_steps=steps, is_world_process_zero=True)
    for _ in range(2):
        cost.on_step_begin(args, state, None)
        cost.on_step_end(args, state, None)
    assert len(lines) == (told is not None)
    for words in told or ():
        assert words in lines[0]
    assert not lines or ("every_steps" in lines[0]) == bool(every)


def test_validation_says_what_it_measures(
    settings: dict[str, Any], caplog: pytest.LogCaptureFixture, scored: SimpleNamespace
) -> None:
    scored.stop_in = 0
    caplog.set_level("INFO", logger="skipwise")
    run(settings)
    assert "validation: 1 held-out document at 64, 128, 256 tokens" in caplog.messages
    assert [line for line in caplog.messages if line.startswith("stopping: validation ends")]
