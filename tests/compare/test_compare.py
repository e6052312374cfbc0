"""A whole comparison: what it leaves, what fails without stopping it, and how it goes on."""

import json
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

import skipwise.compare.running
import skipwise.evals
from skipwise.compare import Arm, Begin, Comparison, ComparisonStopped, compare
from skipwise.compare.worker import INTERRUPTED, Outcome, failure_of
from skipwise.data.documents import is_held_out
from skipwise.errors import CheckpointError, ConfigError, DataError
from skipwise.train.trainer import SkipwiseTrainer


def about(folder: str) -> dict[str, Any]:
    return json.loads((Path(folder) / "comparison.json").read_text())


def values(results: Any, arm: str) -> dict[int, float]:
    return {
        record.length_tokens: record.value
        for record in results.records
        if record.details["compared"] == arm and record.metric == "perplexity"
    }


def test_arms_are_measured_on_the_same_and_differ_as_they_should(settings, in_process) -> None:
    results = compare(Comparison.from_mapping(settings | {"seeds": [0, 1]}), command="skipwise compare x")
    assert in_process == ["arms/base", "arms/interpolation-only", "pose/seed-0", "pose/seed-1"]
    base, untrained, pose = (values(results, arm) for arm in ("base", "interpolation-only", "pose"))
    assert set(base) == set(untrained) == set(pose) == {64, 128, 256}
    assert base[256] != untrained[256]
    assert pose[256] < untrained[256], "trained on text of thirteen words"
    found = about(settings["output"])
    assert found["arms"]["pose"]["runs"][1]["tokens"] == 4 * 8 * 32
    for job, seed in (("arms/base", None), ("arms/pose/seed-0", 0), ("arms/pose/seed-1", 1)):
        folder = Path(settings["output"]) / job
        assert json.loads((folder / "outcome.json").read_text())["seed"] == seed
    assert [run["seed"] for run in found["arms"]["pose"]["runs"]] == [0, 1]
    assert found["arms"]["pose"]["runs"][0]["training_seconds"] > 0
    apart = {(one["arm"], one["length_tokens"]): one for one in found["differences"] if one["task"] == "perplexity"}
    assert apart["interpolation-only", 256]["value"] > 0
    assert apart["interpolation-only", 256]["num_seeds"] == 2
    reached = {(one["arm"], one["seed"]): one["tokens"] for one in found["reached"]}
    assert set(reached) == {("pose", 0), ("pose", 1)}
    assert any(tokens is not None for tokens in reached.values())
    # The base is held to itself by nothing; what short text lost is told of the others.
    assert {r.details["compared"] for r in results.records if r.task == "regression"} == {"interpolation-only", "pose"}
    lines = (Path(settings["output"]) / "records.jsonl").read_text().splitlines()
    assert len(lines) == len(results.records)


