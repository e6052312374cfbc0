"""Memory that runs out on the first steps: fewer windows at a time, more often, and the same is trained."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import STEPS, losses, run, weights

from skipwise.config import RunConfig
from skipwise.errors import CheckpointError
from skipwise.train.fitting import smaller_batches
from skipwise.train.process import ran_out_of_memory
from skipwise.train.trainer import SkipwiseTrainer

pytestmark = pytest.mark.usefixtures("sound_model")

EIGHT = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
GROWN = {"window": 64, "share": 0.5}


@pytest.fixture
def room_for(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[list[int]]]:
    """Makes a step that takes more tokens at a time run out of memory; returns the shapes that were tried."""

    def room_for(tokens: int, from_step: int = 0) -> list[list[int]]:
        tried: list[list[int]] = []
        own = SkipwiseTrainer.training_step

        def training_step(trainer: SkipwiseTrainer, model: Any, inputs: Any, *more: Any) -> torch.Tensor:
            tried.append(list(inputs["input_ids"].shape))
            if trainer.state.global_step >= from_step and inputs["input_ids"].numel() > tokens:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return own(trainer, model, inputs, *more)

        monkeypatch.setattr(SkipwiseTrainer, "training_step", training_step)
        return tried

    return room_for


@pytest.mark.parametrize("changes", [{"recipe": "paper"}, {"growth": GROWN}, {"growth": GROWN, "dilution": True}])
def test_fewer_at_a_time_train_the_same(
    changes: dict[str, Any], settings: dict[str, Any], tmp_path: Path, room_for: Callable[..., list[list[int]]],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    whole = run(settings, training=EIGHT, output=str(tmp_path / "whole"), **changes)
    tried = room_for(2 * 32)
    fitted = run(settings, training=EIGHT, **changes)
    assert tried[:3] == [[8, 32], [4, 32], [2, 32]]
    assert losses(fitted.folder) == pytest.approx(losses(whole.folder), rel=1e-4)
    assert len(losses(fitted.folder)) == STEPS
    for name, weight in weights(whole.folder).items():
        found = weights(fitted.folder)[name]
        # An entry of tiny gradient, which Adam scales up, may go either way by rounding.
        assert torch.isclose(found, weight, rtol=1e-3, atol=1e-4).float().mean() > 0.99, name
    assert fitted.record["config"]["training"]["per_device_train_batch_size"] == 2
    assert fitted.record["config"]["training"]["gradient_accumulation_steps"] == 4
    assert "no memory for 8 windows at a time: continuing with 4, 2 times per step" in caplog.text
    assert "no memory for 4 windows at a time: continuing with 2, 4 times per step" in caplog.text
    begun = json.loads((fitted.folder / "begun.json").read_text())
    assert (begun["windows"], begun["at_a_time"], begun["most_at_a_time"]) == (8, 8, 2)


def test_what_fits_is_remembered(
    settings: dict[str, Any], room_for: Callable[..., list[list[int]]], stop_after: Callable[[int], None]
) -> None:
    tried = room_for(4 * 32)
    stop_after(2)
    assert not run(settings, training=EIGHT, recipe="paper").finished
    tried.clear()
    assert run(settings, training=EIGHT, recipe="paper", resume=True).finished
    assert set(map(tuple, tried)) == {(4, 32)}


def test_not_even_one_window_fits(settings: dict[str, Any], room_for: Callable[..., list[list[int]]]) -> None:
    tried = room_for(31)
    with pytest.raises(CheckpointError, match=r"CUDA out of memory.*`skipwise plan`"):
        run(settings, training={"per_device_train_batch_size": 2})
    assert tried == [[2, 32], [1, 32]]


@pytest.mark.parametrize("asked", [{}, {"recipe": "growing"}])
def test_no_memory_for_a_grown_window_lowers_the_cap_on_windows(
    asked: dict[str, Any], settings: dict[str, Any], room_for: Callable[..., list[list[int]]], tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    text, four = {"retrieval": 0.0}, [{"window": "4x", "share": 0.7}]
    whole = run(settings, data=text, recipe="growing", growth=four, output=str(tmp_path / "whole"))
    tried = room_for(200)
    fitted = run(settings, data=text, **asked)
    # The widest comes second: eight times the window, and what fits is four times as wide.
    assert tried[:6] == [[1, 32], [1, 32], [1, 256], [1, 32], [1, 32], [1, 128]]
    assert losses(fitted.folder) == losses(whole.folder)
    begun = RunConfig.from_yaml(fitted.folder / "run.yaml")
    assert (begun.recipe, len(begun.growth)) == ("growing", 2), "it is the same run"
    assert json.loads((fitted.folder / "begun.json").read_text())["widest_tokens"] == 128
    assert fitted.record["widest_tokens"] == 128
    assert "no memory for a single window of 256 tokens, the widest of `growth`" in caplog.text
    assert "continuing with windows of at most 128 tokens" in caplog.text


def test_windows_that_are_wide_from_the_first_step_may_be_narrowed_too(
    settings: dict[str, Any], room_for: Callable[..., list[list[int]]]
) -> None:
    """A document that is long enough for the narrower windows alone must not make it another corpus."""
    Path(settings["data"]["source"], "short.txt").write_text("the river is wide and low " * 8)
    tried = room_for(200)
    growth = [{"window": "8x", "share": 1.0}]
    fitted = run(settings, data={"retrieval": 0.0, "held_out": 0.0}, recipe="diluted", growth=growth)
    assert ([1, 256] in tried, fitted.finished, fitted.record["widest_tokens"]) == (True, True, 128)


def test_windows_that_cannot_grow_at_all_stay_short(
    settings: dict[str, Any], room_for: Callable[..., list[list[int]]], tmp_path: Path
) -> None:
    text = {"retrieval": 0.0}
    short = run(settings, data=text, recipe="diluted", output=str(tmp_path / "short"))
    tried = room_for(32)
    fitted = run(settings, data=text)
    assert [shape for shape in tried if shape != [1, 32]] == [[1, 256], [1, 128], [1, 64]]
    assert losses(fitted.folder) == losses(short.folder)


def test_a_run_that_is_started_anew_reads_the_cap_and_what_was_resolved(
    settings: dict[str, Any], room_for: Callable[..., list[list[int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of several processes, of which one has found that there is no memory and all are started anew."""
    tried = room_for(200)
    with monkeypatch.context() as patch:
        patch.setattr("skipwise.train.steps.load_to_train", lambda _: pytest.fail("stopped here"))
        with pytest.raises(pytest.fail.Exception):
            run(settings, data={"retrieval": 0.0})
    tried.clear()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    monkeypatch.setattr("skipwise.train.session.resolve", lambda *_: pytest.fail("resolved anew"))
    assert run(settings, data={"retrieval": 0.0}).finished
    assert [1, 256] not in tried
    assert [1, 128] in tried


