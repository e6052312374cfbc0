"""What an extended model was made from: read from its run's record, and checked against the weights."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel

from skipwise.errors import CheckpointError
from skipwise.model import original_window, rope_state
from skipwise.records.runs import Run
from skipwise.train.tuning import is_lora_layer

logger = logging.getLogger("skipwise")

_ADAPTER_CONFIG = "adapter_config.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where the two modes of a run come from.

    Attributes:
        adapter: folder of the difference; None if both sets of weights are needed, as after full tuning, or if the
            additions were trained over weights in 4 bits.
        is_own: whether the adapter is what the run trained, so that base and adapter make the merged weights.
    """

    folder: Path
    base: str
    adapter: Path | None
    is_own: bool


def read_origin(
    source: str | Path, *, base: str | Path | None = None, adapter: str | Path | None = None
) -> Origin | None:
    """What a run's folder says of its base model and adapter.

    Args:
        source: a folder, or any model.
        base: where the base model is now; by default where the record says.
        adapter: a folder with the difference, instead of the run's own.

    Returns:
        None if the source is not a run of `skipwise extend` and no base is given.

    Raises:
        CheckpointError: the record cannot be read, or the folder of the adapter has none.
    """
    folder = Path(source).expanduser()
    run = Run.open(folder)
    if not run.is_finished and base is None:
        if adapter is not None:
            raise CheckpointError(
                f"{str(source)!r} is not a run of skipwise extend; say what its base model is, by base",
                page="wrong-base",
            )
        return None
    model, tuning = _recorded(run)
    base = base or model
    if base is None:
        raise CheckpointError(
            f"the record of {str(folder)!r} names no base model; say where it is by base (--base)", page="wrong-base"
        )
    # Additions that were trained over 4-bit weights do not fit the base in full precision: the merged weights are what
    # was trained.
    is_own = adapter is None and run.adapter is not None and tuning != "qlora"
    chosen = run.adapter if is_own else Path(adapter).expanduser() if adapter is not None else None
    if chosen is not None and not (chosen / _ADAPTER_CONFIG).is_file():
        raise CheckpointError(
            f"adapter is {str(chosen)!r}, which has no {_ADAPTER_CONFIG}; give an adapter's folder", page="wrong-base"
        )
    return Origin(folder=folder, base=str(base), adapter=chosen, is_own=is_own)


def _recorded(run: Run) -> tuple[str | None, str | None]:
    """The base model and the kind of tuning in a run's record, as far as it names them."""
    try:
        config = (run.record() or {}).get("config", {})
        return config.get("model"), (config.get("tuning") or {}).get("kind")
    except (CheckpointError, AttributeError) as error:
        raise CheckpointError(
            f"the record of {str(run.folder)!r} cannot be read ({error}); put it aside and say where its base model is "
            "by base (--base)"
        ) from error


def check_base(short: PreTrainedModel, long: PreTrainedModel, origin: Origin) -> None:
    """Refuses a base model that is not the one that the run extended.

    Window and vocabulary must be the same; and if the run left an adapter, base and adapter must make the merged
    weights beside it.

    Raises:
        CheckpointError: it is another model, or another version of it.
    """
    before, after = original_window(short.config), original_window(long.config)
    ends: list[Any] = [model.get_input_embeddings() for model in (short, long)]
    sizes = [tuple(end.weight.shape) for end in ends]
    # The run may have been told that the base model was pre-trained for less than its config says.
    may_be_told = not rope_state(short.config).scaled and after < before
    if (before != after and not may_be_told) or sizes[0] != sizes[1]:
        raise CheckpointError(
            f"{origin.base!r} has a window of {before} tokens and embeddings of {sizes[0]}, and "
            f"{str(origin.folder)!r} was made of {after} and {sizes[1]}; give its own base model",
            page="wrong-base",
        )
    if not origin.is_own:
        return
    adapted = [(name, module) for name, module in long.named_modules() if is_lora_layer(module)]
    # Another base would show in the outermost layers.
    outermost = dict([*adapted[:1], *adapted[-1:]])
    stored = dict(stored_tensors(origin.folder, {f"{name}.weight" for name in outermost}))
    if not stored:
        logger.warning(
            f"the base model is not checked: the weights of {str(origin.folder)!r} have other names than its model's"
        )
    for name, module in outermost.items():
        if (merged := stored.get(f"{name}.weight")) is not None and not _is_merged(module, merged):
            raise CheckpointError(
                f"{origin.base!r} and the adapter do not make the weights of {str(origin.folder)!r} ({name} differs): "
                "the base model has changed since; give the one that was extended",
                page="wrong-base",
            )


def stored_tensors(folder: Path, names: set[str]) -> Iterator[tuple[str, Tensor]]:
    """Tensors of a checkpoint folder by name, as far as it has them.

    Raises:
        CheckpointError: its files are damaged.
    """
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as tensors:
                yield from ((name, tensors.get_tensor(name)) for name in names & set(tensors.keys()))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"weights {str(file)!r} are damaged ({error}); copy the run again") from error


def _is_merged(layer: Any, merged: Tensor) -> bool:
    """Whether a layer's base weight and addition make this weight, up to rounding in the coarser of their types."""
    weight: Tensor = layer.get_base_layer().weight.detach()
    expected = (weight.float() + layer.get_delta_weight("default").detach().float()).cpu()
    return is_rounded(merged, expected, weight.dtype)


def is_rounded(found: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    """Whether a tensor is another one, up to rounding in the coarser of its own number format and `dtype`."""
    allowed = 4 * max(torch.finfo(dtype).eps, torch.finfo(found.dtype).eps) * expected.abs().max()
    return found.shape == expected.shape and bool((found.float() - expected).abs().max() <= allowed)