def test_an_arm_that_fails_is_recorded_and_the_rest_go_on(settings, in_process) -> None:
    own = SkipwiseTrainer.training_step

    def training_step(trainer: Any, *arguments: Any, **keywords: Any) -> Any:
        if "bursting" in str(trainer.args.output_dir):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        loss = own(trainer, *arguments, **keywords)
        if "exploding" in str(trainer.args.output_dir):
            raise CheckpointError(f"the loss is nan at step {trainer.state.global_step + 1}: lower it")
        return loss

    arms = [{"name": "exploding", "like": "pose"}, {"name": "bursting", "like": "pose"}, "pose"]
    made = Comparison.from_mapping(settings | {"arms": arms, "reference": "pose"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SkipwiseTrainer, "training_step", training_step)
        results = compare(made)
    assert results.failed == ["exploding", "bursting"]
    runs = {name: arm["runs"][0] for name, arm in about(settings["output"])["arms"].items()}
    assert runs["exploding"]["failure"] == "not a number"
    assert "step 1" in runs["exploding"]["error"]
    assert (runs["bursting"]["failure"], runs["bursting"]["seed"]) == ("out of memory", 0)
    assert runs["pose"]["status"] == "done"
    # What failed stays failed until it is asked for again.
    in_process.clear()
    compare(made, resume=True)
    assert in_process == []
    assert compare(made, resume=True, retry_failed=True).failed == []
    assert in_process == ["exploding/seed-0", "bursting/seed-0"]


def test_a_stopped_comparison_goes_on_at_the_step_where_it_stopped(settings, in_process, monkeypatch) -> None:
    whole = compare(Comparison.from_mapping(settings | {"output": settings["output"] + "-whole"}))
    own, steps = SkipwiseTrainer.training_step, []

    def training_step(trainer: Any, *arguments: Any, **keywords: Any) -> Any:
        steps.append(trainer.state.global_step + 1)
        if steps == [1, 2]:
            os.kill(os.getpid(), signal.SIGINT)
        return own(trainer, *arguments, **keywords)

    monkeypatch.setattr(SkipwiseTrainer, "training_step", training_step)
    made = Comparison.from_mapping(settings)
    with pytest.raises(ComparisonStopped):
        compare(made)
    in_process.clear()
    gone_on = compare(made, resume=True)
    assert in_process == ["pose/seed-0"], "the arms before it are not run again"
    assert steps == [1, 2, 3, 4]
    assert values(gone_on, "pose") == values(whole, "pose")


def test_arms_may_join_later_and_what_was_measured_may_not_change(settings, in_process) -> None:
    # A comparison that was killed while it wrote its settings begins again.
    left = Path(settings["output"]) / ".comparison.yaml.123.new"
    left.parent.mkdir()
    left.write_text("run: {mod")
    compare(Comparison.from_mapping(settings))
    assert not left.exists()
    in_process.clear()
    more = Comparison.from_mapping(settings | {"arms": [*settings["arms"], "plain"]})
    assert set(compare(more, resume=True).about["arms"]) == {"base", "interpolation-only", "pose", "plain"}
    assert in_process == ["plain/seed-0"]
    changed = settings | {"training": settings["training"] | {"max_steps": 5}}
    with pytest.raises(ConfigError, match="run"):
        compare(Comparison.from_mapping(changed), resume=True)
    with pytest.raises(ConfigError, match="--resume"):
        compare(Comparison.from_mapping(settings))
    with pytest.raises(ConfigError, match="-other"):
        compare(Comparison.from_mapping(settings | {"output": settings["output"] + "-other"}), resume=True)


@pytest.mark.slow
def test_full_length_for_the_same_time_takes_the_steps_that_fit(settings, in_process) -> None:
    arms = ["pose", "full-equal-time", "full"]
    folder = Path(settings["output"])
    made = Comparison.from_mapping(settings | {"arms": arms})
    compare(made)
    # As if a step of full length took two and a half times as long.
    for arm, seconds in (("pose", 4.0), ("full", 10.0)):
        Outcome(status="done", steps=4, training_seconds=seconds).write(folder / f"arms/{arm}/seed-0")
    (folder / "arms/full-equal-time/seed-0/outcome.json").unlink()
    for file in (folder / "arms/full-equal-time/seed-0/model").rglob("*"):
        file.unlink()
    results = compare(made, resume=True)
    assert results.about["arms"]["full-equal-time"]["runs"][0]["steps"] == 2


@pytest.mark.slow
def test_full_length_for_the_same_time_is_timed_where_no_arm_of_full_length_is(settings, in_process) -> None:
    folder = Path(settings["output"])
    made = Comparison.from_mapping(settings | {"arms": ["pose", "full-equal-time"]})
    compare(made)
    assert in_process == ["pose/seed-0", "costs/full-equal-time-256", "full-equal-time/seed-0"]
    timed = Outcome.read(folder / "costs/full-equal-time-256")
    assert timed is not None
    assert timed.steps == len(timed.step_seconds) == 2
    # As if the window after the first took a third of the reference's time.
    Outcome(status="done", steps=4, training_seconds=4.5).write(folder / "arms/pose/seed-0")
    Outcome(status="done", steps=2, step_seconds=(9.0, 1.5)).write(folder / "costs/full-equal-time-256")
    (folder / "arms/full-equal-time/seed-0/outcome.json").unlink()
    for file in (folder / "arms/full-equal-time/seed-0/model").rglob("*"):
        file.unlink()
    results = compare(made, resume=True)
    assert results.about["arms"]["full-equal-time"]["runs"][0]["steps"] == 3


@pytest.mark.slow
def test_costs_are_measured_at_each_target(settings, in_process) -> None:
    made = Comparison.from_mapping(settings | {"arms": ["pose", "full"], "costs": {"targets": [128, 512], "steps": 2}})
    costs = {(one["arm"], one["target_tokens"]): one for one in compare(made).about["costs"]}
    assert set(costs) == {(arm, target) for arm in ("pose", "full") for target in (128, 512)}
    assert all(one["step_seconds"] > 0 and one["peak_bytes"] > 2**20 for one in costs.values())
    left = {path.name for path in (Path(settings["output"]) / "costs").rglob("*") if path.is_file()}
    assert left == {"job.json", "outcome.json"}, "neither a model nor an evaluation"


def test_a_killed_process_ran_out_of_memory_and_an_interrupted_one_stops_all(settings, monkeypatch) -> None:
    made = Comparison.from_mapping(settings | {"arms": ["pose"]})
    monkeypatch.setattr(skipwise.compare.running, "_run_process", lambda job_file: INTERRUPTED)
    with pytest.raises(ComparisonStopped):
        compare(made)
    monkeypatch.setattr(skipwise.compare.running, "_run_process", lambda job_file: -signal.SIGKILL)
    run = compare(made, resume=True).about["arms"]["pose"]["runs"][0]
    assert run["failure"] == "out of memory"
    assert "log.txt" in run["error"]
    assert run["seed"] == 0


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (MemoryError(), "out of memory"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory"), "out of memory"),
        (CheckpointError("the loss is nan at step 3"), "not a number"),
        (CheckpointError("passkey, length 64: logits are NaN at position 3"), "not a number"),
        (ValueError("something else"), "error"),
    ],
)
def test_failures_by_kind(error: Exception, failure: str) -> None:
    assert failure_of(error) == failure


