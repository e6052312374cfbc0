"""A source in twelve parts, and processes that build its store."""

import json
import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from corpora import build_store
from tiny_models import byte_tokenizer

from skipwise.data import tokens as tokenizing
from skipwise.data.corpus import TokenStore, building
from skipwise.data.store import files, writer
from skipwise.errors import DataError

FORK = multiprocessing.get_context("fork")
TOKENIZER = byte_tokenizer(begin=True)
NUM_FILES = 12


def build(source: Any, cache: Path, **options: Any) -> TokenStore:
    return build_store(source, TOKENIZER, **{"min_tokens": 2, "cache_dir": cache, "progress": False} | options)


def content(store: TokenStore) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in store.folder.iterdir()}


def room(cache: Path) -> Path:
    [found] = cache.glob("*.parts")
    return found


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Files of many lines or of one text, in folders; some documents are empty."""
    folder = tmp_path / "documents"
    for i in range(NUM_FILES):
        file = folder / f"{i % 3}" / (f"{i}.jsonl" if i % 4 else f"{i}.txt")
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({"text": f"text {i} {line} é" * (line % 4)}) for line in range(30)]
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file is a part; checksums and copies go in small blocks."""
    monkeypatch.setattr(building, "_PART_BYTES", 1)
    monkeypatch.setattr(building, "_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(writer, "_BLOCK_DOCUMENTS", 7)
    for module in (files, writer):
        monkeypatch.setattr(module, "BLOCK_BYTES", 1000)


@pytest.fixture
def expected(source: Path, tmp_path: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """What one process writes in one part."""
    with monkeypatch.context() as patch:
        patch.setattr(building, "_PART_BYTES", 1 << 30)
        return content(build(source, tmp_path / "expected"))


@pytest.fixture
def tokenized(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The name of every part that this process tokenizes."""
    parts: list[str] = []
    original = building._tokenize

    def tokenize(folder: Path, *arguments: Any) -> None:
        parts.append(folder.name)
        original(folder, *arguments)

    monkeypatch.setattr(building, "_tokenize", tokenize)
    return parts


class Builder:
    """A process that builds the store, and tells which parts it tokenized and what came of it."""

    def __init__(self, source: Path, cache: Path, prepare: Callable[[], None] = lambda: None) -> None:
        self._told, tell = FORK.Pipe(duplex=False)
        self.process: BaseProcess = FORK.Process(target=self._run, args=(source, cache, prepare, tell))
        self.process.start()
        tell.close()

    @staticmethod
    def _run(source: Path, cache: Path, prepare: Callable[[], None], tell: Any) -> None:
        parts: list[str] = []
        tokenize, encode = building._tokenize, tokenizing.Encoder.encode

        def counted(folder: Path, *arguments: Any) -> None:
            tokenize(folder, *arguments)
            parts.append(folder.name)

        def slow(encoder: Any, texts: list[str]) -> Any:
            time.sleep(0.03)  # so that all of them get some
            return encode(encoder, texts)

        building._tokenize, tokenizing.Encoder.encode = counted, slow  # type: ignore[assignment]
        prepare()
        try:
            outcome = build(source, cache, num_workers=1).fingerprint
        except DataError as error:
            outcome = str(error)
        tell.send((parts, outcome))

    def answer(self) -> tuple[list[str], str]:
        assert self._told.poll(60), "a process hangs"
        answer = self._told.recv()
        self.process.join()
        return answer


def finished(cache: Path) -> list[Path]:
    return list(cache.glob("*.parts/*/meta.json"))


def finished_parts(cache: Path) -> set[str]:
    return {file.parent.name for file in finished(cache) if file.parent.suffix != ".partial"}


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)
