"""Runs whose documents are streamed: stopped and gone on with, without bad items, and by several processes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from group_runs import as_if_killed, trained
from pyarrow import parquet
from tiny_runs import STEPS, assert_equal_weights, losses, run

from skipwise.errors import CheckpointError

KEPT = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": STEPS}


@pytest.fixture(scope="module")
def shards(documents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The texts of the tiny runs in four Parquet files."""
    folder = tmp_path_factory.mktemp("shards")
    texts = [file.read_text() for file in sorted(documents.glob("*.txt"))]
    for shard in range(4):
        parquet.write_table(pyarrow.table({"text": texts[shard::4]}), folder / f"{shard}.parquet")
    return folder


@pytest.fixture
def streamed(settings: dict[str, Any], shards: Path) -> dict[str, Any]:
    data = {"source": str(shards), "held_out": 0.2, "streaming": True, "buffer": 3}
    return {**settings, "data": data}


@pytest.mark.usefixtures("sound_model")
@pytest.mark.parametrize(
    "changes", [{}, {"growth": {"window": 64, "share": 0.5}}, {"data": {"retrieval": 0.5}, "window": 200}]
)
def test_a_run_that_is_stopped_goes_on_to_the_same_bits(
    changes: dict[str, Any], streamed: dict[str, Any], stop_after: Callable[[int], None], tmp_path: Path
) -> None:
    whole = run(streamed, **changes)
    assert whole.record["corpus"] == {
        "fingerprint": whole.record["corpus"]["fingerprint"],
        "shards": 4,
        "kinds_not_read": {},
        "unreadable": {},
        "empty": 0,
    }
    stop_after(2)
    assert not run(streamed, output=str(tmp_path / "again"), **changes).finished
    again = run(streamed, output=str(tmp_path / "again"), resume=True, **changes)
    assert again.finished
    assert_equal_weights(whole.folder, again.folder)
    assert len(losses(whole.folder)) == STEPS
    assert losses(whole.folder) == losses(again.folder)


@pytest.mark.usefixtures("sound_model")
def test_it_validates_on_what_it_does_not_train_on(streamed: dict[str, Any]) -> None:
    log = run(streamed, validation={"num_documents": 2, "lengths": [64]}).log
    assert len([entry for entry in log if "eval_perplexity_64" in entry]) == 2


@pytest.mark.usefixtures("sound_model")
def test_bad_items_are_told_and_done_without(
    streamed: dict[str, Any], spoil: Callable[..., list[tuple[int, bytes]]]
) -> None:
    streamed["recipe"] = "paper"  # Whose steps have as many windows from the first to the last.
    trained = spoil({2}, float("nan"))
    with pytest.raises(CheckpointError, match="--skip-bad-items"):
        run({**streamed, "guard": {"bad_steps": 1}}, training=KEPT)
    folder = Path(streamed["output"])
    (item,) = json.loads((folder / "bad-items.json").read_text())["bad_steps"]["2"]["items"]
    assert set(item) == {"place", "epoch", "shard", "row", "loss"}
    text = parquet.read_table(sorted(Path(streamed["data"]["source"]).glob("*"))[item["shard"]])["text"]
    bad = dict(trained)[2]
    trained.clear()
    assert run({**streamed, "guard": {"bad_steps": 1}}, training=KEPT, resume=True, skip_bad_items=True).finished
    assert [place for place, _ in trained] == [2 + 2 * STEPS, 3, 4, 5, 6, 7]
    assert trained[0][1] != bad
    assert item["row"] < len(text)


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
def test_the_same_is_streamed_whatever_the_number_of_processes(streamed: dict[str, Any], tmp_path: Path) -> None:
    """Four windows a step by one process and by two, and a run begun by two that one goes on with."""

    def run(name: str, processes: int, **how: Any) -> list[float]:
        training = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "learning_rate": 1e-3, "use_cpu": True}
        training["gradient_accumulation_steps"] = 4 // processes
        settings = {**streamed, "output": str(tmp_path / name), "data": {**streamed["data"], "held_out": 0.0}}
        settings |= {"validation": {"every_steps": 0}, "training": {**streamed["training"], **training}}
        return losses(trained(processes, settings, **how))

    alone = run("one", 1)
    assert run("two", 2) == pytest.approx(alone, rel=1e-4)
    moved = tmp_path / "two"
    places = [json.loads((moved / "checkpoint-3" / f"stream-{rank}.json").read_text()) for rank in (0, 1)]
    assert [sorted(each) for each in places] == [["0", "2"], ["1", "3"]]
    as_if_killed(moved, 3)
    assert run("two", 1, resume=True) == pytest.approx(alone, rel=1e-4)
