"""Imports that cost what they must: of the libraries that a verb uses, when it uses them.

transformers and peft load whatever they find installed, and Python's garbage collector goes again and again through all
that an import makes. Both are most of the seconds before the first line of a verb; see docs/results/startup.md.
"""

import gc
import importlib
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

# Transformers loads them for losses of object detection, assisted generation, and data sets handed to its Trainer.
_UNUSED = ("scipy", "sklearn", "datasets")
_FOUR_BITS = "bitsandbytes"


def _is_no_missing_kernel(record: logging.LogRecord) -> bool:
    return "gemm_4bit_forward from kernels-community" not in record.msg


# Its own code is as good, and nobody can install that kernel who does not know of it.
logging.getLogger(f"{_FOUR_BITS}.backends.cpu.ops").addFilter(_is_no_missing_kernel)


def lazily(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package whose names load on first use, so that its light modules can be had alone.

    Args:
        package: its `__name__`.
        homes: the module of the package in which each name is defined.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{package}.{homes[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return get


@contextmanager
def without(*packages: str) -> Iterator[None]:
    """Within, packages that are not loaded yet look as if they were not installed."""
    hidden = [name for name in packages if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # pyright: ignore[reportArgumentType] - as documented, it halts an import
    try:
        yield
    finally:
        for name in hidden:
            sys.modules.pop(name, None)


@contextmanager
def uncollected() -> Iterator[None]:
    """Imports within go without the garbage collector, which passes over what is there ever after, too.

    For the beginning of a process: hardly any of what libraries make as they load is garbage, and going through it took
    a quarter of the time to load transformers, and a second when the process ends.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


def load_transformers() -> None:
    """Loads what all models of transformers are made of, and tells it for good that what no verb uses is not there.

    For a process that is the command's own: a program that uses skipwise as a library may need the rest.
    """
    importlib.import_module("torch")
    with without(*_UNUSED):
        utils = importlib.import_module("transformers.utils.import_utils")
        for name in _UNUSED:
            getattr(utils, f"is_{name}_available")()  # It remembers the answer.
    importlib.import_module("transformers.modeling_utils")


@contextmanager
def without_four_bits() -> Iterator[None]:
    """Within, peft does not load bitsandbytes for a model without weights in 4 bits.

    It would wherever that is installed, which takes a second. A model with such weights has loaded it already.
    """
    hides = _FOUR_BITS not in sys.modules
    with without(_FOUR_BITS):
        peft = importlib.import_module("peft.import_utils")
        try:
            yield
        finally:
            if hides:
                peft.is_bnb_available.cache_clear()
                peft.is_bnb_4bit_available.cache_clear()
