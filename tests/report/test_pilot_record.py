"""What a pilot leaves is read with the comparison beside it."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from made_up_results import write_comparison

from skipwise.errors import DataError
from skipwise.records.pilot import PILOT_FILE, FullRun, Pilot
from skipwise.report.reading import read_evidence


def _pilot() -> Pilot:
    full = FullRun(machine="cpu", count=1, hours=2.5, total_bytes=1 << 30, fits=True)
    return Pilot(
        model="m",
        target_tokens=4096,
        original_tokens=256,
        seconds_given=600.0,
        seconds_used=512.5,
        steps=40,
        full_steps=1000,
        left_out=("Needles did not fit.",),
        full_runs=(full,),
        next_command="skipwise extend m",
    )


def test_a_pilot_is_read_with_its_comparison(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path / "c")
    assert read_evidence([str(folder)]).pilot is None
    (folder / PILOT_FILE).write_text(json.dumps(asdict(_pilot())))
    found = read_evidence([str(folder)]).pilot
    assert found is not None
    # Lists are read where tuples were written.
    assert json.loads(json.dumps(asdict(found))) == json.loads(json.dumps(asdict(_pilot())))
    assert found.full_runs[0].cost is None


def test_a_broken_pilot_is_named(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path / "c")
    (folder / PILOT_FILE).write_text(json.dumps({**asdict(_pilot()), "steps": "many"}))
    with pytest.raises(DataError, match=r"pilot\.json', steps: .*integer"):
        read_evidence([str(folder)])
