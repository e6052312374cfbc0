"""The demo in a shorter version: fewer steps, a nearer target, fewer passkeys; the claims are the same."""

import importlib
import json
import shlex
from pathlib import Path

import pytest
from forked import start
from safetensors import safe_open

from skipwise import cli
from skipwise.demo import BASE, Claims, DemoSettings, run_demo
from skipwise.evals import EvalResult
from skipwise.report.evidence import Arm


def result(metric: str, length: int, value: float) -> EvalResult:
    return EvalResult(
        task="t", length_tokens=length, metric=metric, value=value, ci_low=None, ci_high=None, num_samples=1,
        num_skipped=0, seed=0, details={},
    )  # fmt: skip


def test_claims_are_read_off_the_records():
    falling = [result("perplexity", 256, 9.0), result("perplexity", 512, 8.0), result("perplexity", 1024, 7.0)]
    found = [result("accuracy", 256, 1.0), result("accuracy", 1024, 0.9)]
    assert Claims.of(falling + found) == Claims(perplexity_falls=True, worst_passkeys=0.9)
    assert Claims.of(falling + found).retrieves
    rising = [*falling[:2], result("perplexity", 1024, 8.5)]
    assert not Claims.of(rising + found).perplexity_falls
    assert not Claims.of([*falling, result("accuracy", 256, 1.0), result("accuracy", 512, 0.85)]).retrieves


@pytest.mark.parametrize(
    ("perplexity", "accuracy", "code"), [(8.0, 0.9, 0), (8.0, 0.85, 1), (9.5, 1.0, 1), (9.0, 1.0, 1), (9.5, 0.85, 1)]
)
def test_a_claim_that_fails_is_a_negative_verdict(perplexity, accuracy, code, monkeypatch, tmp_path, capsys):
    results = [result("perplexity", 256, 9.0), result("perplexity", 512, perplexity)]
    results += [result("accuracy", 256, 1.0), result("accuracy", 512, accuracy)]
    arms = [Arm(name=name, results=results) for name in ("base", "interpolation only", "extended")]
    monkeypatch.setattr(importlib.import_module("skipwise.demo"), "run_demo", lambda *_, **__: arms)
    assert cli.main(["demo", "--output", str(tmp_path), "--json"]) == code
    printed = json.loads(capsys.readouterr().out)
    assert (printed["perplexity_falls"], printed["passkeys"]) == (perplexity < 9.0, accuracy)


def test_the_embedded_model_is_as_described():
    weights = BASE / "model.safetensors"
    assert sum(file.stat().st_size for file in BASE.iterdir()) < 10 * 2**20
    with safe_open(weights, "np") as tensors:
        parameters = sum(tensors.get_tensor(name).size for name in tensors.keys())  # noqa: SIM118
    assert 2e6 <= parameters <= 4e6
    assert json.loads((BASE / "config.json").read_text())["max_position_embeddings"] == 256


@pytest.mark.slow
def test_the_short_demo_extends_and_retrieves(tmp_path):
    settings = DemoSettings(target=1024, steps=60, trials=10, num_depths=5, num_documents=16)
    base, interpolated, extended = run_demo(tmp_path, settings=settings)
    at_target = {arm.name: value_at(arm.results, "perplexity", 1024) for arm in (base, interpolated, extended)}
    assert at_target["extended"] < at_target["interpolation only"] < at_target["base"]
    claims = Claims.of(extended.results)
    assert claims.perplexity_falls
    assert claims.retrieves
    assert value_at(base.results, "accuracy", 256) == 1.0, "the base finds every key within its own window"
    assert value_at(base.results, "accuracy", 1024) < 0.2
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") >= 2
    assert all(f">{arm.name}<" in page for arm in (base, interpolated, extended))
    record = json.loads((tmp_path / "model" / "skipwise.json").read_text())
    verdicts = {verdict["name"]: verdict["status"] for verdict in record["preflight"]}
    assert verdicts.keys() >= {"reach", "layers", "causal", "shift", "positions", "rows", "tables", "loss", "dilution"}
    assert "fail" not in verdicts.values()


SMALLEST = """
import functools, sys
import skipwise.demo.run as demo
from skipwise import cli
from skipwise.train.trainer import SkipwiseTrainer

def training_step(*arguments, own=SkipwiseTrainer.training_step):
    print("in a step", flush=True)
    return own(*arguments)

SkipwiseTrainer.training_step = training_step

sizes = dict(target=512, steps=6, trials=2, num_depths=1, num_documents=2, scored_tokens=32)
demo.DemoSettings = functools.partial(demo.DemoSettings, **sizes)
sys.exit(cli.main(["demo", "--output", sys.argv[1], "--seed", "3"]))
"""


def demo_until(words: str | None, folder: Path) -> tuple[int, str]:
    """Exit code and output of a demo that gets a Ctrl-C as soon as it has said these words."""
    demo = start(SMALLEST, folder)
    if words:
        demo.until(words)
        demo.interrupt()
    return demo.wait(), demo.stdout + demo.stderr


def kept_samples(folder: Path) -> list[tuple[str, int]]:
    lines = [(file.parent.name, line) for file in folder.rglob("*.jsonl") for line in file.read_text().split("\n")]
    return [(key, json.loads(line)["index"]) for key, line in lines if line]


@pytest.mark.slow
def test_ctrl_c_stops_the_demo_and_the_same_command_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv("SKIPWISE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "a demo"
    for words in ("measuring interpolation only", "in a step"):
        code, said = demo_until(words, folder)
        assert code == 130, said
        again = said.strip().splitlines()[-1].partition("Continue with: ")[2]
        assert shlex.split(again) == ["skipwise", "demo", "--output", str(folder), "--seed", "3"]
        assert "measuring extended" not in said
        assert "Traceback" not in said
    kept = kept_samples(folder / ".samples")
    # Of two arms, at 256 and 512 tokens, two documents and two passkeys each.
    assert len(kept) == len(set(kept)) == 2 * 2 * (2 + 2), "nothing is measured twice"
    checkpoint = next((folder / "model").glob("checkpoint-*"))

    code, said = demo_until(None, folder)
    assert code in (0, 1), said
    record = json.loads((folder / "model" / "skipwise.json").read_text())
    assert record["resumed_at_step"] == int(checkpoint.name.rpartition("-")[2]) > 0
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    assert len([record for record in records if record["metric"] == "perplexity"]) == 3 * 2
    assert {file.name for file in folder.iterdir()} == {"model", "records.jsonl", "report.html"}
    assert not list((folder / "model").glob("checkpoint-*"))


def value_at(results, metric, length):
    return next(r.value for r in results if r.metric == metric and r.length_tokens == length)
