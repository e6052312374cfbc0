"""What is read from an audit log, beside plain loops over the same lines."""

import gzip
import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from refusals import lines_of

from serve.made_audit import WINDOW, lines
from skipwise import serve
from skipwise.cli import main
from skipwise.report.words import say
from skipwise.serve.audit import AuditLog, AuditRecord, read_log
from skipwise.serve.operations import Durations, Operations
from skipwise.serve.operations_page import operations_json

Lines = Sequence[dict[str, Any]]
ADDED = {"role", "code", "original_window", "asked_tokens", "wait_seconds", "first_token_seconds", "compute_seconds"}


def write(path: Path, made: Lines) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in made))
    return path


def read(path: Path, made: Lines, **how: Any) -> dict[str, Any]:
    return operations_json(Operations.read([write(path, made)], **how))


def ran(line: dict[str, Any]) -> bool:
    return bool(line["compute_seconds"])


def expected(made: Lines) -> dict[str, Any]:
    """What `operations_json` says of some requests, by lists and loops."""

    def seconds(name: str) -> Any:
        values = sorted(line[name] for line in made if line[name] is not None)
        if not values:
            return {"median": None, "p95": None, "worst": None, "requests": 0}
        median, p95 = (values[math.ceil(share * len(values)) - 1] for share in (0.5, 0.95))
        exact = {"median": median, "p95": p95, "worst": values[-1], "requests": len(values)}
        return pytest.approx(exact, rel=0.0101, abs=1e-4)

    computed = [line for line in made if ran(line)]
    outcomes = Counter("client_left" if line["status"] == 499 else line["code"] or "answered" for line in made)
    total = sum(line["compute_seconds"] for line in computed)
    return {
        "requests": len(made),
        "outcomes": dict(outcomes),
        "prompt_tokens": sum(line["prompt_tokens"] for line in computed),
        "completion_tokens": sum(line["completion_tokens"] for line in computed),
        "compute_seconds": pytest.approx(total, abs=1e-3) if computed else None,
        "wait_seconds": seconds("wait_seconds"),
        "first_token_seconds": seconds("first_token_seconds"),
    }


@pytest.mark.parametrize("seed", range(3))
def test_all_numbers_are_those_of_plain_loops(tmp_path: Path, seed: int) -> None:
    made = [*lines(1500, seed=seed)]
    found = read(tmp_path / "audit.jsonl", made)
    asked = [line for line in made if line["endpoint"] == "/v1/completions"]
    computed = [line for line in asked if ran(line)]
    beyond = [line for line in computed if line["asked_tokens"] > WINDOW]
    assert found["requests"] == expected(asked)
    assert found["needed_long"] == expected(beyond)
    for mode in ("short", "long", None):
        assert found["modes"][mode or "none"] == expected([line for line in asked if line["mode"] == mode])
    for role in ("reader", "analyst", "batch", "-"):
        own = [line for line in asked if line["role"] == role]
        keys = len({line["key"] for line in own} - {"-"})
        assert found["roles"]["no key" if role == "-" else role] == {**expected(own), "keys": keys}
    for length, values in found["lengths"].items():
        within = range(int(length) // 2 + 1, int(length) + 1)
        assert values == expected([line for line in computed if line["asked_tokens"] in within])
    assert sum(values["requests"] for values in found["lengths"].values()) == len(computed)
    limits = {(limit.pop("role"), limit.pop("max_context")): limit for limit in found["limits"]}
    for (role, tokens), values in limits.items():
        own = [line for line in computed if line["role"] == role]
        assert values == expected([line for line in own if line["asked_tokens"] > tokens])
    assert {tokens for role, tokens in limits if role == "analyst"} == {8192, 16384, 32768, 65536}
    assert (found["other_requests"], found["original_tokens"]) == (len(made) - len(asked), WINDOW)
    assert (found["first_time"], found["last_time"]) == (made[0]["time"], made[-1]["time"])


@pytest.mark.parametrize(("days", "letters"), [(0.9, 0), (2.5, 13), (9, 10), (100, 7)])
def test_a_log_of_more_than_a_day_is_told_by_hours_days_or_months(tmp_path: Path, days: float, letters: int) -> None:
    made = [*lines(800, days=days)]
    asked = [line for line in made if line["endpoint"] == "/v1/completions"]
    times = {line["time"][:letters] for line in asked} - {""}
    found = read(tmp_path / "audit.jsonl", made)["time"]
    assert found == {time: expected([line for line in asked if line["time"].startswith(time)]) for time in times}


@pytest.mark.parametrize("values", [[0.0], [1e-5, 3.0], [0.0, 0.0, 7.25], [1e-4 * 1.01**n for n in range(1500)]])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.95, 1.0])
def test_quantiles_are_exact_to_one_per_cent(values: list[float], share: float) -> None:
    durations = Durations()
    for value in values:
        durations.add(value)
    exact = sorted(values)[math.ceil(share * len(values)) - 1]
    assert durations.quantile(share) == pytest.approx(exact, rel=0.0101, abs=1e-4)
    assert durations.most == max(values)


