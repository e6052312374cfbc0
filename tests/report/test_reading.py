"""What a report reads: results files, comparisons, extended models; and what it says of those it cannot read."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_up_results import (
    comparison,
    record,
    records_of,
    regression,
    write_comparison,
    write_extended,
    write_lines,
)
from refusals import lines_of

from skipwise import cli
from skipwise.errors import CheckpointError, ConfigError, DataError
from skipwise.report.evidence import PERPLEXITY, Measure
from skipwise.report.reading import read_evidence


def test_a_file_is_one_arm_named_after_it_or_as_told(tmp_path: Path) -> None:
    first = write_lines(tmp_path / "one.jsonl", list(records_of("pose")))
    second = write_lines(tmp_path / "two.jsonl", list(records_of("base")))
    evidence = read_evidence([str(first), f"the base={second}"], original_tokens=256)
    assert [arm.name for arm in evidence.arms] == ["one", "the base"]
    assert [r.value for r in evidence.arms[1].by_length(PERPLEXITY).values()] == [8.4, 19.5, 70.4, 170.0, 172.0]


def test_further_results_of_an_arm_are_given_its_name(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path / "c")
    more = write_lines(tmp_path / "more.jsonl", [record("perplexity", "perplexity", 8192, 5.5, None, None)])
    arms = {arm.name: arm.by_length(PERPLEXITY) for arm in read_evidence([str(folder), f"pose={more}"]).arms}
    assert arms["pose"][8192].value == 5.5
    assert len(arms["pose"]) > 1


def test_results_of_one_file_go_to_the_arm_they_name(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "r.jsonl", list(records_of("pose")), compared="a")
    write_lines(path, list(records_of("base")), compared="b")
    write_lines(path, [record("perplexity", "perplexity", 256, 9.0, None, None)])
    arms = read_evidence([str(path)], original_tokens=256).arms
    assert [arm.name for arm in arms] == ["a", "b", "r"]
    assert len(arms[2].results) == 1


def test_the_untrained_arm_of_regression_is_a_part_and_no_arm(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "r.jsonl", [*regression(256, 0.1, "model"), *regression(256, 0.4, "interpolation only")]
    )
    (arm,) = read_evidence([str(path)], original_tokens=256).arms
    metric = "log_perplexity_ratio"
    assert arm.by_length(Measure("regression", metric))[256].value == 0.1
    assert arm.by_length(Measure("regression", metric, "interpolation only"))[256].value == 0.4


def test_checkpoints_of_one_file_are_arms_of_their_own(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "run.jsonl", [record("perplexity", "perplexity", 256, 9.0, None, None)], step=50)
    write_lines(path, [record("perplexity", "perplexity", 256, 8.0, None, None)], step=100)
    assert [arm.name for arm in read_evidence([str(path)], original_tokens=256).arms] == [
        "run, step 50",
        "run, step 100",
    ]


def test_a_comparison_tells_windows_arms_and_costs(tmp_path: Path) -> None:
    evidence = read_evidence([str(write_comparison(tmp_path / "c"))])
    assert (evidence.original_tokens, evidence.target_tokens) == (256, 4096)
    assert evidence.comparison is not None
    assert [arm.name for arm in evidence.arms] == list(evidence.comparison.arms)[:-1]
    assert evidence.number("full") == len(evidence.arms), "an arm without results comes last"
    assert evidence.base is evidence.arms[0]
    assert evidence.comparison.arms["full"].failed[0].why == "out of memory"


@pytest.mark.parametrize("nothing", [None, []])
def test_empty_parts_of_a_comparison_are_no_parts(tmp_path: Path, nothing: Any) -> None:
    parts = ("differences", "reached", "costs", "seeds")
    folder = write_comparison(tmp_path / "c", dict.fromkeys(parts, nothing))
    found = read_evidence([str(folder)]).comparison
    assert found is not None
    assert [len(getattr(found, part)) for part in parts] == [0, 0, 0, 0]


def test_a_comparison_whose_arms_all_failed_needs_no_results(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path / "c", {"arms": {"full": comparison()["arms"]["full"]}})
    (folder / "records.jsonl").unlink()
    evidence = read_evidence([str(folder)])
    assert not evidence.arms
    assert cli.main(["report", str(folder), "--out", str(tmp_path / "r.html")]) == 0
    assert "out of memory" in (tmp_path / "r.html").read_text()


def test_windows_are_read_from_the_models_that_results_name(tmp_path: Path) -> None:
    folder = write_extended(tmp_path / "model")
    path = write_lines(
        tmp_path / "r.jsonl", [record("perplexity", "perplexity", 256, 9.0, None, None)], model=str(folder)
    )
    evidence = read_evidence([str(path)])
    assert (evidence.original_tokens, evidence.target_tokens) == (256, 4096)
    (folder / "skipwise.json").unlink()
    # As the transformers library of the 4 era wrote it, with a maximum that was left below what the scaling reaches.
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    config = {"model_type": "llama", "hidden_size": 8, "num_attention_heads": 2, "max_position_embeddings": 512}
    (folder / "config.json").write_text(json.dumps({**config, "rope_theta": 10_000.0, "rope_scaling": scaling}))
    evidence = read_evidence([str(path)])
    assert (evidence.original_tokens, evidence.target_tokens) == (512, 2048)


LINE = json.dumps(record("perplexity", "perplexity", 256, 9.0, None, None))


def written(text: str, *names: str) -> Callable[[Path], list[str]]:
    """Sources that are files with this text."""

    def make(folder: Path) -> list[str]:
        for name in names:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)
        return [str(folder / name) for name in names]

    return make


def compared(**changes: Any) -> Callable[[Path], list[str]]:
    """A comparison with changes."""
    return lambda folder: [str(write_comparison(folder / "c", changes))]


def second_source(folder: Path) -> list[str]:
    other = write_lines(folder / "other.jsonl", list(records_of("pose")), compared="pose")
    return [str(write_comparison(folder / "c")), str(other)]


def no_records(folder: Path) -> list[str]:
    made = write_comparison(folder / "c")
    (made / "records.jsonl").unlink()
    (made / "records.jsonl").mkdir()
    return [str(made)]


def broken_run(folder: Path) -> list[str]:
    (write_extended(folder / "m") / "skipwise.json").write_text("{}")
    return [str(folder / "m")]


@pytest.mark.parametrize(
    ("make", "kind", "named"),
    [
        (lambda folder: [str(folder / "none.jsonl")], ConfigError, ["none.jsonl", "NAME=FILE"]),
        (written(LINE, "x.txt"), ConfigError, ["x.txt", ".jsonl"]),
        (lambda folder: [str(folder)], ConfigError, ["comparison.json", "skipwise.json"]),
        (written(LINE + "\n\n{broken\n", "x.jsonl"), DataError, ["x.jsonl' line 3"]),
        (written(LINE + '\n{"task": "a"}', "x.jsonl"), DataError, ["x.jsonl' line 2", "length_tokens"]),
        (written(LINE.replace("9.0", "NaN"), "x.jsonl"), DataError, ["x.jsonl' line 1", "value", "finite"]),
        (written("[1]", "x.jsonl"), DataError, ["x.jsonl' line 1"]),
        (written("\n", "x.jsonl"), DataError, ["x.jsonl", "skipwise eval --out"]),
        (no_records, DataError, ["records.jsonl' cannot be read (Is a directory)"]),
        (written(LINE, "x.jsonl"), ConfigError, ["--original TOKENS"]),
        (written(LINE, "a/r.jsonl", "b/r.jsonl"), ConfigError, ["'r'", "NAME="]),
        (second_source, ConfigError, ["other.jsonl'", "'pose'"]),
        (compared(kind="contrast"), DataError, ["comparison.json", "'comparison'"]),
        (compared(window={"train": 256, "original": 256, "target": 2}), DataError, ["comparison.json", "target=2"]),
        (
            compared(arms={"pose": {"runs": [{"seed": 0, "status": "lost"}]}}),
            DataError,
            ["comparison.json", "arms.pose.runs.0.status"],
        ),
        (broken_run, CheckpointError, ["skipwise.json", "window"]),
    ],
)
def test_bad_input_is_refused_in_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    make: Callable[[Path], list[str]],
    kind: type[Exception],
    named: list[str],
) -> None:
    sources = make(tmp_path)
    with pytest.raises(kind) as caught:
        read_evidence(sources)
    assert all(name in str(caught.value) for name in named), caught.value
    assert cli.main(["report", *sources, "--out", str(tmp_path / "r.html")]) == 2
    out, err = capsys.readouterr()
    assert (out, len(lines_of(err))) == ("", 1)
    assert not (tmp_path / "r.html").exists()


# The verb


def test_the_verb_writes_page_markdown_and_csv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sources = [str(write_comparison(tmp_path / "c", kinds=["single"])), str(write_extended(tmp_path / "small-4k"))]
    files = {name: tmp_path / f"r.{name}" for name in ("html", "md", "csv")}
    options = ["--out", str(files["html"]), "--markdown", str(files["md"]), "--csv", str(files["csv"])]
    assert cli.main(["report", *sources, *options, "--title", "Made up", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["title"] == "Made up"
    assert said["effective"]["pose"]["ruler"] == {"effective_tokens": 4096, "decided": True}
    assert said["effective"]["base"]["ruler"]["effective_tokens"] == 256
    assert "7.37" in said["verdict"][0]
    markdown = files["md"].read_text()
    assert "| pose | 8.75 (8.14–9.45) |" in markdown
    assert all(f"- {word}" in markdown.replace("\\", "") for word in said["verdict"])

    with files["csv"].open(newline="") as file:
        rows = list(csv.DictReader(file))
    lines = (tmp_path / "c" / "records.jsonl").read_text().splitlines()
    assert len(rows) == len(lines)
    row, line = rows[-1], json.loads(lines[-1])
    assert (row["arm"], row["metric"], float(row["value"])) == ("randpos", line["metric"], line["value"])
    assert row["train_seeds"] == "0 1"
    assert rows[2]["depth_to"] == "0.2"
    assert {row["part"] for row in rows if row["task"] == "needles"} == {"single"}


@pytest.mark.parametrize("option", ["--out", "--markdown", "--csv"])
def test_a_place_that_cannot_be_written_is_refused_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    for path in ("/no/such/file", str(tmp_path)):
        assert cli.main(["report", "no.jsonl", option, path]) == 2
        assert f"{option} is {path!r}" in capsys.readouterr().err
