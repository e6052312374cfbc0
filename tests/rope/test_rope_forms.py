"""Every form of config is read as transformers reads it, by all who read it; and no mending changes what it says."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rope_forms import ENTRIES, HAS_DECODER_CLASS, HOSTS, MAXIMUM, Form, forms, library_table, write

from skipwise.doctor.checkup import check_up, write_fixed
from skipwise.errors import SkipwiseError
from skipwise.model import read_config, rope_state
from skipwise.rope import RopeState, RopeTable, read_rope


def table(state: RopeState) -> RopeTable:
    return state.interpolation.table(state.spec, state.window)


def assert_same(ours: RopeTable, library: RopeTable | None) -> None:
    assert library is not None
    np.testing.assert_allclose(ours.inv_freq, library.inv_freq, rtol=2e-6)
    assert ours.attention_factor == pytest.approx(library.attention_factor, rel=1e-6)


def longest_input(config: dict[str, Any]) -> int:
    try:
        return read_rope(config).maximum
    except SkipwiseError:
        return MAXIMUM


def expected_table(form: Form, folder: Path, tmp_path: Path, length: int) -> tuple[RopeTable | None, bool]:
    """What transformers computes with; else what it would by the standard name; and whether it takes the folder."""
    try:
        return library_table(folder, length), True
    except Exception:
        pass
    try:
        return library_table(write(tmp_path / "standard", form.standard()), length), False
    except Exception:
        return None, False


def outcome(form: Form, tmp_path: Path) -> str:
    """Asserts all that must hold of one form, and says in a word or two what became of it."""
    config = form.config()
    folder, length = write(tmp_path / "model", config), longest_input(config)
    expected, taken = expected_table(form, folder, tmp_path, length)
    found = check_up(folder)
    assert taken or not found.healthy
    if expected is not None and not form.only_its_maker_knows:
        assert_same(table(read_rope(config)), expected)
    if taken and HAS_DECODER_CLASS[form.host]:
        # What plan and extend start from.
        state = rope_state(read_config(folder))
        assert_same(table(state), expected)
        assert form.only_its_maker_knows or state.maximum == length
    if found.unfixed:
        assert expected is None or form.only_its_maker_knows
        with pytest.raises(SkipwiseError):
            write_fixed(folder, found, tmp_path / "fixed")
        if not taken:
            with pytest.raises(SkipwiseError):
                rope_state(read_config(folder))
        return "refused" if expected is None else "left to its maker"
    if not found.changed:
        assert taken
        return "as it is"
    fixed = write_fixed(folder, found, tmp_path / "fixed")
    assert check_up(fixed).healthy
    assert_same(library_table(fixed, length), expected)
    text = json.loads((fixed / "config.json").read_text())
    text = text.get("text_config", text)
    for other in {"rope_parameters", "rope_scaling"} & text.keys():
        one_era = {name: value for name, value in text.items() if name != other}
        if "rope_scaling" in text:
            assert_same(table(read_rope(one_era)), expected)
    return "fixed"


# The others differ from these in what tells no new fault by itself: `make test-slow` has them all.
FAST = ("llama", "gemma3 in text_config")


@pytest.mark.parametrize(
    ("host", "entry"),
    [pytest.param(host, entry, marks=() if host in FAST else pytest.mark.slow) for host in HOSTS for entry in ENTRIES],
)
def test_a_form_is_read_as_transformers_reads_it(host: str, entry: str, tmp_path: Path) -> None:
    for number, form in enumerate(form for form in forms() if (form.host, form.entry) == (host, entry)):
        (tmp_path / str(number)).mkdir()
        try:
            outcome(form, tmp_path / str(number))
        except AssertionError as error:
            raise AssertionError(f"{form}: {error}") from error
