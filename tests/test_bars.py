"""Progress bars where there is no terminal: lines that a person can read in a job's log."""

import io
import re

import pytest

from skipwise.bars import LINE_SECONDS, Bar, Lines


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


def test_a_bar_that_is_hidden_writes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in Bar(range(3), desc="hidden", disable=True):
        pass
    assert capsys.readouterr().err == ""
