"""`skipwise doctor --data`: the report of a corpus, its exit code, and that a run takes what it says."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from refusals import lines_of

from skipwise import cli
from skipwise.data.documents import is_held_out

WORDS = ["the", "river", "is", "wide", "and", "low", "hills", "roll", "on", "there", "home", "again"]


@pytest.fixture(autouse=True)
def narrow_plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr("skipwise.data.survey.reading.language_of", lambda text: "en")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Thirty texts of up to 600 words, one of them twice, one without text, and files of other kinds."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, size=20 * number)) for number in range(1, 31)]
    folder = tmp_path / "documents"
    folder.mkdir()
    for number, text in enumerate([*texts, texts[-1], " \n"]):
        (folder / f"{number:02}.txt").write_text(text)
    (folder / "scan.png").write_bytes(b"\0")
    return folder


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, dict[str, Any], list[dict[str, Any]]]]:
    """Exit code, facts and verdicts of `skipwise doctor` with these arguments."""

    def run(*arguments: object) -> tuple[int, dict[str, Any], list[dict[str, Any]]]:
        code = cli.main(["doctor", *map(str, arguments), "--json"])
        out, err = capsys.readouterr()
        assert out, err
        first, *verdicts = map(json.loads, out.splitlines())
        return code, first, verdicts

    return run


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """With a token that ends documents, so that short ones can be joined."""
    from tiny_models import save_tiny, tiny_config
    from transformers import AutoTokenizer

    folder = save_tiny(tmp_path / "model", tiny_config("llama"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"eos_token": tokenizer.convert_ids_to_tokens(255)})
    tokenizer.save_pretrained(folder)
    return folder


def statuses(verdicts: list[dict[str, Any]]) -> dict[str, str]:
    return {verdict["name"]: verdict["status"] for verdict in verdicts}


def test_the_report_fits_80_columns(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / ("long-" * 40 + "name.txt")).write_text((folder / "20.txt").read_text())
    assert cli.main(["doctor", "--data", str(folder), "--target", "4k", "--set", "window=128"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    assert "33 documents" in text
    assert "estimated as 4 bytes each" in text
    assert "128, the window" in text
    assert "files of unsupported kinds are skipped: 1 .png" in text
    # Of 32 texts with words, two of 500 words each repeat one.
    assert "2 documents (6.2%, " in text
    assert "with the text of an earlier one, in 2 groups" in text


def test_without_a_model_no_model_library_is_loaded(folder: Path, fresh_python: Callable[[str], None]) -> None:
    fresh_python(
        "from skipwise.cli import main; import sys\n"
        f"assert main(['doctor', '--data', {str(folder)!r}, '--set', 'window=128']) == 0\n"
        "assert not {'torch', 'transformers', 'accelerate', 'scipy'} & {*sys.modules}"
    )


def test_tokens_are_those_of_the_model(folder: Path, tiny_checkpoint: Path, report: Callable[..., Any]) -> None:
    """Whose tokenizer has one token for each byte, so that the estimate is a quarter of it."""
    code, counted, verdicts = report(tiny_checkpoint, "--data", folder)
    assert code == 0, verdicts
    texts = [path.read_text() for path in sorted(folder.glob("*.txt"))]
    corpus = counted["corpus"]
    assert corpus["tokens"] == sum(len(text) for text in texts if text.strip())
    assert not corpus["is_estimate"]
    # The window of the model is 64, and no target is given.
    assert [one["tokens"] for one in corpus["as_long"]] == [64]
    _, estimated, _ = report("--data", folder, "--set", "window=64")
    assert estimated["corpus"]["tokens"] == sum(-(-len(text) // 4) for text in texts if text.strip())
    assert estimated["corpus"]["is_estimate"]
    kept = [len(text) for text in texts if not is_held_out(text.strip()) and len(text) >= 64]
    [taken] = counted["training"]["windows"]
    assert (taken["counts"]["documents"], taken["counts"]["tokens"]) == (len(kept), sum(kept))


@pytest.mark.parametrize(
    ("data", "window"),
    [({}, 32), ({"join": True}, 32), ({"min_tokens": 1000, "held_out": 0.3}, 64), ({"held_out": 1e-6}, 32)],
    ids=["as it is", "joined", "long ones", "the end of one held out"],
)
def test_a_run_takes_what_the_report_says(
    data: dict[str, Any], window: int, folder: Path, model: Path, tmp_path: Path, report: Callable[..., Any]
) -> None:
    from tiny_runs import preflight_taken_for_granted, run, settings_of

    settings = settings_of(model, folder, tmp_path / "run")
    settings = {**settings, "window": window, "data": {**settings["data"], **data}}
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps({**settings, "training": {**settings["training"], "max_steps": 1}}))
    code, found, verdicts = report("--config", file, "--data", folder)
    assert code == 0, verdicts
    with preflight_taken_for_granted():
        done = run(json.loads(file.read_text()))
    trained = done.record["corpus"]["counts"]
    first, *wider = found["training"]["windows"]
    assert first["counts"] == trained
    assert found["training"]["reasons"] == json.loads((done.folder / "begun.json").read_text())["reasons"]
    assert all(one["counts"]["tokens"] <= first["counts"]["tokens"] for one in wider)


@pytest.mark.parametrize("with_model", [False, True], ids=["estimated", "counted"])
def test_documents_that_are_too_short_fail(
    with_model: bool, folder: Path, tiny_checkpoint: Path, report: Callable[..., Any]
) -> None:
    for path in folder.glob("*.txt"):
        path.write_text(path.read_text()[:40])
    model = [tiny_checkpoint, "--target", "4k"] if with_model else []
    code, _, verdicts = report(*model, "--data", folder, "--set", "window=64")
    assert code == 1
    assert statuses(verdicts)["training"] == "fail"
    assert "no document has 64 tokens" in verdicts[-1]["detail"]
    assert with_model or verdicts[-1]["cure"] == "give longer ones, a shorter window, or --set data.join=true"
    _, _, joined = report("--data", folder, "--set", "window=64k", "--set", "data.join=true")
    assert joined[-1]["cure"] == "give more, or a shorter window"


def test_joined_texts_are_not_called_documents(folder: Path, report: Callable[..., Any]) -> None:
    _, found, verdicts = report("--data", folder, "--set", "window=128", "--set", "data.join=true")
    counts = found["training"]["windows"][0]["counts"]
    assert counts["documents"] < counts["kept"]
    joined = f"{counts['documents']:,} texts joined from {counts['kept']:,} documents, {counts['tokens']:,} tokens"
    assert verdicts[-1]["detail"] == f"windows of 128 from {joined} by the estimate"
    _, found, verdicts = report("--data", folder, "--set", "window=32")
    counts = found["training"]["windows"][0]["counts"]
    assert f"from {counts['kept']:,} documents, {counts['tokens']:,} tokens" in verdicts[-1]["detail"]


def test_unreadable_files_fail_unless_they_are_left_out(
    folder: Path, tiny_checkpoint: Path, report: Callable[..., Any]
) -> None:
    (folder / "bad.txt").write_bytes(b"caf\xe9")
    (folder / "bad.jsonl").write_text('{"text": "one"}\n{"body": "two"}\n')
    for model in ([], [tiny_checkpoint, "--target", "256"]):
        code, found, verdicts = report(*model, "--data", folder, "--set", "window=64")
        assert code == 1
        assert [verdict["name"] for verdict in verdicts if verdict["status"] == "fail"] == ["reading"]
        assert {kind: entry["number"] for kind, entry in found["corpus"]["unreadable"].items()} == {
            "encoding": 1,
            "field": 1,
        }
        skip = ["--set", "data.skip_unreadable=true"]
        code, _, verdicts = report(*model, "--data", folder, "--set", "window=64", *skip)
        assert code == 0
        assert statuses(verdicts)["reading"] == "note"


def test_of_a_stream_only_the_beginning_is_read(
    folder: Path, report: Callable[..., Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Faults further on are known all the same, as far as files are inspected before."""
    monkeypatch.setattr("skipwise.cli.doctor_corpus._STREAMED_BYTES", 1000)
    monkeypatch.setattr("skipwise.data.documents.threads._BATCH_DOCUMENTS", 1)
    (folder / "zz.txt").write_bytes(b"caf\xe9")
    arguments = ["--data", str(folder), "--set", "window=64", "--set", "data.streaming=true"]
    code, found, verdicts = report(*arguments)
    assert (code, statuses(verdicts)["reading"]) == (1, "fail")
    assert found["corpus"]["documents"] < 10
    assert not found["corpus"]["is_whole"]
    cli.main(["doctor", *arguments])
    assert capsys.readouterr().out.startswith("the first 1.")


