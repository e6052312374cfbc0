"""The record of model families: what counts as a family that works."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def script() -> Any:
    path = Path(__file__).parents[2] / "benchmarks" / "model_families.py"
    spec = importlib.util.spec_from_file_location("model_families_script", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("row", "place"),
    [
        ({"yarn": "yes", "linear": "yes"}, "Work"),
        ({"yarn": "refused: only longrope", "linear": "refused: only longrope", "longrope": "yes"}, "Work"),
        ({"yarn": "yes", "linear": "TypeError: unsupported operand"}, "Fail"),
        ({"yarn": "yes", "linear": "a plain reload differs"}, "Fail"),
        (dict.fromkeys(("yarn", "linear", "longrope", "ntk"), "refused: none"), "Fail"),
        ({"refused": "it has no rotary table"}, "Refused"),
        ({"built": "KeyError: 'full_attention'"}, "Not tried"),
    ],
)
def test_a_family_works_when_nothing_that_was_tried_went_wrong(row: dict[str, str], place: str, script: Any) -> None:
    text = script.report([{"family": "anyone", **row}])
    parts = {part.partition("\n")[0]: part for part in text.split("\n## ")}
    assert [name for name, part in parts.items() if "| anyone |" in part] == [place]
    counts = {"Work": "1 work", "Refused": "1 are refused", "Fail": "1 fail", "Not tried": "1 could not be built"}
    assert all((count in text) == (name == place) for name, count in counts.items())