def test_memory_that_runs_out_later_is_another_matter(
    settings: dict[str, Any], room_for: Callable[..., list[list[int]]]
) -> None:
    room_for(31, from_step=3)
    with pytest.raises(CheckpointError, match=r"step 4 .*`growth`"):
        run(settings, training=EIGHT)


def test_memory_of_validation_is_another_matter(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def evaluate(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(SkipwiseTrainer, "evaluate", evaluate)
    with pytest.raises(torch.OutOfMemoryError):
        run(settings, training=EIGHT)
    assert "most_at_a_time" not in json.loads((Path(settings["output"]) / "begun.json").read_text())


@pytest.mark.parametrize(
    ("at_a_time", "often", "most", "expected"), [(6, 1, 4, (3, 2)), (4, 3, 2, (2, 6)), (3, 5, 3, (3, 5))]
)
def test_windows_of_a_step_stay(at_a_time: int, often: int, most: int, expected: tuple[int, int]) -> None:
    training = {"per_device_train_batch_size": at_a_time, "gradient_accumulation_steps": often}
    config = RunConfig.from_mapping({"model": "m", "target": 4096, "training": training})
    fitted = smaller_batches(config, most).training
    assert (fitted["per_device_train_batch_size"], fitted["gradient_accumulation_steps"]) == expected


def test_torch_says_it_in_words_on_a_cpu() -> None:
    with pytest.raises(RuntimeError) as refused:
        torch.empty(1 << 50)
    assert ran_out_of_memory(refused.value)
    assert not ran_out_of_memory(RuntimeError("shapes cannot be multiplied"))