@pytest.mark.slow
def test_each_arm_has_a_process_of_its_own(settings) -> None:
    made = Comparison.from_mapping(settings | {"arms": ["base", "pose"]})
    results = compare(made)
    assert results.failed == []
    assert results.about["arms"]["pose"]["runs"][0]["peak_bytes"] > 2**27
    assert "training" in (Path(settings["output"]) / "arms/pose/seed-0/log.txt").read_text()


def test_an_arm_tells_what_its_kind_brings() -> None:
    arm = Arm.from_setting({"name": "undiluted", "like": "recipe", "dilution": False})
    run = SimpleNamespace(interpolation={"kind": "yarn"}, sampler={"kind": "pose"})
    described = skipwise.compare.results._described(arm, SimpleNamespace(run=run), [])  # pyright: ignore
    assert described.settings == {"recipe": "growing", "dilution": False}


def test_what_cannot_be_read_is_told_before_the_first_arm(settings, in_process, tmp_path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"\xff")
    (tmp_path / "worse.txt").write_bytes(b"\xfe")
    evaluation = {**settings["evaluation"], "documents": [str(tmp_path / "bad.txt"), str(tmp_path / "worse.txt")]}
    with pytest.raises(DataError, match=r"bad\.txt:1.*worse\.txt:1"):
        compare(Comparison.from_mapping({**settings, "evaluation": evaluation}))
    assert in_process == []
    assert not Path(settings["output"]).exists()


def test_documents_too_short_to_measure_on_are_told_before_the_first_arm(settings, in_process, tmp_path) -> None:
    (tmp_path / "short.txt").write_text("ab " * 50)
    evaluation = {**settings["evaluation"], "documents": str(tmp_path / "short.txt")}
    data = {**settings["data"], "held_out": 0.0}
    with pytest.raises(DataError, match=r"256"):
        compare(Comparison.from_mapping({**settings, "data": data, "evaluation": evaluation}))
    assert in_process == []
    assert not Path(settings["output"]).exists()