@pytest.mark.parametrize("names", [["only.pdf"], []], ids=["nothing readable", "empty"])
def test_nothing_to_read_fails_and_that_alone_is_said(
    names: list[str], tmp_path: Path, tiny_checkpoint: Path, report: Callable[..., Any]
) -> None:
    (tmp_path / "docs").mkdir()
    for name in names:
        (tmp_path / "docs" / name).write_bytes(b"\0")
    code, found, verdicts = report(tiny_checkpoint, "--data", tmp_path / "docs")
    assert (code, found["corpus"]["documents"]) == (1, 0)
    assert statuses(verdicts) == {"reading": "fail", "training": "fail"}
    assert verdicts[0]["cure"] == "give documents that can be read"


def test_of_records_of_another_field_it_says_how_to_name_it(tmp_path: Path, report: Callable[..., Any]) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{"instruction": "Add.", "output": "3"}] * 2))
    code, _, (reading, *_) = report("--data", tmp_path / "a.json")
    assert (code, reading["status"]) == (1, "fail")
    assert "--set data.field=NAME (eval and build-suite: --field NAME)" in reading["cure"]


def test_what_was_assumed_and_what_a_package_would_read_is_said(
    folder: Path, report: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "ja.txt").write_bytes("これは日本語の段落です。とても短いものですが、読めます。".encode("cp932"))
    (folder / "a.pdf").write_bytes(b"x")
    monkeypatch.setattr("skipwise.data.formats.is_installed", lambda module: not module)
    _, found, verdicts = report("--data", folder, "--set", "window=64")
    assert found["corpus"]["encodings"] == {"Shift-JIS": 1}
    assert (found["corpus"]["unsupported"], found["corpus"]["unpackaged"]) == ({".png": 1}, {".pdf": 1})
    said = {verdict["name"]: verdict["detail"] for verdict in verdicts}
    assert said["kinds"] == "files of unsupported kinds are skipped: 1 .png"
    assert said["encoding"] == "files that are not UTF-8 are read 1 as Shift-JIS"
    assert "1 file is skipped that the extra documents reads (1 .pdf): pip install" in said["package"]


