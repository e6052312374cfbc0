"""Files and folders that are there whole or not at all."""

import os
from pathlib import Path

import pytest

from skipwise.files import new_folder, replace_file


def test_a_write_that_fails_leaves_the_old_text_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "record.json"
    replace_file(file, "old\n")

    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        replace_file(file, "new\n")
    assert file.read_text() == "old\n"
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_has_its_name_only_once_it_is_full(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "model"
    with pytest.raises(FileNotFoundError), new_folder(folder) as unfinished:
        (unfinished / "missing" / "config.json").write_text("{}")
    assert not any(folder.parent.iterdir())
    with new_folder(folder) as unfinished:
        (unfinished / "config.json").write_text("{}")
        assert not folder.exists()
    assert [file.name for file in folder.iterdir()] == ["config.json"]
    assert list(folder.parent.iterdir()) == [folder]
