"""Checkpoint folders that readers of both transformers eras understand."""

import json
import tempfile
from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from skipwise.errors import CheckpointError
from skipwise.model.extend import decoder_key
from skipwise.model.source import quiet_transformers
from skipwise.rope import with_legacy_keys


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> None:
    """Writes a checkpoint folder that transformers 5 and readers of the 4 era both understand.

    A new folder appears only when it is complete; files of an existing one are replaced in place.

    Args:
        model: as `load_model` gives it, trained or not.
        tokenizer: that goes with it.
        folder: where to; its parents are made.

    Raises:
        CheckpointError: it cannot be written there.
    """
    folder = Path(folder)
    try:
        if folder.exists():
            _write_checkpoint(model, tokenizer, folder)
            return
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as unfinished:
            complete = Path(unfinished) / folder.name
            _write_checkpoint(model, tokenizer, complete)
            complete.rename(folder)
    except OSError as error:
        raise CheckpointError(
            f"checkpoint folder is {str(folder)!r} and cannot be written ({error}); choose another"
        ) from error


def save_config(config: PreTrainedConfig, folder: str | Path) -> None:
    """Writes `config.json` as `save_model` does, without any weights.

    Args:
        config: of a whole model.
        folder: where to; it is made where it is missing.
    """
    config.save_pretrained(folder)
    _add_legacy_keys(config, Path(folder))


def _write_checkpoint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    with quiet_transformers():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    _add_legacy_keys(model.config, folder)


def _add_legacy_keys(config: PreTrainedConfig, folder: Path) -> None:
    path = folder / "config.json"
    written = json.loads(path.read_text(encoding="utf-8"))
    key = decoder_key(config)
    readable = {**written, key: with_legacy_keys(written[key])} if key else with_legacy_keys(written)
    path.write_text(json.dumps(readable, indent=2, sort_keys=True) + "\n", encoding="utf-8")
