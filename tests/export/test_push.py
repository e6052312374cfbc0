"""A push leaves the same bytes on a stand-in of the hub, says nothing of this machine, and is the only way out."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml
from hub import TOKEN, Hub, Repository, running

from skipwise import cli
from skipwise.errors import CheckpointError
from skipwise.export import pushing, sharing

REPOSITORY = "me/my-model"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with running() as (made, _):
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", made.endpoint)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        # The store of Xet cannot be imitated; files go the way of Git's large files.
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(huggingface_hub.constants, "AGENT_HARNESSES_PATH", str(tmp_path / "client.json"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield made


@pytest.fixture
def run(family: Callable[..., Path], tmp_path: Path) -> Path:
    """A run as `extend` leaves it, with the record and the card of one that names its documents."""
    folder = tmp_path / "run"
    shutil.copytree(family("llama"), folder)
    documents = tmp_path / "clients" / "acme"
    data = {"source": [str(documents), "secret-contracts"], "mixture": [], "format": "text", "held_out": 0.1}
    record = {
        "config": {
            "model": str(tmp_path / "bases" / "base-1b"),
            "output": str(folder),
            "data": data,
            "training": {"max_steps": 2, "optim": "adamw_torch", "logging_dir": "/logs/of/me", "hub_token": "hf_other"},
        },
        "reasons": [f"documents: of {documents}, joined, as {documents}/merger.txt is short"],
        "window": {"train": 64, "original": 64, "target": 256},
        "sampler": "PoSE()",
        "interpolation": "YaRN()",
        "corpus": {"fingerprint": "ab", "documents": 3, "held_out_end": {"document": "secret-contract-1.txt"}},
        "steps": 2,
    }
    (folder / "skipwise.json").write_text(json.dumps(record))
    (folder / "README.md").write_text(
        "---\nlibrary_name: transformers\ntags:\n- skipwise\n---\n\n# base-1b, extended\n\n"
        f"- Base model: {tmp_path / 'bases' / 'base-1b'}\n- Data: source ['{documents}'], format text\n"
        "- Drawn from acme: 70.0% of the tokens: 5 windows\n"
    )
    return folder


def push(run: Path, *arguments: str) -> int:
    return cli.main(["export", str(run), "--push", REPOSITORY, "--out", str(run.parent / "out"), *arguments])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def pushed(hub: Hub) -> dict[str, bytes]:
    return {path: content for path, content in hub.repositories[REPOSITORY].files.items() if path != ".gitattributes"}


@pytest.mark.parametrize("to", ["hf", "gguf"])
def test_a_push_leaves_the_bytes_of_the_folder_and_no_name_of_this_machine(
    to: str, hub: Hub, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--to", to, *(["--engine", "transformers"] if to == "gguf" else [])]
    assert push(run, *arguments) == 0
    printed = capsys.readouterr()
    assert f"pushed to {hub.endpoint}/{REPOSITORY} (private)" in printed.out
    assert pushed(hub) == contents(run.parent / "out")
    assert {"README.md", "export.json", "skipwise.json"} < {*pushed(hub)}
    assert ("Modelfile" in pushed(hub)) == (to == "gguf")
    assert hub.repositories[REPOSITORY].private
    assert json.loads(next(body for _, path, _, body in hub.requests if path == "/api/repos/create")) == {
        "name": "my-model",
        "organization": "me",
        "visibility": "private",
    }
    # Only the hub itself is given the token, and nobody is told it.
    assert {token for _, path, token, _ in hub.requests if path.startswith("/large/")} == {None}
    # The client asks for one public list by itself, without the token.
    without = {path for _, path, token, _ in hub.requests if token is None and not path.startswith("/large/")}
    assert without <= {"/api/agent-harnesses"}
    assert TOKEN not in printed.out + printed.err
    everything = b"\n".join(content for path, content in pushed(hub).items() if path != "tokenizer.json")
    for word in (str(run.parent), "acme", "merger", "secret-contract", "/logs/of/me", "hf_other", TOKEN):
        assert word.encode() not in everything, word


def test_the_card_is_one_of_the_hub(hub: Hub, run: Path) -> None:
    hub.licenses["org/base"] = "apache-2.0"
    assert push(run, "--to", "gguf", "--engine", "transformers", "--base", "org/base") == 0
    card = pushed(hub)["README.md"].decode()
    front = yaml.safe_load(card.split("---")[1])
    assert front == {
        "base_model": "org/base",
        "license": "apache-2.0",
        "pipeline_tag": "text-generation",
        "tags": ["gguf", "long-context", "skipwise"],
    }
    assert "llama-server -m run-F16.gguf -c 256" in card
    assert "ollama create run-f16 -f Modelfile" in card
    assert f"hf download {REPOSITORY}" in card
    record = json.loads(pushed(hub)["skipwise.json"])
    assert record["config"]["training"] == {"max_steps": 2, "optim": "adamw_torch"}
    assert record["config"]["data"] == {"format": "text", "held_out": 0.1}
    assert record["corpus"] == {"fingerprint": "ab", "documents": 3}
    assert (record["steps"], record["window"]["target"]) == (2, 256)


@pytest.mark.parametrize("out", ["out", "./out", "absolute"])
def test_commands_name_the_repository(
    out: str, hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(run.parent)
    place = str(run.parent / "out") if out == "absolute" else out
    for repository in (REPOSITORY, "me/another"):
        capsys.readouterr()
        assert cli.main(["export", "run", "--to", "hf", "--out", place, "--push", repository, "--json"]) == 0
        printed = json.loads(capsys.readouterr().out)
        assert (printed["pushed"], printed["private"]) == (f"{hub.endpoint}/{repository}", True)
        assert printed["commands"]["vLLM"] == f"vllm serve {repository} --max-model-len 256"
        card = hub.repositories[repository].files["README.md"].decode()
        assert f"vllm serve {repository} --max-model-len 256" in card
        assert "documents (not named)" in card
        assert "Drawn from source 1: 70.0% of the tokens" in card


@pytest.mark.parametrize("folder", ["/at/out", "out", "my-model"])
def test_adapters_have_the_name_of_the_repository(folder: str) -> None:
    places = sharing._places(Path(folder), None, REPOSITORY)
    command = f"vllm serve base --lora-modules {Path(folder).name}={folder}"
    assert sharing._renamed(command, places) == f"vllm serve base --lora-modules my-model={REPOSITORY}"


def test_a_source_that_is_called_like_a_setting_changes_none(hub: Hub, run: Path) -> None:
    record = json.loads((run / "skipwise.json").read_text())
    record["config"]["data"]["source"] = "llama"
    (run / "skipwise.json").write_text(json.dumps(record))
    assert push(run, "--to", "hf") == 0
    assert json.loads(pushed(hub)["config.json"])["model_type"] == "llama"


def test_an_interrupted_push_sends_only_the_rest(hub: Hub, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sent: list[bytes] = []

    def breaks(body: bytes) -> bool:
        sent.append(body)
        return len(sent) == 2

    hub.breaks = breaks
    assert push(run, "--to", "hf") == cli.BAD_INPUT
    said = capsys.readouterr().err
    assert "give the same command again" in said
    assert TOKEN not in said
    assert pushed(hub) == {}, "no commit is made of a part"
    before = {*hub.stored}
    hub.breaks = lambda _: False
    hub.requests.clear()
    assert push(run, "--to", "hf") == 0
    assert "pushed to" in capsys.readouterr().out
    assert pushed(hub) == contents(run.parent / "out")
    again = {path.rpartition("/")[2] for _, path, _, _ in hub.requests if path.startswith("/large/")}
    assert not again & before


def test_another_push_is_another_commit_without_stale_weights(hub: Hub, run: Path) -> None:
    assert push(run, "--to", "hf") == 0
    repository = hub.repositories[REPOSITORY]
    repository.files |= {"model-00001-of-00002.safetensors": b"old", "note.txt": b"by hand"}
    assert push(run, "--to", "hf") == 0
    assert len(repository.commits) == 2
    assert pushed(hub) == {**contents(run.parent / "out"), "note.txt": b"by hand"}


def test_another_export_in_the_folder_is_not_pushed(hub: Hub, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert push(run, "--to", "hf") == 0
    capsys.readouterr()
    mean = ["--to", "hf", "--merge-with-base", "0.5"]
    for arguments in (["--to", "hf", "--dtype", "bfloat16"], ["--to", "gguf"], mean):
        assert push(run, *arguments) == cli.BAD_INPUT
        assert "exists already" in capsys.readouterr().err
    assert len(hub.repositories[REPOSITORY].commits) == 1


def test_files_that_arrive_otherwise_are_told(hub: Hub, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hub.spoils = True
    assert push(run, "--to", "hf") == cli.BAD_INPUT
    assert "model.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("prepare", "arguments", "words"),
    [
        (lambda _: None, ["--push", "my-model"], ["OWNER/NAME"]),
        (lambda _: None, ["--push", "me/my--model"], ["OWNER/NAME", "--"]),
        (lambda _: None, ["--push", "other/model"], ["'other/model'", "of me"]),
        (lambda hub: setattr(hub, "role", "read"), [], ["only read"]),
        (
            lambda hub: hub.repositories.update({REPOSITORY: Repository(True, {"config.json": b"{}"})}),
            [],
            ["hf upload"],
        ),
        (lambda hub: hub.repositories.update({REPOSITORY: Repository(False)}), [], ["public", "--public"]),
        (lambda hub: hub.repositories.update({REPOSITORY: Repository(True)}), ["--public"], ["private"]),
        (
            lambda hub: hub.repositories.update({REPOSITORY: Repository(True, {"export.json": b"", "a.gguf": b""})}),
            [],
            ["--to gguf"],
        ),
    ],
)
def test_what_is_wrong_is_told_before_the_export(
    prepare: Callable[[Hub], None],
    arguments: list[str],
    words: list[str],
    hub: Hub,
    run: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    prepare(hub)
    assert push(run, "--to", "hf", *arguments) == cli.BAD_INPUT
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert all(word in message for word in words), message
    assert not (run.parent / "out").exists()
    assert not any(path.startswith(("PUT", "POST")) for path in hub.paths())


def test_no_token_and_no_hub_are_told(
    hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrongButSecret")
    assert push(run, "--to", "hf") == cli.BAD_INPUT
    said = capsys.readouterr().err
    assert "hf auth login" in said
    assert "hf_wrong" not in said
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(run / "no token"))
    assert push(run, "--to", "hf") == cli.BAD_INPUT
    assert "HF_TOKEN" in capsys.readouterr().err
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert push(run, "--to", "hf") == cli.BAD_INPUT
    assert re.fullmatch(r".*HF_HUB_OFFLINE.*\n", capsys.readouterr().err)
    assert push(run, "--to", "hf", "--public") == cli.BAD_INPUT
    assert cli.main(["export", str(run), "--to", "hf", "--public"]) == cli.BAD_INPUT
    assert "--push" in capsys.readouterr().err
    assert hub.repositories == {}


def test_an_error_that_quotes_the_token_does_not_tell_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(CheckpointError) as told, pushing._told(REPOSITORY):
        raise OSError(f"Authorization: Bearer {TOKEN} was refused")
    assert "was refused" in str(told.value)
    assert TOKEN not in str(told.value)


def test_a_name_that_must_not_leave_stops_the_push(hub: Hub, run: Path, tmp_path: Path) -> None:
    (tmp_path / "told").mkdir()
    (tmp_path / "told" / "notes.md").write_text("See /home/me/clients/acme.")
    with pytest.raises(CheckpointError, match=r"notes\.md.*nothing was sent"):
        sharing.check_nothing_private(tmp_path / "told", ["/home/me/clients/acme"])
    assert hub.requests == []


@pytest.mark.parametrize("to", ["hf", "gguf"])
def test_nothing_leaves_without_the_flag(to: str, hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def refuse(_: socket.socket, address: Any) -> None:
        calls.append(address)
        raise OSError("the network is cut")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *address, **_: refuse(None, address))  # pyright: ignore
    arguments = ["--to", to, *(["--engine", "transformers"] if to == "gguf" else [])]
    assert cli.main(["export", str(run), *arguments, "--out", str(run.parent / "out")]) == 0
    assert calls == []
    assert hub.requests == []


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("unshare") is None or subprocess.run(["unshare", "-rn", "true"], check=False).returncode != 0,
    reason="needs network namespaces",
)
@pytest.mark.parametrize("to", ["hf", "gguf"])
def test_an_export_in_a_namespace_without_network(to: str, run: Path) -> None:
    command = ["unshare", "-rn", sys.executable, "-m", "skipwise", "export", str(run), "--to", to]
    # Switched on, the hub's client would try.
    online = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "HF_TOKEN")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=run.parent, env=online)
    assert done.returncode == 0, done.stderr
    assert "compared with the trained model" in done.stdout
