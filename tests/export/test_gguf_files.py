"""GGUF files to run: which export is taken, when one is made, and what a file says."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gguf", reason="GGUF files are the package gguf's (extra: gguf)")

from skipwise import export as exports
from skipwise.errors import CheckpointError, ConfigError, UnsupportedModelError
from skipwise.export import RECORD_FILE, gguf
from skipwise.export.earlier import file_of_export
from skipwise.export.gguf_files import gguf_file, read_tokenizer, read_windows
from skipwise.model import load_model
from skipwise.rope import INTERPOLATIONS
from skipwise.window import Window


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that looks like a checkpoint."""
    folder = tmp_path / "long"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").touch()
    return folder


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """The folders and number formats of exports, which are not really made."""
    found: list[tuple[str, str | None]] = []

    def export(source: str, *, to: str, output: Path, dtype: str | None, **_: Any) -> None:
        found.append((output.name, dtype))
        output.mkdir()
        (output / "long.gguf").touch()
        record = {"format": to, "source": source, "dtype": dtype or "f16", "base_weight": None}
        (output / RECORD_FILE).write_text(json.dumps(record))

    monkeypatch.setattr(exports, "export", export, raising=False)
    return found


def test_an_export_is_made_once_and_said_each_time(model: Path, made: list[Any], tmp_path: Path) -> None:
    told: list[str] = []
    for dtype in (None, None, "f16"):
        file = gguf_file(str(model), tmp_path / "long-gguf", told.append, dtype=dtype)
        assert file == tmp_path / "long-gguf" / "long.gguf"
    assert made == [("long-gguf", None)]
    assert ["exporting" in line for line in told] == [True, False, False]


def test_another_number_format_or_older_weights_get_a_folder_of_their_own(
    model: Path, made: list[Any], tmp_path: Path
) -> None:
    for dtype in (None, "q8_0", "q8_0"):
        gguf_file(str(model), tmp_path / "long-gguf", print, dtype=dtype)
    later = (tmp_path / "long-gguf" / "long.gguf").stat().st_mtime + 100
    os.utime(model / "model.safetensors", (later, later))
    gguf_file(str(model), tmp_path / "long-gguf", print)
    assert made == [("long-gguf", None), ("long-gguf-q8_0", "q8_0"), ("long-gguf-f16", None)]
    os.utime(model / "model.safetensors", (later + 1e6, later + 1e6))
    with pytest.raises(ConfigError, match="put them aside"):
        gguf_file(str(model), tmp_path / "long-gguf", print)


def test_a_file_is_its_own_and_has_its_number_format(made: list[Any], tmp_path: Path) -> None:
    (tmp_path / "m.gguf").touch()
    assert gguf_file(str(tmp_path / "m.gguf"), tmp_path / "x", print) == tmp_path / "m.gguf"
    with pytest.raises(ConfigError, match="--dtype is 'f16'"):
        gguf_file(str(tmp_path / "m.gguf"), tmp_path / "x", print, dtype="f16")
    assert made == []


@pytest.mark.parametrize("kind", ["linear", "yarn", "longrope"])
def test_windows_are_those_of_the_extended_model(kind: str, tmp_path: Path) -> None:
    window = Window(train=256, original=256, target=1024)
    model, tokenizer = load_model("embedded", interpolation=INTERPOLATIONS[kind](), window=window)
    file = tmp_path / "m.gguf"
    gguf.write_gguf(file, model, gguf.plan_gguf(model, tokenizer), "f16", "m")
    found, config = read_windows(file), model.config
    assert (found.original, found.target) == (256, 1024)
    width = config.hidden_size // config.num_attention_heads
    values = config.num_hidden_layers * config.num_key_value_heads * 2 * width
    assert found.cache_bytes == 2 * values


def test_the_folder_of_an_export_stands_for_its_file(model: Path, made: list[Any], tmp_path: Path) -> None:
    file = gguf_file(str(model), tmp_path / "long-gguf", print)
    assert file_of_export(str(tmp_path / "long-gguf")) == str(file)
    for other in (str(model), str(file), "owner/name"):
        assert file_of_export(other) == other


def test_a_file_that_is_none_is_a_plain_error(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"x" * 100)
    with pytest.raises(CheckpointError, match=r"m\.gguf"):
        read_windows(tmp_path / "m.gguf")


def test_an_unknown_pre_tokenizer_is_refused(tmp_path: Path) -> None:
    model, tokenizer = load_model("embedded")
    plan = gguf.plan_gguf(model, tokenizer)
    file = tmp_path / "m.gguf"
    gguf.write_gguf(file, model, replace(plan, tokenizer=plan.tokenizer._replace(pre="odd")), "f16", "m")
    with pytest.raises(UnsupportedModelError, match="'odd'"):
        read_tokenizer(file)
