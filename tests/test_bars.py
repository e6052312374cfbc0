"""Progress bars where there is no terminal: lines that a person can read in a job's log."""

import io
import logging
import re
import sys
import time
from pathlib import Path

import pytest
from tqdm import tqdm

import skipwise
from skipwise.bars import LINE_SECONDS, Bar, Lines
from skipwise.imports import LinesAboveBars


def test_nested_bars_leave_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with Bar(total=3, desc="all", leave=False) as whole:
        for number in range(3):
            with Bar(total=200, desc=f"part {number}", leave=False) as part:
                for _ in range(200):
                    part.update()
            whole.update()
    with Bar(total=50, desc="training") as training:
        for step in range(50):
            training.update()
            training.set_postfix_str(f"loss {step}")
    shown = capsys.readouterr().err
    assert not re.search(r"[\r\x1b]", shown)
    assert [re.sub(r"\|.*\| ", " ", line).partition(" [")[0] for line in shown.splitlines()] == [
        "all:   0% 0/3",
        "part 0:   0% 0/200",
        "part 1:   0% 0/200",
        "part 2:   0% 0/200",
        "training:   0% 0/50",
        "training: 100% 50/50",
    ]
    assert shown.splitlines()[-1].endswith("loss 49]")


def test_a_line_a_minute_and_at_once_what_is_new() -> None:
    out, now = io.StringIO(), [1000.0]
    lines = Lines(out, lambda: now[0])
    for second in range(150):
        now[0] = 1000.0 + second
        lines.write(f"\rwork: {second}")
    lines.write("\rother work: 0")
    lines.write("\rother work: 1")
    lines.write("\n")
    at = int(LINE_SECONDS)
    assert out.getvalue().splitlines() == [
        "work: 0",
        f"work: {at}",
        f"work: {2 * at}",
        "other work: 0",
        "other work: 1",
    ]


@pytest.mark.parametrize("disable", [True, None])
def test_a_bar_that_is_hidden_writes_nothing(disable: bool | None, capsys: pytest.CaptureFixture[str]) -> None:
    """None hides where there is no terminal."""
    for _ in Bar(range(3), desc="hidden", disable=disable):
        pass
    assert capsys.readouterr().err == ""


def test_a_bar_that_waits_shows_once_its_time_has_come(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in Bar(range(3), desc="slow", delay=0.01):
        time.sleep(0.15)
    assert capsys.readouterr().err.splitlines()[-1].startswith("slow: 100%")


def test_log_lines_stand_between_those_of_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with Bar(total=2, desc="work") as bar:
        LinesAboveBars().emit(logging.makeLogRecord({"msg": "a warning"}))
        bar.update(2)
    assert [line.partition(":")[0] for line in capsys.readouterr().err.splitlines()] == ["work", "a warning", "work"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_a_bar_is_that_of_tqdm(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    for kind in (Bar, tqdm):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", terminal := Terminal())
            for _ in kind(range(3), desc="work", bar_format="{desc} {n}", mininterval=0):
                pass
        shown.append(terminal.getvalue())
    assert shown[0] == shown[1]
    assert "\r" in shown[0]


def test_a_process_without_stderr_has_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert list(Bar(range(3), desc="unseen")) == [0, 1, 2]


def test_every_bar_is_of_this_module() -> None:
    using = [path.name for path in Path(skipwise.__file__).parent.rglob("*.py") if "import tqdm" in path.read_text()]
    assert sorted(using) == ["bars.py", "imports.py"]