def test_conversations_are_counted_as_the_model_writes_them(
    model: Path, tmp_path: Path, report: Callable[..., Any]
) -> None:
    from chat_templates import CHATML
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(model)
    turns = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "This and that."}]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps({"messages": turns * n}) + "\n" for n in range(1, 9)))
    code, found, verdicts = report(model, "--data", tmp_path / "chats.jsonl", "--set", "window=64")
    assert code == 0, verdicts
    rendered = [tokenizer.apply_chat_template(turns * n, tokenize=False) for n in range(1, 9)]
    tokens = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in rendered]
    assert found["corpus"]["tokens"] == sum(tokens)
    learned = sum(range(1, 9)) * len(tokenizer("This and that.<|im_end|>", add_special_tokens=False)["input_ids"])
    assert found["corpus"]["share_of_labels"] == pytest.approx(learned / sum(tokens))
    (chats,) = [verdict for verdict in verdicts if verdict["name"] == "chats"]
    assert chats["detail"].startswith("8 conversations, written by the model's chat template; labels on")


@pytest.mark.parametrize("good", [8, 0])
def test_rejected_conversations_are_a_verdict(
    good: int, model: Path, tmp_path: Path, report: Callable[..., Any]
) -> None:
    from chat_templates import MISTRAL
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_special_tokens({"bos_token": tokenizer.convert_ids_to_tokens(254)})
    tokenizer.chat_template = MISTRAL
    tokenizer.save_pretrained(model)
    turns = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "This and that."}]
    bad = {"messages": [turns[0], *turns]}
    chats = tmp_path / "chats.json"
    chats.write_text(json.dumps([bad, *({"messages": turns * n} for n in range(1, good + 1)), bad]))
    given = (model, "--data", chats, "--set", "window=64")
    for target in ((), ("--target", "256")):
        code, found, (reading, *_) = report(*given, *target)
        assert (code, found["corpus"]["documents"], reading["status"]) == (1, good, "fail")
        assert reading["detail"].startswith(
            "2 conversations that cannot be used: chats.json:1 is rejected by the model"
        )
        code, found, (reading, *_) = report(*given, *target, "--set", "data.skip_unreadable=true")
        assert (code, found["corpus"]["documents"]) == (int(not good), good)
        assert reading["status"] == ("note" if good else "fail")
    if good:
        learned = [turns * n for n in range(1, good + 1)]
        ids = (tokenizer.apply_chat_template(each, tokenize=True, return_dict=False) for each in learned)
        assert found["corpus"]["tokens"] == sum(map(len, ids))


