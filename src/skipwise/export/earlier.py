"""What an export left in a folder. This module loads no library, so it can be asked early."""

import json
from pathlib import Path

from skipwise.export import RECORD_FILE
from skipwise.model.place import named_path


def is_export_of(
    folder: Path,
    source: str,
    *,
    to: str,
    dtype: str | None = None,
    rank: int | None = None,
    base_weight: float | None = None,
) -> bool:
    """Whether a folder has this export of a model already, made of the weights that the model has now.

    `dtype` None takes any number format.
    """
    if not (folder / RECORD_FILE).is_file():
        return False
    record = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
    same = record["format"] == to and Path(record["source"]).name == named_path(source).name
    same = same and record.get("base_weight") == base_weight and not _is_newer(named_path(source), folder)
    if rank is not None:
        adapter = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")) if same else {}
        same = adapter.get("r") == rank
    return same and dtype in (None, record["dtype"])


def file_of_export(place: str) -> str:
    """The .gguf file of an export's folder; any other place of a model as it is."""
    folder = Path(place).expanduser()
    files = [*folder.glob("*.gguf")] if (folder / RECORD_FILE).is_file() else []
    return str(files[0]) if len(files) == 1 else place


def _is_newer(source: Path, export: Path) -> bool:
    """Whether a model's weights were written after those of its export."""
    written, exported = (
        max((file.stat().st_mtime for file in place.glob("*") if file.suffix in (".safetensors", ".gguf")), default=0.0)
        for place in (source, export)
    )
    return written > exported
