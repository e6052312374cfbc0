"""Samplers from a user's own code, named in settings by `FILE.py:CLASS` or `MODULE:CLASS`.

Importing runs the code. So only what draws positions imports it. What merely reads settings (a run's record, a report,
a model from elsewhere) asks `is_own` and leaves it.
"""

import hashlib
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, TypeGuard

from skipwise.errors import ConfigError
from skipwise.names import did_you_mean, first_line


def is_own(kind: object) -> TypeGuard[str]:
    """Whether a sampler's kind names a class of the user's."""
    return isinstance(kind, str) and ":" in kind


def own_sampler_class(kind: str) -> type[Any]:
    """Imports the class that a kind names; a file's path begins at the current folder.

    Raises:
        ConfigError: nothing is there, it cannot be imported, or it is no sampler.
    """
    place, _, name = kind.rpartition(":")
    module = _of_file(Path(place), kind) if place.endswith(".py") else _of_name(place, kind)
    found = getattr(module, name, None)
    if not isinstance(found, type):
        classes = [known for known, value in vars(module).items() if isinstance(value, type)]
        hint = did_you_mean(name, classes).strip() or f"it has {', '.join(classes) or 'none'}"
        raise ConfigError(f"sampler.kind is {kind!r}, and {place} has no class {name!r}; {hint}")
    missing = [needed for needed in ("sample", "uses_sentence_ends") if not hasattr(found, needed)]
    if missing or not is_dataclass(found):
        raise ConfigError(
            f"sampler.kind is {kind!r}, which is no sampler; it must be a dataclass with `sample` and "
            f"`uses_sentence_ends`, and has no {missing[0] if missing else '@dataclass'}"
        )
    return found


def _of_file(path: Path, kind: str) -> ModuleType:
    """The module of a file, imported once."""
    if not path.is_file():
        raise ConfigError(f"sampler.kind is {kind!r}, and there is no file {str(path.absolute())!r}")
    # By its path, since two files may have the same name; and a name of one word, since a dot would be a package's.
    name = f"skipwise_own_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    if name not in sys.modules:
        spec = spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        # Dataclasses look their module up while they are made.
        module = sys.modules[name] = module_from_spec(spec)
        try:
            with _as_refusals(kind):
                spec.loader.exec_module(module)
        except ConfigError:
            del sys.modules[name]
            raise
    return sys.modules[name]


def _of_name(name: str, kind: str) -> ModuleType:
    with _as_refusals(kind):
        return importlib.import_module(name)


@contextmanager
def _as_refusals(kind: str) -> Iterator[None]:
    """Raises what importing a user's code raised as an error of the setting that names it."""
    try:
        yield
    except Exception as error:
        told = f"{type(error).__name__}: {first_line(error)}"
        raise ConfigError(
            f"sampler.kind is {kind!r}, which cannot be imported ({told}); give FILE.py:CLASS, or MODULE:CLASS of an "
            "installed package"
        ) from error
