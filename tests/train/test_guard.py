"""Steps that go wrong: nothing is learnt from them, their items are kept, and a run goes on without them."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_runs import STEPS, run

from skipwise.config import GuardConfig
from skipwise.errors import CheckpointError
from skipwise.train.guard import BAD_ITEMS_FILE, BadItems, StepGuard
from skipwise.train.trainer import SkipwiseTrainer

pytestmark = pytest.mark.usefixtures("sound_model")

# A checkpoint each step, all of them kept.
KEPT = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": STEPS}
SPOILT = 2  # the place of an item of the second step, of two items a step


@pytest.fixture
def settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Of a recipe whose steps have two windows from the first to the last."""
    return {**settings, "recipe": "paper"}


Spoil = Callable[[set[int], float], list[tuple[int, bytes]]]


def places(trained: list[tuple[int, bytes]]) -> list[int]:
    return [place for place, _ in trained]


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), 100.0])
def test_nothing_is_learnt_from_a_bad_step(
    factor: float, settings: dict[str, Any], spoil: Spoil, caplog: pytest.LogCaptureFixture
) -> None:
    spoil({SPOILT}, factor)
    result = run(settings, training=KEPT)
    first, second, third = (weights(result.folder / f"checkpoint-{step}") for step in (1, 2, 3))
    assert first == second != third
    bad = json.loads((result.folder / "bad-items.json").read_text())
    assert bad == {"bad_steps": result.record["bad_steps"], "skipped": []}
    # The other item of the step is not to blame.
    (item,) = bad["bad_steps"]["2"]["items"]
    assert (item["place"], item["epoch"]) == (SPOILT, 0)
    assert 0 <= item["document"] < result.record["corpus"]["documents"]
    assert "at step 2, and the optimizer skips it" in caplog.text
    losses: list[dict[str, Any]] = [entry for entry in result.log if "loss" in entry]
    assert ["bad" in entry for entry in losses] == [False, True, False, False]
    # What the Trainer would log of such a step is the average of others.
    shown: Any = losses[1]["loss"]
    assert shown is None or shown > 50
    if factor == 100.0:
        # Of its own tokens, about half of those that the step's loss is the mean of.
        assert shown is not None
        assert item["loss"] > 1.5 * shown


def test_a_gradient_that_is_no_number_is_not_learnt_from(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = SkipwiseTrainer.training_step

    def training_step(trainer: SkipwiseTrainer, model: Any, *more: Any) -> torch.Tensor:
        loss = own(trainer, model, *more)
        if trainer.state.global_step == 1:
            next(each for each in model.parameters() if each.grad is not None).grad.view(-1)[0] = float("nan")
        return loss

    monkeypatch.setattr(SkipwiseTrainer, "training_step", training_step)
    result = run(settings, training=KEPT)
    assert weights(result.folder / "checkpoint-1") == weights(result.folder / "checkpoint-2")
    assert [item["place"] for item in result.record["bad_steps"]["2"]["items"]] == [2, 3]


def test_a_stated_number_ends_the_run_and_it_goes_on_without_the_items(settings: dict[str, Any], spoil: Spoil) -> None:
    trained = spoil({SPOILT, 5}, float("nan"))
    settings["guard"] = {"bad_steps": 2}
    with pytest.raises(CheckpointError, match=r"step 3.*\(2, 3\).*--skip-bad-items"):
        run(settings, training={**KEPT, "save_total_limit": 1})
    assert places(trained) == [0, 1, 2, 3, 4, 5]
    # With all items it comes to the same end, and the step that it comes to again is not counted twice.
    with pytest.raises(CheckpointError, match=r"\(2, 3\)"):
        run(settings, training={**KEPT, "save_total_limit": 1}, resume=True)
    trained.clear()
    result = run(settings, training={**KEPT, "save_total_limit": 1}, resume=True, skip_bad_items=True)
    # The items that stand in are those that come as far behind the end of the run.
    assert places(trained) == [4, 5 + 2 * STEPS, 6, 7]
    assert result.finished
    assert (result.record["skipped_items"], result.record["bad_steps"]) == ([2, 5], {})


def test_an_agent_that_starts_anew_does_not_undo_the_stop(
    settings: dict[str, Any], spoil: Spoil, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = spoil({SPOILT}, float("nan"))
    settings["guard"] = {"bad_steps": 1}
    with pytest.raises(CheckpointError, match="step 2"):
        run(settings)
    trained.clear()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with pytest.raises(CheckpointError, match="--skip-bad-items"):
        run(settings, resume=True, skip_bad_items=True)
    assert not trained


def test_a_step_of_a_long_run_is_judged_by_the_newest_entries_of_its_log_alone(tmp_path: Path) -> None:
    """A run of ten trillion tokens has millions of them, and the guard looks at every step."""

    class Log(list[dict[str, Any]]):
        read = 0

        def __iter__(self) -> Iterator[dict[str, Any]]:
            raise AssertionError("the whole log was read")

        def __reversed__(self) -> Iterator[dict[str, Any]]:
            for place in range(len(self) - 1, -1, -1):
                self.read += 1
                yield self[place]

    log = Log([{"loss": 9.0}] * 1000 + [{"loss": 2.0}, {"eval_perplexity_64": 8.0}, {"loss": 50.0, "bad": 1}] * 20)
    guard = StepGuard(GuardConfig(rise=4.0), BadItems(tmp_path), lambda _: {}, lambda _: None)
    arguments = SimpleNamespace(world_size=1, deepspeed=None)
    for loss in (5.9, 6.1):
        guard.on_step_begin(None, None, None)
        guard.count(torch.tensor(loss), torch.tensor(loss), torch.tensor([7]))
        state, log.read = SimpleNamespace(log_history=log, global_step=1060), 0
        guard.on_pre_optimizer_step(arguments, state, None, model=torch.nn.Linear(1, 1))
        assert 20 < log.read <= 60
    assert guard.take_bad_losses() == [pytest.approx(6.1)]


def test_a_log_of_several_steps_says_how_many_were_bad(settings: dict[str, Any], spoil: Spoil) -> None:
    spoil({SPOILT, 5}, float("nan"))
    log = run(settings, training={"logging_steps": 2}).log
    losses = [entry for entry in log if "loss" in entry]
    assert [entry.get("bad", 0) for entry in losses] == [1, 1]


def test_a_loss_that_rises_less_is_a_loss(settings: dict[str, Any], spoil: Spoil) -> None:
    spoil({SPOILT}, 100.0)
    settings["guard"] = {"rise": 1e6}
    assert run(settings).record["bad_steps"] == {}


def test_a_file_of_bad_items_that_cannot_be_read(settings: dict[str, Any], stop_after: Callable[[int], None]) -> None:
    stop_after(1)
    run(settings)
    for spoilt in ("{", "[]", '{"bad_steps": {}}'):
        (Path(settings["output"]) / "bad-items.json").write_text(spoilt)
        with pytest.raises(CheckpointError, match=BAD_ITEMS_FILE):
            run(settings, resume=True)