def test_arms_are_measured_in_the_dtype_asked_for_and_trained_in_their_own(settings, in_process) -> None:
    task = {"kind": "perplexity", "scored_tokens": 16, "num_documents": 2}
    evaluation = {"tasks": [task], "lengths": [64], "dtype": "bfloat16"}
    results = compare(Comparison.from_mapping({**settings, "arms": ["base", "pose"], "evaluation": evaluation}))
    assert {record.details["dtype"] for record in results.records} == {"bfloat16"}
    run = next((Path(settings["output"]) / "arms" / "pose").rglob("skipwise.json")).parent
    assert json.loads((run / "skipwise.json").read_text())["config"]["dtype"] == "float32"
    stored = load_file(run / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}


def test_three_long_texts_are_measured_on_an_end_that_no_arm_has_seen(
    settings, in_process, tmp_path, monkeypatch
) -> None:
    rng, texts = np.random.default_rng(0), list[str]()
    while len(texts) < 3:
        text = " ".join(rng.choice(["the", "river", "is", "wide"], size=600))
        texts += [] if is_held_out(text, 0.3) else [text]
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.txt").write_text(text)
    measured: list[list[list[int]]] = []
    own = skipwise.evals.evaluate

    def evaluate(model: Any, tokenizer: Any, tasks: Any, lengths: Any, documents: Any, **more: Any) -> Any:
        measured.append([ids.tolist() for ids in documents])
        return own(model, tokenizer, tasks, lengths, documents, **more)

    monkeypatch.setattr(skipwise.evals, "evaluate", evaluate)
    data = {"source": [str(tmp_path / f"{number}.txt") for number in range(3)], "held_out": 0.3}
    arms = ["base", "pose", {"name": "wide", "like": "pose", "window": 64}]
    results = compare(Comparison.from_mapping({**settings, "data": data, "arms": arms}))
    assert {arm: sorted(values(results, arm)) for arm in ("base", "pose", "wide")}["wide"][-1] == 256
    assert len(measured) >= 3
    assert all(documents == measured[0] for documents in measured)
    ((held,),) = measured[:1]
    tokenizer = AutoTokenizer.from_pretrained(settings["model"])
    longest = max((tokenizer(text).input_ids for text in texts), key=len)
    assert held == longest[-len(held) :]
    for arm in ("pose", "wide"):
        record = json.loads(next((Path(settings["output"]) / "arms" / arm).rglob("skipwise.json")).read_text())
        assert record["corpus"]["held_out_end"]["tokens"] >= len(held)


def test_arms_with_and_without_replay_are_measured_on_the_same(settings, in_process, tmp_path, monkeypatch) -> None:
    (tmp_path / "replayed").mkdir()
    for number in range(20):
        (tmp_path / "replayed" / f"{number}.txt").write_text(f"{number} " + "abc " * 150)
    measured: list[list[list[int]]] = []

    def evaluate(model: Any, tokenizer: Any, tasks: Any, lengths: Any, documents: Any, **more: Any) -> None:
        measured.append([ids.tolist() for ids in documents])

    monkeypatch.setattr(skipwise.evals, "evaluate", evaluate)
    replayed = {"source": str(tmp_path / "replayed"), "weight": 0.5, "replay": True}
    data = {"mixture": [{"source": settings["data"]["source"], "weight": 0.5}, replayed], "held_out": 0.3}
    compare(Comparison.from_mapping({**settings, "data": data, "arms": ["pose", "full"], "reference": "pose"}))
    assert len(measured) >= 2
    assert all(documents == measured[0] for documents in measured)


