import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import lines_of

from skipwise import cli
from skipwise.inference import modes
from skipwise.inference.generate import LocalGeneration

from .conftest import Run, random_ids


@pytest.fixture
def run(runs: dict[str, Run]) -> str:
    return str(runs["lora"].folder)


@pytest.fixture
def document(tmp_path: Path) -> str:
    file = tmp_path / "document.txt"
    file.write_text("".join(chr(97 + token % 26) for token in random_ids(180)))
    return str(file)


def records(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    assert cli.main(["generate", *arguments, "--max-new-tokens", "4", "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_the_mode_goes_by_the_length_unless_it_is_said(run: str, capsys: Any) -> None:
    def mode(*arguments: str) -> str:
        return records(capsys, run, *arguments)[0]["mode"]

    assert mode("--prompt", "x" * 60) == "short"
    assert mode("--prompt", "x" * 61) == "long"
    assert mode("--prompt", "x", "--mode", "long") == "long"


def test_a_page_or_a_compressed_text_is_read_as_its_text(run: str, tmp_path: Path, capsys: Any) -> None:
    text = "a heath and its paths\n" * 3
    (tmp_path / "plain.txt").write_text(text)
    (tmp_path / "page.html").write_text(
        f"<html><head><style>b {{}}</style></head><body><pre>{text}</pre></body></html>"
    )
    (tmp_path / "packed.txt.gz").write_bytes(gzip.compress(text.encode()))
    read = {
        path.name: records(capsys, run, "--prompt-file", str(path), "--stats")[0]["prompt_tokens"]
        for path in tmp_path.iterdir()
    }
    assert read["packed.txt.gz"] == read["plain.txt"]
    assert abs(read["page.html"] - read["plain.txt"]) <= 1
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(text.encode())[:20])
    assert cli.main(["generate", run, "--prompt-file", str(tmp_path / "cut.txt.gz")]) == 2
    assert "cut.txt.gz" in capsys.readouterr().err.splitlines()[0]


def test_weights_in_eight_bits_are_a_flag(run: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    seen: list[str] = []
    monkeypatch.setattr(
        modes, "hold_in_eight_bits", lambda models: seen.extend(type(model).__name__ for model in models)
    )
    (answered,) = records(capsys, run, "--prompt", "def", "--weights", "int8")
    assert answered["new_tokens"] == 4
    records(capsys, run, "--prompt", "def", "--weights", "int8", "--mode", "long")
    records(capsys, run, "--prompt", "def")
    assert len(seen) == 3


def test_two_questions_read_the_document_once(run: str, document: str, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--prompt-file", document, "--chunk", "64", "--stats", "--cache", "quantized-8"]
    both = records(capsys, run, *asked, "--ask", "who?", "--ask", "when?")
    alone = records(capsys, run, *asked, "--ask", "when?")
    assert [record["stats"]["reused_tokens"] for record in both] == [0, 128]
    assert both[1]["text"] == alone[0]["text"]
    assert [record["ask"] for record in both] == ["who?", "when?"]
    lengths = [(row["what"], row["tokens"], row["new"]) for row in both[0]["stats"]["by_length"]]
    assert lengths == [("read", 64, 64), ("read", 128, 64), ("read", 187, 59), ("written", 190, 3)]
    assert both[0]["stats"]["cache"] == "quantized-8"
    arguments = ["generate", run, *asked[:4], "--max-new-tokens", "3", "--ask", "who?"]
    assert cli.main([*arguments, "--ask", "when?"]) == 0
    labels = [line for line in capsys.readouterr().out.splitlines() if line.startswith("---")]
    assert labels == ["--- who?", "--- when?"]
    assert cli.main(arguments) == 0
    assert "---" not in capsys.readouterr().out


def test_stats_are_a_table_on_stderr_and_the_text_is_alone_on_stdout(run: str, document: str, capsys: Any) -> None:
    arguments = ["generate", run, "--prompt-file", document, "--max-new-tokens", "4", "--chunk", "64"]
    assert cli.main([*arguments, "--stats"]) == 0
    streamed = capsys.readouterr()
    assert cli.main([*arguments, "--no-stream"]) == 0
    at_once = capsys.readouterr()
    assert streamed.out == at_once.out
    assert at_once.err == ""
    first, names, *rows = streamed.err.splitlines()
    assert "long mode, dynamic cache: 180 tokens read, 4 written" in first
    assert names.split() == ["up", "to", "tokens", "time", "tokens/s", "cache", "peak"]
    assert [row.split()[:3] for row in rows] == [
        ["64", "read", "64"],
        ["128", "read", "64"],
        ["180", "read", "52"],
        ["183", "written", "3"],
    ]


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), 2, "after 0 of 180 tokens; give a smaller --chunk than 64"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2, "--cache quantized-8"),
        (RuntimeError("shapes do not match"), 70, "this is a bug"),
    ],
)
def test_too_little_memory_is_one_line_and_other_errors_are_bugs(
    error: Exception,
    code: int,
    words: str,
    run: str,
    document: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(LocalGeneration, "_forward", fail)
    arguments = ["--prompt-file", document, "--chunk", "64", "--max-new-tokens", "4"]
    assert cli.main(["generate", run, *arguments]) == code
    message = capsys.readouterr().err
    assert words in message
    assert code == 70 or len(lines_of(message)) == 1


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (["--cache", "tiny"], "'tiny'"),
        (["--max-new-tokens", str(10**12)], "256"),
        (["--mode", "short", "--max-new-tokens", "64"], "64"),
        (["--chunk", "100"], "100"),
        (["--base", "/no/such"], "--base"),
    ],
)
def test_a_bad_option_gets_one_line(option: list[str], words: str, run: str, capsys: Any) -> None:
    assert cli.main(["generate", run, "--prompt", "x", *option]) == 2
    line = capsys.readouterr().err
    assert words in line
    assert len(lines_of(line)) == 1
