"""What imports.py takes other libraries to do."""

import importlib
import importlib.util
import logging
import sys
from pathlib import Path

import pytest

from skipwise import imports


def test_transformers_remembers_which_packages_it_found() -> None:
    utils = importlib.import_module("transformers.utils.import_utils")
    for name in imports._UNUSED:
        assert hasattr(getattr(utils, f"is_{name}_available"), "cache_info"), name


def test_peft_takes_a_hidden_package_for_missing_and_can_look_again() -> None:
    peft = importlib.import_module("peft.import_utils")
    peft.is_bnb_available.cache_clear()
    was_loaded = "bitsandbytes" in sys.modules
    with imports.without("bitsandbytes"):
        assert peft.is_bnb_available() == was_loaded
    peft.is_bnb_available.cache_clear()
    peft.is_bnb_4bit_available.cache_clear()
    assert peft.is_bnb_available() == (importlib.util.find_spec("bitsandbytes") is not None)


def test_bitsandbytes_warns_of_the_kernel_by_this_logger_and_in_these_words() -> None:
    found = importlib.util.find_spec("bitsandbytes")
    if found is None or found.origin is None:
        pytest.skip("bitsandbytes is not installed")
    source = (Path(found.origin).parent / "backends" / "cpu" / "ops.py").read_text(encoding="utf-8")
    assert "getLogger(__name__)" in source
    name = "bitsandbytes.backends.cpu.ops"
    words = imports._SILENCED[name]
    assert words in source
    logger = logging.getLogger(name)
    record = logging.LogRecord("", logging.WARNING, "", 0, f"no {words}", (), None)
    assert not logger.filter(record)
