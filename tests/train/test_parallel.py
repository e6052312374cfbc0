"""Several processes on one machine: one run, one folder, the same items whatever their number, stopped and resumed."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from forked import launched
from group_runs import as_if_killed, assert_trained_alike, trained
from tiny_runs import losses, record_of

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes")]

# Of eight windows two and then one that have grown: some processes have none of them.
GROWING = {
    "sampler": {"skips": "flat", "text": "aligned"},
    "dilution": True,
    "growth": [{"window": "4x", "share": 0.75}, {"window": "8x", "share": 0.25}],
    "keep_tokens": True,
}
# Sources within the folder of documents; a quarter of the steps is replay.
MIXED: dict[str, Any] = {**GROWING, "mixture": {"1*.txt": 2.0, "[02-9]*.txt": 1.0, None: 1.0}}


@pytest.fixture
def arguments(group_settings: dict[str, Any], tmp_path: Path) -> Any:
    """Settings of a run with a name; `training` is changed entry by entry."""

    def make(name: str, *, training: dict[str, Any], **changes: Any) -> dict[str, Any]:
        training = {**group_settings["training"], **training}
        return {**group_settings, "output": str(tmp_path / name), **changes, "training": training}

    return make


def test_processes_stop_together_and_resume_to_the_same_bits(arguments: Any) -> None:
    training = {"max_steps": 3, "gradient_accumulation_steps": 2, "save_strategy": "no"}
    whole = trained(2, arguments("whole", training=training), spoilt=3)
    settings = arguments("stopped", training=training)
    # Both stop, though one alone was asked to.
    stopped = trained(2, settings, spoilt=3, stopped=2)
    assert not (stopped / "skipwise.json").exists()
    assert (stopped / "checkpoint-2" / "trainer_state.json").exists()
    resumed = trained(2, settings, spoilt=3, resume=True)
    assert record_of(resumed)["steps"] == record_of(whole)["steps"] == 3
    assert (resumed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    # A loss that is no number in one of them is nobody's lesson; the first one writes down the items of all.
    bad = json.loads((whole / "bad-items.json").read_text())["bad_steps"]
    assert {step: [item["place"] for item in told["items"]] for step, told in bad.items()} == {"3": [9, 11]}
    assert bad == record_of(resumed)["bad_steps"]


@pytest.mark.parametrize(("when", "measured"), [({"stopped": 2}, [0]), ({"stopped_validating": 1}, [0, 2])])
def test_processes_agree_which_validation_is_left_out(when: Any, measured: list[int], arguments: Any) -> None:
    """None of them leaves one that has begun, as the others would wait; both resumed runs have all of them."""
    validation = {"every_steps": 2, "num_documents": 3, "lengths": [32, 64]}
    settings = arguments("run", training={"max_steps": 3, "save_strategy": "no"}, validation=validation)
    settings["data"]["held_out"] = 0.3

    def steps(log: list[dict[str, Any]]) -> list[int]:
        return [entry["step"] for entry in log if "eval_perplexity_64" in entry]

    stopped = trained(2, settings, **when)
    assert not (stopped / "skipwise.json").exists()
    assert [folder.name for folder in stopped.glob("checkpoint-*")] == ["checkpoint-2"]
    state = json.loads((stopped / "checkpoint-2" / "trainer_state.json").read_text())
    assert steps(state["log_history"]) == measured
    assert steps(record_of(trained(2, settings, resume=True))["log"]) == [0, 2, 3]


def test_one_process_speaks_and_the_others_write_files(tiny_checkpoint: Path, documents: Path, tmp_path: Path) -> None:
    settings = ("data.held_out=0.0", "training.use_cpu=true", "training.gradient_accumulation_steps=2")
    run = ["extend", tiny_checkpoint, "--target", 256, "--window", 32, "--data", documents, "--steps", 3]
    run += ["--output", tmp_path / "run", *(word for setting in settings for word in ("--set", setting))]
    done = launched("-m skipwise", *run, processes=2)
    assert done.stdout.count("extended to 256 tokens") == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("step ")]
    assert len(lines) == 3
    told = r"step 2 of 3: loss \d+\.\d+, [\d,]+ tokens a second, [\d.]+ [MG]iB, [\d.]+ m?s left"
    assert re.fullmatch(told, lines[1]), lines[1]
    assert done.stderr.count("preflight: ") == 1, "the preflight is told once"
    assert "preflight: " in (tmp_path / "run" / "logs" / "rank-1.txt").read_text()


@pytest.mark.parametrize(
    ("how", "engine"),
    [({}, "ddp"), (GROWING, "ddp"), (MIXED, "ddp"), ({}, "fsdp2")],
    ids=["short windows", "windows that grow", "a mixture", "split"],
)
def test_the_same_is_trained_whatever_the_number_of_processes(
    how: dict[str, Any], engine: str, arguments: Any, documents: Path, tmp_path: Path
) -> None:
    """Eight windows a step by 1, 2 and 4 processes, and a run begun by 2 that 4 go on with."""
    how = dict(how)
    if mixture := how.pop("mixture", {}):
        weights = [({"source": f"{documents}/{glob}"} if glob else {"replay": True}, mixture[glob]) for glob in mixture]
        how["data"] = {"mixture": [{**entry, "weight": weight} for entry, weight in weights], "held_out": 0.0}

    def run(name: str, processes: int, resume: bool = False) -> tuple[list[float], list[int]]:
        seen = tmp_path / f"seen-{name}-{processes}"
        settings = arguments(name, training={"gradient_accumulation_steps": 8 // processes}, **how)
        by = engine if processes > 1 else "ddp"
        folder = trained(processes, settings, seen=str(seen), resume=resume, engine=by)
        places = [line for rank in range(processes) for line in Path(f"{seen}-{rank}").read_text().split()]
        return losses(folder), sorted(map(int, places))

    alone, items = run("one", 1)
    assert items == list(range(32))
    for processes in (2, 4):
        found, places = run(f"whole-{processes}", processes)
        assert found == pytest.approx(alone, rel=1e-4)
        assert places == items, "each once, by one of them"
    as_if_killed(tmp_path / "whole-2", 2)
    found, places = run("whole-2", 4, resume=True)
    assert found == pytest.approx(alone, rel=1e-4)
    assert places == items[16:], "none again, and none left out"


@pytest.mark.parametrize("kind", ["full", "lora", "qlora"])
def test_engines_train_what_one_process_trains(
    kind: str, tiny_checkpoint: Path, checkpoint_of_blocks: Path, arguments: Any
) -> None:
    pytest.importorskip("deepspeed")
    if kind == "qlora":
        pytest.importorskip("bitsandbytes", reason="4-bit weights are the package bitsandbytes' (extra: qlora)")

    def run(engine: str, processes: int, name: str = "", resume: bool = False) -> Path:
        settings = arguments(
            name or engine,
            training={"gradient_accumulation_steps": 4 // processes},
            model=str(checkpoint_of_blocks if kind == "qlora" else tiny_checkpoint),
            tuning=kind,
            validation={"every_steps": 0, "num_documents": 3, "lengths": [32, 64]},
        )
        settings["data"]["held_out"] = 0.3
        return trained(processes, settings, engine=engine, resume=resume)

    alone = run("ddp", 1, "alone")
    for engine in ("ddp", "fsdp2", "zero2", "zero3"):
        assert_trained_alike(alone, run(engine, 2))
    if kind != "full":
        return
    split = alone.parent / "zero3"
    whole = (split / "model.safetensors").read_bytes()
    as_if_killed(split, 2)
    assert (run("zero3", 2, resume=True) / "model.safetensors").read_bytes() == whole
