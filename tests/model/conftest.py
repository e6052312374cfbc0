"""Checkpoints of all families, made once."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tiny_models import family_config, save_tiny


@pytest.fixture(scope="session", autouse=True)
def no_tokenizers_of_earlier_runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKIPWISE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a random model of one of `FAMILIES` with a byte tokenizer, made on first use."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            made[family] = save_tiny(tmp_path_factory.mktemp(family), family_config(family), noise=0.1)
        return made[family]

    return make
