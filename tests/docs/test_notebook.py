"""The tutorial as a notebook: its cells run in order, with two steps of training."""

import json
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest

from docs.pages import ROOT

NOTEBOOK = ROOT / "examples" / "tutorial.ipynb"


@pytest.mark.slow
def test_the_cells_run_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert sum("STEPS = 40" in source for source in code) == 1
    names: dict[str, Any] = {}
    with chdir(tmp_path):
        for source in code:
            exec(
                source.replace("STEPS = 40", "STEPS = 2").replace('"trials": 10', '"trials": 5, "num_depths": 5'), names
            )
    printed = capsys.readouterr().out
    assert "checks before 2 steps" in printed
    assert "embedded {256: '100%'" in printed
