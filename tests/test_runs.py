"""What a run left on disk, whatever of it is there."""

import json
from pathlib import Path
from typing import Any

import pytest

from skipwise.errors import CheckpointError
from skipwise.records.runs import Run, held_out_ends


def test_nothing_is_left(tmp_path: Path) -> None:
    run = Run.open(tmp_path / "none")
    assert (run.is_begun, run.is_finished, run.adapter) == (False, False, None)
    assert (run.config(), run.begun(), run.record()) == (None, {}, None)


def test_what_is_begun_and_finished_is_read(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("model: m\ntarget: 32k\nrecipe: growing\n")
    (tmp_path / "begun.json").write_text(json.dumps({"windows": 8, "widest_tokens": 128}))
    (tmp_path / "skipwise.json").write_text(json.dumps({"steps": 3}))
    (tmp_path / "adapter").mkdir()
    run = Run.open(str(tmp_path))
    config = run.config()
    assert config is not None
    assert (config.recipe, config.dilution) == ("growing", True)
    assert (run.begun()["widest_tokens"], run.record(), run.adapter) == (128, {"steps": 3}, tmp_path / "adapter")


def test_what_earlier_versions_did_not_say_is_made_up_for(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("model: m\ntarget: 32k\n")
    config = Run.open(tmp_path).config()
    assert config is not None
    assert (config.recipe, config.data.control_tokens, held_out_ends({})) == ("paper", "tokens", [])


@pytest.mark.parametrize(
    ("name", "text", "read"),
    [
        ("begun.json", "{", Run.begun),
        ("begun.json", '{"windows": "8"}', Run.begun),
        ("begun.json", "3", Run.begun),
        ("skipwise.json", "{", Run.record),
        ("skipwise.json", "3", Run.record),
    ],
)
def test_what_cannot_be_read_is_named(name: str, text: str, read: Any, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError, match=name):
        read(Run.open(tmp_path))
