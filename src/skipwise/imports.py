"""Faster imports: only the libraries that a verb uses, when it uses them; and a terminal that is not theirs.

transformers and peft import every optional package that is installed, and Python's garbage collector scans all new
objects again and again. Together this is most of the start-up time of a verb; see docs/results/startup.md.
"""

import gc
import importlib
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

# transformers imports them for object detection losses, assisted generation, and data sets passed to its Trainer.
_UNUSED = ("scipy", "sklearn", "datasets")
_FOUR_BITS = "bitsandbytes"


# Warnings of libraries that users can do nothing about, by logger: an optional kernel that is missing, and the device
# that DeepSpeed finds when it is only imported.
_SILENCED = {
    f"{_FOUR_BITS}.backends.cpu.ops": "gemm_4bit_forward from kernels-community",
    "DeepSpeed": "Setting accelerator to CPU",
}


def _silence() -> None:
    for name, words in _SILENCED.items():
        logging.getLogger(name).addFilter(lambda record, words=words: words not in str(record.msg))


_silence()


class LinesAboveBars(logging.StreamHandler):
    """Writes log lines on stderr, above the progress bars that are on the screen."""

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a line."""
        if "tqdm" not in sys.modules:
            super().emit(record)
            return
        from tqdm import tqdm

        tqdm.write(self.format(record), file=self.stream)


def lazily(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package whose names load on first use, so that importing it is cheap.

    Args:
        package: its `__name__`.
        homes: by name, the module of the package that defines it.
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
    """Context in which packages that are not loaded yet seem not to be installed."""
    hidden = [name for name in packages if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # pyright: ignore[reportArgumentType] - documented: makes an import fail
    try:
        yield
    finally:
        for name in hidden:
            sys.modules.pop(name, None)


@contextmanager
def uncollected() -> Iterator[None]:
    """Context for imports without garbage collection; later collections skip the objects that exist by then.

    For the beginning of a process: hardly anything that imports create is garbage, and scanning it took a quarter of
    the time to import transformers, and a second at the end of the process.
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
    """Imports the model code of transformers, and makes it take packages that no verb uses for missing.

    For processes of the command line alone: a program that uses skipwise as a library may need these packages.
    """
    importlib.import_module("torch")
    with without(*_UNUSED):
        utils = importlib.import_module("transformers.utils.import_utils")
        for name in _UNUSED:
            getattr(utils, f"is_{name}_available")()  # The answer is cached.
    importlib.import_module("transformers.modeling_utils")


@contextmanager
def without_four_bits() -> Iterator[None]:
    """Context in which peft does not import bitsandbytes, which takes a second.

    A model with 4-bit weights has imported it already, and is not affected.
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