@pytest.fixture
def mixture(folder: Path, tmp_path: Path) -> list[dict[str, Any]]:
    rng = np.random.default_rng(1)
    other = tmp_path / "notes.jsonl"
    records = [{"body": " ".join(rng.choice(WORDS, size=100))} for _ in range(20)]
    other.write_text("".join(json.dumps(record) + "\n" for record in [*records, {"body": ""}, {"text": "no body"}]))
    return [
        {"source": str(folder), "weight": 0.5},
        {"source": str(other), "weight": 0.3, "field": "body", "join": True, "skip_unreadable": True},
        {"replay": True, "weight": 0.2},
    ]


@pytest.mark.parametrize("with_model", [False, True], ids=["estimated", "counted"])
def test_a_mixture_is_reported_by_source(
    with_model: bool,
    mixture: list[dict[str, Any]],
    tmp_path: Path,
    model: Path,
    report: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "mix.yaml"
    settings = {"model": str(model), "target": 256, "training": {"max_steps": 10}} if with_model else {}
    file.write_text(json.dumps({**settings, "window": 32, "recipe": "growing", "data": mixture}))
    arguments = ["--config", str(file), "--corpus"]
    code, found, verdicts = report(*arguments)
    assert code == 0, verdicts
    names = [entry.get("source", "replay of the others") for entry in mixture]
    assert found["training"]["shares"] == dict(zip(names, [0.5, 0.3, 0.2], strict=True))
    # Each as it is reported alone; a model also has windows of short replay.
    for entry, name in zip(mixture[:2], names, strict=False):
        alone = [f"data.{key}={json.dumps(entry[key])}" for key in ("field", "join", "skip_unreadable") if key in entry]
        settled = [part for setting in ["window=32", "recipe=growing", *alone] for part in ("--set", setting)]
        of_model = [model, "--target", "256"] if with_model else []
        _, one, _ = report(*of_model, "--data", name, *settled)
        own = [taken for taken in found["training"]["windows"] if taken["source"] == name]
        windows = [32, 64, 128, 256] if with_model else [32]
        assert [taken["window"] for taken in own] == windows
        without_replay = [{**taken, "source": ""} for taken in own if taken["window"] != 64]
        assert without_replay == one["training"]["windows"]
    assert found["corpus"]["documents"] == 32 + 21
    assert found["corpus"]["unreadable"]["field"]["number"] == 1
    assert statuses(verdicts)["reading"] == "note"
    assert cli.main(["doctor", *arguments]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert " ".join(shown.split()).count("what a run would train on") == 2
    assert "replay of the others: 20% of the run's" in " ".join(shown.split())
    assert cli.main(["doctor", "--config", str(file), "--data", "stdlib"]) == 2
    assert "to report on it, give --corpus" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--data", "/no/such"], ["/no/such", "does not exist"]),
        (["/no/model", "--data", "stdlib"], ["'/no/model'", "no such folder"]),
        (["--data", "stdlib", "--set", "data.jion=true"], ["'data.jion'", "'join'"]),
        (["--data", "stdlib", "--fix"], ["--fix"]),
        (["--corpus"], ["--corpus", "--config"]),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], named: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(lines_of(err)) == 1
    assert all(name in err for name in named), err


def test_a_run_takes_of_a_mixture_what_the_report_says(
    mixture: list[dict[str, Any]], model: Path, tmp_path: Path, report: Callable[..., Any]
) -> None:
    from tiny_runs import preflight_taken_for_granted, run, settings_of

    settings = settings_of(model, tmp_path, tmp_path / "run")
    training = {**settings["training"], "max_steps": 2}
    file = tmp_path / "mix.yaml"
    file.write_text(json.dumps({**settings, "window": 32, "recipe": "paper", "data": mixture, "training": training}))
    _, found, _ = report("--config", file, "--corpus")
    with preflight_taken_for_granted():
        record = run(json.loads(file.read_text())).record
    first = {taken["source"]: taken["counts"] for taken in reversed(found["training"]["windows"])}
    counts = record["corpus"]["counts"]
    assert counts == {name: sum(own[name] for own in first.values()) for name in counts}
    drawn = sum(one["tokens"] for one in record["corpus"]["sources"])
    assert found["training"]["tokens"] == drawn
