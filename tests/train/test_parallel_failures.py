"""Several processes of which one runs out of memory, or has a loss that is no number under DeepSpeed."""

import json
from pathlib import Path
from typing import Any

import pytest
from group_runs import begun, trained
from tiny_runs import losses, record_of

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes")]


def test_one_of_two_without_memory_has_all_started_anew_with_fewer_at_a_time(
    group_settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def settings(name: str, windows: int) -> dict[str, Any]:
        training = {"per_device_train_batch_size": windows, "gradient_accumulation_steps": 1}
        return group_settings | {
            "output": str(tmp_path / name), "training": {**group_settings["training"], **training}
        }  # fmt: skip

    alone = trained(1, settings("alone", 8))
    run = begun(2, settings("two", 4), fitting=2)
    assert run.wait() != 0
    assert "4 windows at a time" in run.stderr
    # As torchrun starts them anew (see test_launch).
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    trained(2, settings("two", 4), fitting=2)
    assert json.loads((tmp_path / "two" / "begun.json").read_text())["most_at_a_time"] == 2
    assert losses(tmp_path / "two") == pytest.approx(losses(alone), rel=1e-4)


def test_who_names_no_recipe_has_windows_that_grow_as_far_as_one_of_two_has_memory(
    group_settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a step of one window of 256 tokens one process has it; both are started anew with windows of 128."""

    def settings(name: str, accumulated: int) -> dict[str, Any]:
        made = {**group_settings, "output": str(tmp_path / name)}
        made["data"] = {**made["data"], "retrieval": 0.0}
        made["training"] = {**made["training"], "gradient_accumulation_steps": accumulated}
        del made["recipe"]
        return made

    alone = trained(1, settings("alone", 8) | {"recipe": "growing", "growth": [{"window": "4x", "share": 0.7}]})
    run = begun(2, settings("two", 4), tokens=128)
    assert run.wait() != 0
    assert "256 tokens" in run.stderr
    # As torchrun starts them anew (see test_launch).
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    record = record_of(two := trained(2, settings("two", 4), tokens=128))
    assert (record["config"]["recipe"], record["widest_tokens"]) == ("growing", 128)
    assert record["reasons"][0].startswith("recipe: growing, which measured best")
    assert losses(two) == pytest.approx(losses(alone), rel=1e-4)


def test_under_deepspeed_the_first_bad_step_ends_the_run(group_settings: dict[str, Any]) -> None:
    pytest.importorskip("deepspeed")
    group_settings["training"] |= {"gradient_accumulation_steps": 2, "save_steps": 1, "save_total_limit": 4}
    run = begun(2, group_settings, engine="zero2", spoilt=3)
    assert run.wait() != 0
    assert "at step 3, and DeepSpeed took the step: the items are in" in run.stderr
    bad = json.loads(Path(group_settings["output"], "bad-items.json").read_text())["bad_steps"]
    # Both batches of the second process, which has every other one.
    assert [item["place"] for item in bad["3"]["items"]] == [9, 11]
    record = record_of(trained(2, group_settings, engine="zero2", resume=True, skip_bad_items=True))
    assert (record["resumed_at_step"], record["skipped_items"]) == (2, [9, 11])
