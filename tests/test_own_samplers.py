"""Samplers that settings name by file or module, and axolotl's rule of positions as one of them."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from made_up_results import record, write_extended, write_lines
from tiny_runs import losses, run, settings_of, write_documents

from skipwise.config import RunConfig
from skipwise.errors import ConfigError
from skipwise.positions import Plain, PositionSample, sampler_from, sampler_kind
from skipwise.report.reading import read_evidence
from skipwise.report.report import Report
from skipwise.train.record import sampler_text
from skipwise.window import Window

AXOLOTL = f"{Path(__file__).parents[1] / 'benchmarks' / 'axolotl_positions.py'}:AxolotlPoSE"
MINE = """
from __future__ import annotations
from dataclasses import dataclass
from typing import ClassVar
import numpy as np
from skipwise import PositionSample

@dataclass(frozen=True, slots=True, kw_only=True)
class Mine:
    uses_sentence_ends: ClassVar[bool] = False
    gap: int = 1

    def sample(self, num_tokens, window, rng):
        every = np.arange(window.train)
        return PositionSample(token_index=every, position_ids=every * self.gap)

@dataclass
class Half:
    uses_sentence_ends: ClassVar[bool] = False

class Bare(Mine):
    pass
"""


@dataclass(frozen=True)
class Here:
    """A sampler of a module."""

    uses_sentence_ends: ClassVar[bool] = False

    def sample(self, num_tokens: int, window: Window, rng: np.random.Generator) -> PositionSample:
        return Plain().sample(num_tokens, window, rng)


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with samplers in a file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "broken.py").write_text("import numpy\nraise RuntimeError('not\\ntoday')\n")
    return tmp_path


@pytest.mark.usefixtures("mine")
def test_a_file_is_imported_once_and_its_class_has_settings() -> None:
    sampler = sampler_from({"kind": "mine.py:Mine", "gap": 3})
    found = sampler.sample(9, Window(train=4, original=4, target=16), np.random.default_rng(0))
    assert found.position_ids.tolist() == [0, 3, 6, 9]
    assert sampler == sampler_from({"kind": str(Path("mine.py").absolute()) + ":Mine", "gap": 3})
    assert (sampler_kind(sampler), sampler_text(sampler)) == ("Mine", "Mine(gap=3)")


def test_a_module_is_imported_by_name() -> None:
    assert sampler_from(f"{__name__}:Here") == Here()


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("mien.py:Mine", "there is no file '/.*/mien.py'"),
        ("mine.py:Mien", "mine.py has no class 'Mien'; did you mean 'Mine'"),
        ("mine.py:Zzz", "it has .*Mine, Half, Bare"),
        ("mine.py:np", "has no class 'np'"),
        ("mine.py:", "has no class ''"),
        ("mine.py:Half", "must be a dataclass .* and has no sample"),
        ("nowhere:Mine", r"cannot be imported \(ModuleNotFoundError: No module named 'nowhere'\)"),
        (":Mine", "cannot be imported"),
        ("broken.py:Mine", r"cannot be imported \(RuntimeError: not\)"),
        ({"kind": "mine.py:Mine", "gaps": 2}, "sampler.gaps .* did you mean 'gap'"),
        ("mine", "known: pose, .*; or FILE.py:CLASS of your own"),
    ],
)
def test_what_is_no_sampler_is_refused_in_one_line(settings: Any, message: str) -> None:
    for _ in range(2):  # a file that failed is not taken for imported
        with pytest.raises(ConfigError, match=message) as caught:
            sampler_from(settings)
        assert "\n" not in str(caught.value)


def test_reading_settings_or_results_runs_no_code(mine: Path) -> None:
    (mine / "evil.py").write_text(MINE + "import pathlib; pathlib.Path('ran').touch()\n")
    kind = {"kind": "evil.py:Mine"}
    for settings in ({"sampler": kind}, {"growth": [{"window": "2x", "sampler": kind}]}):
        RunConfig.from_mapping({"model": "m", "target": 256, **settings})
    folder = write_extended(mine / "m")
    told = json.loads((folder / "skipwise.json").read_text())
    told["config"]["sampler"], told["sampler"] = kind, "Mine(gap=1)"
    (folder / "skipwise.json").write_text(json.dumps(told))
    lines = write_lines(mine / "a.jsonl", [record("perplexity", "perplexity", 256, 9.0, None, None)])
    found = Report.of(read_evidence([str(folder), str(lines)]))
    assert "Which distances were trained" not in [one.title for one in found.sections]
    assert not (mine / "ran").exists()
    sampler_from(kind)
    assert (mine / "ran").exists()


@pytest.mark.usefixtures("sound_model")
def test_a_run_trains_with_it(mine: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKIPWISE_CACHE", str(mine / "cache"))
    (mine / "documents").mkdir()
    settings = settings_of(tiny_checkpoint, write_documents(mine / "documents"), mine / "out")
    done = run(settings, sampler={"kind": "mine.py:Mine", "gap": 2})
    assert done.record["sampler"] == "Mine(gap=2)"
    assert any("mine.py:Mine" in reason for reason in done.record["reasons"])
    assert "mine.py:Mine" in (done.folder / "README.md").read_text()
    other = run(settings, sampler={"kind": "mine.py:Mine", "gap": 8}, output=str(mine / "other"))
    assert losses(done.folder) != losses(other.folder)


def test_axolotls_positions_are_equal_chunks_of_a_piece_that_keep_their_skips() -> None:
    window, drawn = Window(train=10, original=10, target=64), {}
    sampler = sampler_from({"kind": AXOLOTL, "chunks": 3})
    for seed in range(200):
        found = sampler.sample(47, window, np.random.default_rng(seed))
        first = int(found.token_index[0])
        assert first in (0, 10, 20, 30)
        assert found.token_index.tolist() == list(range(first, first + 10))
        steps = np.diff(found.position_ids)
        assert found.position_ids[0] == 0
        assert found.position_ids[-1] < 64
        assert (np.delete(steps, (2, 5)) == 1).all(), "chunks of 3, 3 and 4 tokens"
        assert drawn.setdefault(first, found.position_ids.tolist()) == found.position_ids.tolist()
    assert len({str(positions) for positions in drawn.values()}) == 4


def test_axolotls_skips_are_uniform_over_documents() -> None:
    """Over documents of different lengths, a half is moved by each of 0..30 equally often."""
    window, sampler = Window(train=10, original=10, target=40), sampler_from(AXOLOTL)
    skips = [int(sampler.sample(n, window, np.random.default_rng(0)).position_ids[5]) - 5 for n in range(10, 6210)]
    counts = np.bincount(skips, minlength=31)
    assert len(counts) == 31
    assert abs(counts - 200).max() < 5 * 200**0.5


def test_two_files_of_one_name_are_two_modules(mine: Path) -> None:
    (mine / "other").mkdir()
    (mine / "other" / "mine.py").write_text(MINE.replace("gap: int = 1", "gap: int = 7"))
    before = set(sys.modules)
    assert repr(sampler_from("other/mine.py:Mine")) == "Mine(gap=7)"
    assert repr(sampler_from("mine.py:Mine")) == "Mine(gap=1)"
    assert len({name for name in set(sys.modules) - before if name.startswith("skipwise_own_")}) == 2
