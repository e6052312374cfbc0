"""A comparison's settings: what arms stand for, and what is refused before anything runs."""

import re
import subprocess
import sys
from fractions import Fraction
from typing import Any

import pytest
from tiny_models import tiny_config

from skipwise import cli
from skipwise.compare import ARM_KINDS, Comparison
from skipwise.compare.jobs import Planner
from skipwise.compare.running import _Pace
from skipwise.errors import ConfigError

BASE = tiny_config("llama", max_position_embeddings=256)
RUN: dict[str, Any] = {
    "model": "embedded",
    "target": 4096,
    "training": {"max_steps": 10, "per_device_train_batch_size": 16, "gradient_accumulation_steps": 1},
}


def comparison(**settings: Any) -> Comparison:
    return Comparison.from_mapping({**RUN, "arms": ["base", "pose", "full"], **settings})


def jobs_of(made: Comparison) -> dict[str, Any]:
    return {job.name: job for job in Planner(made, BASE).arm_jobs()}


def test_the_help_names_every_kind_of_arm(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    assert cli.main(["compare", "--help"]) == 0
    shown = capsys.readouterr().out
    (names,) = re.findall(r"--arms NAME,[.]{3} +What to compare: (.*?)[.]", " ".join(shown.split()))
    assert set(names.split(", ")) == set(ARM_KINDS)


def test_a_scaled_model_is_scaled_by_the_same_kind_in_every_arm() -> None:
    rope = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
    scaled = tiny_config("llama", max_position_embeddings=512, rope_parameters=rope)
    jobs = Planner(comparison(arms=["interpolation-only", "pose"]), scaled).arm_jobs()
    assert [job.run.interpolation for job in jobs] == [{"kind": "linear"}, {"kind": "linear"}]


def test_every_kind_of_arm_makes_a_run() -> None:
    jobs = jobs_of(comparison(arms=list(ARM_KINDS), seeds=[0, 3]))
    trained = [name for name, kind in ARM_KINDS.items() if kind.trained]
    assert {name for name in jobs if "seed" in name} == {f"arms/{name}/seed-{s}" for name in trained for s in (0, 3)}
    untrained = {"base", "interpolation-only", "dynamic-ntk", "dca", "string"}
    assert {name for name in jobs if "seed" not in name} == {f"arms/{name}" for name in untrained}


@pytest.mark.parametrize("arm", [name for name, kind in ARM_KINDS.items() if kind.trained])
def test_every_arm_takes_the_same_tokens_a_step(arm: str) -> None:
    made = comparison(arms=["pose", *({arm} - {"pose"})])
    run = jobs_of(made)[f"arms/{arm}/seed-0"].run
    windows = run.training["per_device_train_batch_size"] * run.training["gradient_accumulation_steps"]
    train = run.resolve_window(256).train
    assert train == (4096 if ARM_KINDS[arm].whole_target else 256)
    assert windows * train == 16 * 256
    assert run.training["max_steps"] == 10


def test_an_arm_may_train_otherwise_and_write_its_window_as_people_do() -> None:
    shared = {**RUN["training"], "learning_rate": 1e-3, "weight_decay": 0.1}
    wide = {"name": "wide", "like": "pose", "window": "1k", "sampler": {"skips": "flat"}}
    jobs = jobs_of(comparison(training=shared, arms=["pose", {**wide, "training": {"learning_rate": 5e-4}}]))
    run = jobs["arms/wide/seed-0"].run
    assert run.sampler == {"kind": "pose", "skips": "flat"}
    training = run.training
    assert (training["learning_rate"], training["weight_decay"]) == (5e-4, 0.1)
    assert training["per_device_train_batch_size"] * training["gradient_accumulation_steps"] * 1024 == 4096
    assert jobs["arms/pose/seed-0"].run.training["learning_rate"] == 1e-3


def test_what_all_share_is_in_every_run() -> None:
    linear = {"name": "linear", "like": "pose", "interpolation": "linear"}
    jobs = jobs_of(comparison(interpolation="ntk", arms=["pose", linear]))
    assert all(job.run.data.min_tokens == 4096 for job in jobs.values()), "documents as long as the target"
    assert jobs["arms/pose/seed-0"].run.interpolation == {"kind": "ntk"}
    assert jobs["arms/linear/seed-0"].run.interpolation == {"kind": "linear"}


def test_costs_are_of_one_window_at_each_target() -> None:
    made = comparison(costs={"targets": ["1k", "16k"], "steps": 3})
    jobs = {job.name: job for job in Planner(made, BASE).cost_jobs()}
    assert set(jobs) == {f"costs/{arm}-{target}" for arm in ("pose", "full") for target in (1024, 16384)}
    for job in jobs.values():
        assert job.run.training["per_device_train_batch_size"] == job.run.training["gradient_accumulation_steps"] == 1
        assert job.run.training["max_steps"] == 4
    assert jobs["costs/full-16384"].run.resolve_window(256).train == 16384
    assert jobs["costs/pose-16384"].run.resolve_window(256).train == 256


def test_yaml_gives_back_the_same_comparison(tmp_path: Any) -> None:
    flat = {"name": "flat", "like": "pose", "sampler": {"skips": "flat"}}
    made = comparison(arms=["base", flat, "full"], seeds=[1, 2])
    file = tmp_path / "comparison.yaml"
    file.write_text(made.to_yaml())
    assert Comparison.from_yaml(file) == made


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"arms": ["poze"]}, ["'poze'", "'pose'"]),
        ({"arms": []}, ["'arms'"]),
        ({"parallel": {"shard": True}}, ["arm 'base'", "parallel.shard"]),
        ({"parallel": {"context": 2}}, ["arm 'base'", "parallel.context"]),
        ({"arms": "pose"}, ["'arms'"]),
        ({"arms": ["pose", "pose"]}, ["'arms'", "'pose'"]),
        ({"arms": [{"like": "pose"}]}, ["'arms'"]),
        ({"arms": ["pose", {"name": "x", "like": "pose", "target": 8192}]}, ["'x'", "'target'"]),
        ({"arms": ["pose", {"name": "x", "like": "pose", "training": {"max_steps": 3}}]}, ["'training.max_steps'"]),
        ({"reference": "plain"}, ["'reference'", "'plain'", "base, pose, full"]),
        ({"reference": "base", "arms": ["base", "full", "full-equal-time"]}, ["'full-equal-time'", "'base'"]),
        ({"seeds": [1, 1]}, ["'seeds'"]),
        ({"seeds": []}, ["'seeds'"]),
        ({"seed": 1}, ["'seed'", "'seeds'"]),
        ({"costs": {"targets": ["1k"], "arms": ["base"]}}, ["'costs.arms'", "'base'"]),
        ({"evaluation": {"taks": []}}, ["evaluation.taks"]),
        ({"windw": 3}, ["'windw'", "'window'"]),
        ({"arms": ["pose", {"name": "../../x", "like": "pose"}]}, ["'../../x'"]),
        ({"arms": ["pose", {"name": "a/b", "like": "pose"}]}, ["'a/b'"]),
        ({"arms": ["pose", {"name": "x", "like": ["pose"]}]}, ["'x'", "['pose']"]),
        ({"arms": ["pose", {"name": "x", "like": "pose", "training": "fast"}]}, ["'x'", "'training'", "'fast'"]),
        ({"arms": ["pose", {"name": "x", "like": "pose", "sampler": "poze"}]}, ["'x'", "sampler.kind", "'poze'"]),
        ({"data": "stdlib"}, ["'data'", "'stdlib'"]),
        ({"run": {"model": "x"}}, ["'run'"]),
        # Four windows of 256 tokens a step are no window of 4096.
        ({"training": {**RUN["training"], "per_device_train_batch_size": 4}}, ["'full'", "4096", "1024"]),
        ({"arms": ["pose", {"name": "too many", "like": "pose", "sampler": {"chunks": 300}}]}, ["'too many'", "300"]),
    ],
)
def test_what_is_refused(settings: dict[str, Any], named: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        Planner(comparison(**settings), BASE).arm_jobs()
    assert all(name in str(error.value) for name in named), error.value
    assert "\n" not in str(error.value)


def test_a_worker_is_not_imported_before_it_is_run() -> None:
    command = [sys.executable, "-m", "skipwise.compare.worker", "no-such-job.json"]
    told = subprocess.run(command, capture_output=True, text=True).stderr
    assert "FileNotFoundError" in told
    assert "RuntimeWarning" not in told


def test_arms_at_full_length_leave_replay_out() -> None:
    mixture = [{"source": "docs", "weight": 0.5}, {"source": "notes", "weight": 0.4}, {"weight": 0.1, "replay": True}]
    jobs = jobs_of(comparison(data=mixture))
    for name, job in jobs.items():
        sources, is_full = [entry.source for entry in job.run.data.mixture], "full" in name
        assert sources == ["docs", "notes", *([] if is_full else [None])]
        assert job.run.short_share == (0 if is_full else Fraction(1, 10))
        assert all(entry.min_tokens == 4096 for entry in job.run.data.entries())
    assert any("full" in name for name in jobs)


def test_the_time_left_is_told_once_one_job_of_each_kind_is_done() -> None:
    base, first, second = jobs_of(comparison(arms=["base", "pose"], seeds=[0, 1])).values()
    pace = _Pace()
    assert pace.left([base, first, second]) == ""
    pace.note(base, 30.0)
    assert pace.left([first, second]) == ""
    pace.note(first, 100.0)
    assert pace.left([second]) == "; about 100 s left"
    pace.note(second, 141.0)
    assert pace.left([base, first, second]) == "; about 4 min left"  # 30 + 2 * 120.5 = 271 seconds.
