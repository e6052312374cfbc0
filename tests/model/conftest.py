"""Checkpoints of every family, made once."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from model_families import FAMILIES, SMALL
from transformers import AutoConfig, AutoModelForCausalLM


@pytest.fixture(scope="session")
def checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a random model of a family, made when first asked for, with the tiny checkpoint's tokenizer."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            settings = FAMILIES[family]
            if "text_config" not in settings:
                settings = {**SMALL, **settings}
            with torch.random.fork_rng():
                torch.manual_seed(0)
                model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **settings))
                for parameter in model.parameters():
                    # Large enough that attention is far from uniform, so a wrong table shows in the logits.
                    parameter.data += 0.1 * torch.randn_like(parameter)
            model.save_pretrained(folder)
            copy_tokenizer(tiny_checkpoint, folder)
            made[family] = folder
        return made[family]

    return make


def copy_tokenizer(source: Path, folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, folder)
