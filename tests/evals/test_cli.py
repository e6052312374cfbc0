"""The verb `eval`, on a checkpoint folder and a folder of texts."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from skipwise import evals
from skipwise.cli import build_app
from skipwise.cli.evaluate_documents import HeldOut, held_out_of
from skipwise.config import DataConfig
from skipwise.data.documents import is_held_out
from skipwise.evals import EvalResult


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with four held-out texts and four others, in another alphabet."""
    monkeypatch.setenv("SKIPWISE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "texts"
    folder.mkdir()
    held_out = [text for text in numbered("abcdefg\n", 200) if is_held_out(text)][:4]
    others = [text for text in numbered("ABCDEFG\n", 200) if not is_held_out(text)][:4]
    for number, text in enumerate([*held_out, *others]):
        (folder / f"{number}.txt").write_text(text)
    return folder


def numbered(line: str, count: int) -> list[str]:
    """Texts that differ in the number at their end alone."""
    return [line * 20 + str(number) for number in range(count)]


def as_run(checkpoint: Path, folder: Path, held_out: float) -> Path:
    """A model as a run leaves it that kept this share of its documents out of training."""
    shutil.copytree(checkpoint, folder)
    record = {"config": {"data": {"held_out": held_out, "source": "my/documents"}}}
    (folder / "skipwise.json").write_text(json.dumps(record))
    return folder


def run(*arguments: object) -> str:
    result = CliRunner().invoke(build_app(), ["eval", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_results_are_appended_and_printed(tiny_checkpoint: Path, texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    arguments = [tiny_checkpoint, "--task", "nll_by_position,sliding", "--length", "32,64", "--documents", texts]
    printed = run(*arguments, "--out", out, "--num-documents", 3, "--json")
    lines = out.read_text().splitlines()
    assert [json.loads(line) for line in printed.splitlines() if line.startswith("{")] == list(map(json.loads, lines))
    results = list(map(EvalResult.from_json, lines))
    assert [(r.task, r.length_tokens) for r in results if r.task == "sliding"] == [("sliding", 32), ("sliding", 64)]
    assert all(result.num_samples == 3 for result in results)
    table = run(*arguments, "--out", out, "--samples", tmp_path / "samples.jsonl", "--all-documents")
    assert "95% interval" in table
    assert len(out.read_text().splitlines()) == 2 * len(lines)
    assert f"appended to {out} ({len(lines)} records before)" in table
    documents = {json.loads(line)["document"] for line in (tmp_path / "samples.jsonl").read_text().splitlines()}
    assert documents == set(range(8)), "four held out, four not"


@pytest.fixture
def measured_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[list[str], dict[str, Any]]]:
    """Runs the verb with nothing measured: the texts and details that it would have measured with."""
    monkeypatch.setenv("SKIPWISE_CACHE", str(tmp_path / "cache"))

    def measured_on(model: Path, documents: object, *arguments: object) -> tuple[list[str], dict[str, Any]]:
        asked: dict[str, Any] = {}

        def record(model: Any, tokenizer: Any, tasks: Any, lengths: Any, texts: list[np.ndarray], **how: Any) -> list:
            asked.update(texts=[tokenizer.decode(text) for text in texts], details=how["details"])
            return []

        with monkeypatch.context() as patch:
            patch.setattr(evals, "evaluate", record)
            run(model, "--task", "sliding", "--length", "32", "--documents", documents, "--json", *arguments)
        return asked["texts"], asked["details"]

    return measured_on


@pytest.fixture
def many_texts(tmp_path: Path) -> Path:
    (tmp_path / "docs" / "sub").mkdir(parents=True)
    for number, text in enumerate(numbered("abcdefg\n", 300)):
        (tmp_path / "docs" / "sub" / f"{number}.txt").write_text(text + "\n")
    return tmp_path / "docs"


def test_a_run_is_measured_on_what_it_kept_out_of_training(
    tiny_checkpoint: Path, many_texts: Path, tmp_path: Path, measured_on, caplog: pytest.LogCaptureFixture
) -> None:
    model = as_run(tiny_checkpoint, tmp_path / "run", 0.02)
    expected = {text for text in numbered("abcdefg\n", 300) if is_held_out(text, 0.02)}
    assert 0 < len(expected) < sum(is_held_out(text) for text in numbered("abcdefg\n", 300))
    # However the source is written.
    for source in (many_texts, many_texts / "sub", f"{many_texts}/*/*.txt"):
        texts, details = measured_on(model, source)
        assert {text.strip() for text in texts} == expected
        assert details == {}
        # By its name it is not a source of the run, whose documents may have moved.
        (told,) = (record.message for record in caplog.records)
        assert told.startswith(f"only a share of 0.02 of {str(source)!r} is measured on")
        assert "--all-documents" in told
        caplog.clear()
    measured_on(model, many_texts, "--held-out-share", 0.02)
    assert not caplog.records
    base, _ = measured_on(tiny_checkpoint, many_texts, "--held-out-share", 0.02)
    assert {text.strip() for text in base} == expected, "the base can be measured on the same"


@pytest.mark.parametrize(
    ("held_out", "arguments", "share"), [(0.0, [], 0.1), (0.02, ["--held-out-share", 0.1], 0.1), (0.02, ["--all"], 1)]
)
def test_documents_that_may_have_been_trained_on_are_said_to_be(
    held_out: float,
    arguments: list[object],
    share: float,
    tiny_checkpoint: Path,
    many_texts: Path,
    tmp_path: Path,
    measured_on,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = as_run(tiny_checkpoint, tmp_path / "run", held_out)
    flags = ["--all-documents" if argument == "--all" else argument for argument in arguments]
    texts, details = measured_on(model, many_texts, *flags)
    assert {text.strip() for text in texts} == {text for text in numbered("abcdefg\n", 300) if is_held_out(text, share)}
    assert details == {"may_have_been_trained_on": True}
    assert [record.message for record in caplog.records] == [
        f"these documents may have been trained on: the model's run held out a share of {held_out:g} of 'my/documents' "
        f"(data.held_out), and this evaluation uses a share of {share:g}"
    ]


def test_what_a_run_kept_out_is_found_in_its_folder_and_its_checkpoints(tiny_checkpoint: Path, tmp_path: Path) -> None:
    assert held_out_of(str(tiny_checkpoint)) is None
    assert held_out_of("owner/name") is None
    (unfinished := tmp_path / "unfinished" / "checkpoint-2").mkdir(parents=True)
    (tmp_path / "unfinished" / "run.yaml").write_text("{model: base, target: 128, data: {source: docs, held_out: 0.3}}")
    finished = as_run(tiny_checkpoint, tmp_path / "run", 0.0)
    for folder, held_out, source in (
        (unfinished, 0.3, "docs"),
        (unfinished.parent, 0.3, "docs"),
        (finished, 0.0, "my/documents"),
    ):
        read = DataConfig(held_out=held_out, source=source, control_tokens="tokens", format="text")
        assert held_out_of(str(folder)) == HeldOut(read)


def test_passkeys_need_no_documents_and_print_a_grid(tiny_checkpoint: Path, tmp_path: Path) -> None:
    arguments = ["--task", "passkey", "--length", "220", "--trials", 4, "--depths", 2, "--allow-beyond"]
    printed = run(tiny_checkpoint, *arguments, "--documents", tmp_path / "nowhere")
    assert "passkey depth" in printed
    assert "0.50 to 1.00" in printed