def test_rotated_compressed_and_torn_files_are_read_as_one(tmp_path: Path) -> None:
    made = [*lines(600)]
    whole = read(tmp_path / "whole.jsonl", made)
    parts = [write(tmp_path / f"audit.{number}", made[number::3]) for number in range(3)]
    compressed = tmp_path / "old.log"  # It is told by its bytes.
    compressed.write_bytes(gzip.compress(parts[0].read_bytes()))
    assert operations_json(Operations.read([compressed, *parts[1:]])) == whole
    # The end of one is missing, one has a line of another kind, one too long, one with a value that cannot be.
    cut = tmp_path / "cut.gz"
    cut.write_bytes(compressed.read_bytes()[:-300])
    with parts[1].open("a") as file:
        file.write('{"time": "2026-11-30T00:00')
    bad = [b"not JSON\n", b"x" * 200_000 + b"\n", json.dumps({**made[0], "prompt_tokens": -1}).encode() + b"\n", b"\n"]
    bad += [
        json.dumps({**made[0], "time": "2026-02-31T00:00:00Z"}).encode() + b"\n",
        b"\xff\xfe\n",
        b"[" * 5000 + b"\n",
    ]
    parts[2].write_bytes(b"".join(bad) + parts[2].read_bytes())
    found = Operations.read([cut, *parts[1:]])
    assert (found.torn, found.broken) == (2, 6)
    told = sum(tally.requests for tally in found.cells.values()) + found.others
    assert 400 <= told < 600


def test_a_line_that_a_crash_has_torn_does_not_spoil_the_next(tmp_path: Path) -> None:
    path = write(tmp_path / "audit.jsonl", [*lines(2)])
    path.write_bytes(path.read_bytes()[:-10])
    log = AuditLog(path)
    log.write(AuditRecord(request_id="a", status=200, endpoint="/v1/completions"))
    assert [one if isinstance(one, str) else one.request_id for one in read_log(path)] == [f"{0:024x}", "broken", "a"]


def test_lines_of_earlier_versions_are_counted_and_said(tmp_path: Path, capsys: Any) -> None:
    new = [*lines(300)]
    old = [{name: value for name, value in line.items() if name not in ADDED} for line in new]
    found = read(tmp_path / "audit.jsonl", old, original_tokens=256)
    computed = [line for line in new if line["mode"] and line["status"] in (200, 499)]
    came_to = [line["prompt_tokens"] + line["completion_tokens"] for line in computed]
    assert found["older_lines"] == 300
    assert list(found["roles"]) == ["not in the log"]
    assert found["requests"]["prompt_tokens"] == sum(line["prompt_tokens"] for line in computed)
    assert found["requests"]["compute_seconds"] is None
    assert found["needed_long"]["requests"] == sum(tokens > 256 for tokens in came_to)
    mixed = write(tmp_path / "mixed.jsonl", [*old, *new])
    assert main(["report", "--operations", str(mixed), "--out", str(tmp_path / "page.html")]) == 0
    assert "300 lines are by an earlier version" in capsys.readouterr().out


def test_the_command_writes_a_page_without_names_of_keys(tmp_path: Path, capsys: Any) -> None:
    made = [*lines(800)]
    log, page = write(tmp_path / "audit.jsonl", made), tmp_path / "page.html"
    command = ["report", "--operations", str(log), "--out", str(page)]
    assert main(command) == 0
    text, html = capsys.readouterr().out, page.read_text()
    for private in ("ada", "127.0.0.1", *{line["key"] for line in made} - {"-"}, made[0]["request_id"]):
        assert private not in text
        assert private not in html
    computed = [line for line in made if ran(line)]
    beyond = [line for line in computed if line["mode"] == "long"]
    took = sum(line["compute_seconds"] for line in beyond) / sum(line["compute_seconds"] for line in computed)
    for said in (f"{len(beyond) / len(computed):.1%} needed the long mode", f"they took {took:.1%} of"):
        assert said in text
        assert said in html
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["needed_long"]["requests"] == len(beyond)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "no request"),
        (b"\n\n", "no request"),
        (b'{"task": "passkey", "value": 1.0}\n' * 5000, "not an audit log"),
        (b"\x00\xff" * 200_000, "not an audit log"),
        (gzip.compress(b"text\n", mtime=0), "not an audit log"),
        (b"\x1f\x8b and no more", "not an audit log"),
        (None, "No such file"),
    ],
)
def test_other_files_are_told_in_one_line(tmp_path: Path, content: bytes | None, named: str, capsys: Any) -> None:
    path = tmp_path / "audit.jsonl"
    if content is not None:
        path.write_bytes(content)
    assert main(["report", "--operations", str(path), "--out", str(tmp_path / "page.html")]) == 2
    told = capsys.readouterr().err
    assert len(lines_of(told)) == 1
    assert named in told
    assert "audit.jsonl" in told
    assert not (tmp_path / "page.html").exists()


def test_mistakes_of_the_command_are_one_line(tmp_path: Path, capsys: Any) -> None:
    log = str(write(tmp_path / "audit.jsonl", [*lines(3)]))
    for arguments, named in (
        ([log, log], "given twice"),
        ([str(tmp_path)], "cannot be read"),
        ([log, "--csv", "x"], "--csv"),
    ):
        assert main(["report", "--operations", *arguments, "--out", str(tmp_path / "page.html")]) == 2
        told = capsys.readouterr().err
        assert len(lines_of(told)) == 1
        assert named in told


def test_every_reason_of_a_refusal_has_words() -> None:
    sources = "".join(path.read_text() for path in Path(str(serve.__file__)).parent.glob("*.py"))
    codes = {*re.findall(r'code="([a-z_]+)"', sources), "answered", "client_left"}
    assert len(codes) > 15
    for code in codes:
        assert say(f"operations.reasons.{code}")
