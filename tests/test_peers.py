"""The benchmark beside other programs: what cannot be installed is skipped with its reason, and the table is right."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Benchmarks are run from the repository's root."""
    monkeypatch.syspath_prepend(str(ROOT))


def test_what_pip_cannot_install_is_skipped_with_its_reason_and_tried_again(tmp_path: Path) -> None:
    from benchmarks.peers.installing import Peer, SkippedError, install

    peer = Peer(name="none", packages=["no-such-thing==9"], shown="No such thing 9")
    asked = []

    def pip(code: int) -> Any:
        def run(command: list[str], **_: Any) -> Any:
            asked.append(command)
            return SimpleNamespace(returncode=code, stderr="Looking\nERROR: No matching distribution found\n")

        return run

    def slow(command: list[str], timeout: float, **_: Any) -> Any:
        raise subprocess.TimeoutExpired(command, timeout)

    with pytest.raises(SkippedError, match=r"no-such-thing==9 failed: ERROR: No matching distribution found"):
        install(peer, tmp_path, pip(1))
    with pytest.raises(SkippedError, match="took more than 15 minutes"):
        install(peer, tmp_path, slow)
    python = install(peer, tmp_path, pip(0))
    assert python == install(peer, tmp_path, pip(1)), "what is installed is not installed again"
    assert [command[-1] for command in asked] == ["no-such-thing==9"] * 2
    seen = "import sys, numpy; print(sys.prefix); print(numpy.__file__)"
    prefix, numpy = subprocess.run([python, "-c", seen], capture_output=True, text=True, check=True).stdout.split()
    assert prefix == str(tmp_path / "none"), "an environment of its own"
    assert numpy == __import__("numpy").__file__, "which sees the packages of this one"


def test_a_measurement_that_fails_is_skipped_with_its_last_line() -> None:
    from benchmarks.peers.installing import SkippedError, measure_apart

    def run(command: list[str], **_: Any) -> Any:
        assert command[:3] == [sys.executable, "-m", "benchmarks.peers.training"]
        return SimpleNamespace(returncode=1, stderr="Traceback\nMemoryError: too much\n", stdout="")

    with pytest.raises(SkippedError, match="training failed with 1: MemoryError: too much"):
        measure_apart("training", {}, run=run)


def test_ratios_are_of_the_same_case_and_metric() -> None:
    from benchmarks.peers.rows import OURS, Row, Skipped, table

    def row(case: str, side: str, *values: float, different: str = "") -> Row:
        return Row(part="training", case=case, metric="seconds", side=side, values=values, different=different)

    found = [
        row("512", OURS, 1.0, 3.0, 1.5),
        row("512", "TRL", 2.0, 4.0, 2.0, different="logs entropy"),
        row("2048", "TRL", 9.0),
        Skipped(part="serving", side="llama.cpp", reason="pip failed"),
    ]
    assert table(found).splitlines()[2:] == [
        "| 512 | seconds | skipwise | 1.5 | 1 to 3 | |".replace("| |", "|  |"),
        "| 512 | seconds | TRL (logs entropy) | 2 | 2 to 4 | 0.750 |",
        "| 2048 | seconds | TRL | 9 |  |  |",
        "| serving | | llama.cpp | skipped | pip failed | |",
    ]


def test_every_part_is_there_and_its_rows_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks.peers import __main__, training
    from benchmarks.peers.plan import Plan
    from benchmarks.peers.rows import Row, Skipped

    def measure(plan: Plan) -> Iterator[Row | Skipped]:
        assert (plan.windows, plan.rounds) == ((128, 256), 1)
        yield Row(part="training", case="512", metric="seconds", side="skipwise", values=[2.0])
        yield Skipped(part="training", side="TRL", reason="pip failed")

    monkeypatch.setattr(training, "measure", measure)
    __main__.main([str(tmp_path), "--only", "training", "--small", "--folder", str(tmp_path)])
    lines = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert lines[0]["median"] == 2.0
    assert lines[1]["reason"] == "pip failed"
    assert "| training | | TRL | skipped | pip failed | |" in capsys.readouterr().out
    for module in __main__.PARTS.values():
        assert (ROOT / "benchmarks" / "peers" / f"{module}.py").is_file()


def test_losses_that_differ_stop_the_comparison_of_times() -> None:
    from benchmarks.peers.training import SKIPS, _rows

    def run(loss: float) -> dict[str, Any]:
        return {"wall": [1.0, 2.0], "cpu": [1.0, 2.0], "losses": [2.0, loss], "peak_gib": 1.0}

    sides = {"bare loop": [run(1.50001)], "skipwise": [run(1.5)], SKIPS: [run(1.9)]}
    rows = {(row.metric, row.side): row for row in _rows(512, sides)}
    assert rows["seconds", "bare loop"].values == [1.0, 2.0]
    with pytest.raises(AssertionError, match="losses of bare loop"):
        list(_rows(512, {**sides, "bare loop": [run(1.501)]}))
