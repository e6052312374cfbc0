"""The model of a run: loaded with its interpolation, and probed before anything is trained."""

import functools
import gc
import logging
from collections.abc import Sequence
from typing import Any

from accelerate import PartialState
from transformers import PreTrainedModel

from skipwise.allocator import give_back_free_memory
from skipwise.config import QloraTuning
from skipwise.doctor import doctor, doctor_of_slice, require_healthy
from skipwise.errors import CheckpointError
from skipwise.model import (
    LoadedModel,
    apart,
    check_read_as_stored,
    extent_of_slice,
    load_model,
    reads_rows,
    without_weights,
)
from skipwise.records.verdict import Verdict, refused_mask
from skipwise.report.quantities import bytes_text
from skipwise.train.arguments import CHECKPOINTING, mixed_precision
from skipwise.train.context import context_group, probe_context
from skipwise.train.fsdp import require_splittable
from skipwise.train.process import room_bytes
from skipwise.train.quantized import quantization_of, run_dtype
from skipwise.train.session import Session
from skipwise.train.sharding import loaded_whole

logger = logging.getLogger("skipwise")


def load(run: Session, **how: Any) -> LoadedModel:
    """Loads the model of a run under its interpolation, or the last checkpoint if that is a whole model.

    Args:
        run: the run.
        how: further arguments of `load_model`; by default those of training.
    """
    config = run.config
    if not how:
        quantization = quantization_of(config, run.arguments, run.checked.base)
        how = {"dtype": config.dtype, "quantization": quantization, "in_shards": run.shards}
    if (source := run.whole_checkpoint) is None:
        source = config.model
        interpolation = config.build_interpolation()
        how |= {"interpolation": interpolation, "window": run.window, "original": config.original}
    with loaded_whole(run.arguments):
        return load_model(source, attention=config.attention, trust_remote_code=config.trust_remote_code, **how)


def load_to_train(run: Session) -> LoadedModel:
    """The same, on the device that it is trained on."""
    loaded = load(run)
    if run.shards:
        plain, run.rows = apart(loaded.model)
        loaded = loaded._replace(model=plain)
        gc.collect()
        give_back_free_memory()
    check_read_as_stored(loaded.model)
    if not run.shards:
        loaded.model.to(PartialState().device)  # pyright: ignore[reportArgumentType]
    return loaded


def require_room(run: Session) -> None:
    """Refuses a model whose weights alone are more than a process has memory for, or that cannot be split as asked.

    Raises:
        CheckpointError: with the numbers.
        UnsupportedModelError: FSDP2 does not take the model.
    """
    config, base = run.config, run.checked.base
    with loaded_whole(run.arguments):
        skeleton = without_weights(base, trust_remote_code=config.trust_remote_code)
    if run.shards:
        require_splittable(skeleton)
    if isinstance(config.tuning, QloraTuning):
        return
    whole: int = run_dtype(config, base).itemsize * sum(parameter.numel() for parameter in skeleton.parameters())
    needed, processes, why = whole, PartialState().num_processes, ""
    if run.shards and reads_rows(config.model, skeleton):
        extent = extent_of_slice(base, trust_remote_code=config.trust_remote_code)
        if extent.num_layers is None and extent.reason:
            why = f", all of them for its preflight, since {extent.reason},"
        else:
            needed = -(-whole // processes)
            why = f", {bytes_text(needed)} in each of {processes} processes,"
    device: Any = run.arguments.device
    if needed <= (room := room_bytes(device)):
        return
    more = max(2, -(-whole // max(room, 1)))
    split = f"split them over {more} processes or more by --launch fsdp2 --nproc {more}"
    raise CheckpointError(
        f"the weights of {config.model} take {bytes_text(whole)}{why} and this process has memory for "
        f"{bytes_text(room)}: {split if more < 1000 else 'free memory'}, or train in bfloat16 or by qlora; `skipwise "
        "plan` says what fits",
        page="out-of-memory",
    )


def prepare(run: Session) -> None:
    """Loads the model and probes it.

    Raises:
        CheckpointError: a process has no memory for its weights.
        UnsupportedModelError: the preflight failed, and not only for a mask that the run can do without.
    """
    require_room(run)
    config = run.config
    run.context = context_group(config, run.arguments.device)
    probed = {
        "gradient_checkpointing": run.training[CHECKPOINTING],
        "mixed_precision": mixed_precision(run.arguments),
        "check_dilution": config.dilution,
        # In the other processes of a parallel run, transformers writes no files. 4-bit weights that are packed for
        # FSDP2 cannot be loaded again, and are not what the run leaves.
        "check_reload": PartialState().is_main_process and not (run.shards and isinstance(config.tuning, QloraTuning)),
        "seed": config.seed,
    }
    verdicts = _probe_slice(run, probed) if run.shards else []
    run.loaded = load_to_train(run)
    if not run.shards:
        model, tokenizer = run.loaded
        with loaded_whole(run.arguments):
            verdicts = doctor(model, run.window, config.build_interpolation(), tokenizer=tokenizer, **probed)
        if run.context is not None:
            verdicts.append(_probe_context(run, model))
    _tell(verdicts)
    if (refused := refused_mask(verdicts)) and run.without_mask(refused):
        verdicts = [verdict for verdict in verdicts if verdict.status != "fail"]
    require_healthy(verdicts)
    run.verdicts = verdicts


def _probe_slice(run: Session, probed: dict[str, Any]) -> list[Verdict]:
    """Probes the first layers, before any process has its part of the whole model."""
    config = run.config
    return doctor_of_slice(
        config.model,
        run.window,
        config.build_interpolation(),
        original=config.original,
        dtype=config.dtype,
        attention=config.attention,
        quantization=quantization_of(config, run.arguments, run.checked.base),
        trust_remote_code=config.trust_remote_code,
        device=run.arguments.device,
        also=None if run.context is None else functools.partial(_probe_context, run),
        **probed,
    )


def _probe_context(run: Session, model: PreTrainedModel) -> Verdict:
    assert run.context is not None
    return probe_context(model, run.window, run.context, mixed_precision(run.arguments), run.config.seed)


def _tell(verdicts: Sequence[Verdict]) -> None:
    """Logs one line if all is well, and each verdict if not; with debugging, each in any case."""
    failed = any(verdict.status == "fail" for verdict in verdicts)
    for verdict in verdicts:
        logger.log(logging.INFO if failed else logging.DEBUG, verdict.line)
    if not failed:
        logger.info(f"preflight: {len(verdicts)} check{'' if len(verdicts) == 1 else 's'} passed")