@pytest.mark.parametrize("of_one", [False, True])
def test_the_end_of_a_source_is_measured_on_only_where_no_arm_has_seen_it(
    of_one: bool, settings, in_process, tmp_path, monkeypatch
) -> None:
    rng, folders = np.random.default_rng(0), [tmp_path / "one", tmp_path / "other"]
    for folder in folders:
        folder.mkdir()
        texts = (" ".join(rng.choice(["the", "river", "is", "wide"], size=600)) for _ in range(100))
        (folder / "long.txt").write_text(next(text for text in texts if not is_held_out(text, 0.3)))
    measured: list[list[int]] = []

    def evaluate(model: Any, tokenizer: Any, tasks: Any, lengths: Any, documents: Any, **more: Any) -> None:
        measured.append([len(ids) for ids in documents])

    monkeypatch.setattr(skipwise.evals, "evaluate", evaluate)
    # So much is kept for training that the end is shorter than the target would leave.
    mixture = [{"source": str(folder), "weight": 0.5, "min_tokens": 2300} for folder in folders]
    asked = {**settings["evaluation"], "lengths": [64], "regression": False}
    made = {**settings, "data": {"mixture": mixture, "held_out": 0.3}, "arms": ["pose"], "reference": "pose"}
    made["evaluation"] = {**asked, "documents": str(folders[1])} if of_one else asked
    compare(Comparison.from_mapping(made))
    (found,) = measured
    record = json.loads(next(Path(settings["output"]).rglob("skipwise.json")).read_text())
    ends = [each["tokens"] for each in record["corpus"]["held_out_end"]]
    assert found == (ends[1:] if of_one else ends)


def test_jobs_may_be_decided_when_they_begin_and_optional_measurements_have_a_deadline(settings, in_process) -> None:
    task = {"kind": "perplexity", "scored_tokens": 16, "num_documents": 2, "cut_tokens": 256}
    both = [
        {"task": task, "lengths": [256]},
        {"task": task, "lengths": [64], "optional": True, "name": "perplexity at 64", "seconds": 5.0},
    ]
    begun: list[str] = []

    def begin(job: Any) -> Begin:
        begun.append(job.name)
        in_time = time.time() + (100.0 if job.arm.name == "base" else 4.0)
        return Begin(evaluation=both, steps=2 if job.arm.kind.trained else None, deadline=in_time)

    Path(settings["output"]).mkdir()
    (Path(settings["output"]) / "mine").touch()
    results = compare(Comparison.from_mapping(settings), begin=begin, beside=["mine"])
    assert begun == ["arms/base", "arms/interpolation-only", "arms/pose/seed-0"]
    assert [sorted(values(results, arm)) for arm in ("base", "interpolation-only", "pose")] == [[64, 256], [256], [256]]
    left_out = {job: Outcome.read(Path(settings["output"]) / job) for job in begun}
    assert [outcome and outcome.left_out for outcome in left_out.values()] == [[], *2 * [["perplexity at 64"]]]
    assert about(settings["output"])["steps"] == 2


def test_an_arm_may_have_a_sampler_of_ones_own(settings, in_process, tmp_path: Path) -> None:
    lines = "from dataclasses import dataclass\nfrom skipwise.positions import PoSE\n"
    # The same draws as PoSE's, so that the arm must come to the same numbers.
    (tmp_path / "own.py").write_text(f"{lines}@dataclass(frozen=True)\nclass Own(PoSE):\n    pass\n")
    arms = [{"name": "own", "like": "pose", "sampler": {"kind": f"{tmp_path / 'own.py'}:Own"}}, "pose"]
    results = compare(Comparison.from_mapping(settings | {"arms": arms, "reference": "pose"}))
    assert results.failed == []
    assert values(results, "own") == values(results, "pose")
    assert about(settings["output"])["arms"]["own"]["sampler"]["kind"].endswith("own.py:Own")
    missing = [{"name": "own", "like": "pose", "sampler": {"kind": "nowhere.py:Own"}}, "pose"]
    with pytest.raises(ConfigError, match=r"arm 'own': .*there is no file"):
        compare(Comparison.from_mapping(settings | {"arms": missing, "output": str(tmp_path / "other")}))
