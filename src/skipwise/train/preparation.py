"""The model of a run: loaded with its interpolation, and probed before anything is trained."""

import logging
from collections.abc import Sequence
from typing import Any

from accelerate import PartialState

from skipwise.doctor import doctor, require_healthy
from skipwise.model import LoadedModel, check_read_as_stored, load_model
from skipwise.records.verdict import Verdict, refused_mask
from skipwise.train.arguments import CHECKPOINTING, mixed_precision
from skipwise.train.context import context_group, probe_context
from skipwise.train.quantized import quantization_of
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
    how = how or {"dtype": config.dtype, "quantization": quantization_of(config, run.arguments, run.checked.base)}
    if (source := run.whole_checkpoint) is None:
        source = config.model
        interpolation = config.build_interpolation()
        how |= {"interpolation": interpolation, "window": run.window, "original": config.original}
    with loaded_whole(run.arguments):
        return load_model(source, attention=config.attention, trust_remote_code=config.trust_remote_code, **how)


def load_to_train(run: Session) -> LoadedModel:
    """The same, on the device that it is trained on."""
    loaded = load(run)
    check_read_as_stored(loaded.model)
    loaded.model.to(PartialState().device)  # pyright: ignore[reportArgumentType]
    return loaded


def prepare(run: Session) -> None:
    """Loads the model and probes it.

    Raises:
        UnsupportedModelError: the preflight failed, and not only for a mask that the run can do without.
    """
    run.loaded = load_to_train(run)
    config, model = run.config, run.loaded.model
    with loaded_whole(run.arguments):
        verdicts = doctor(
            model,
            run.window,
            config.build_interpolation(),
            tokenizer=run.loaded.tokenizer,
            gradient_checkpointing=run.training[CHECKPOINTING],
            mixed_precision=mixed_precision(run.arguments),
            check_dilution=config.dilution,
            # In the other processes of a parallel run, transformers writes no files.
            check_reload=PartialState().is_main_process,
            seed=config.seed,
        )
    run.context = context_group(config, run.arguments.device)
    if run.context is not None:
        verdicts.append(probe_context(model, run.window, run.context, mixed_precision(run.arguments), config.seed))
    _tell(verdicts)
    if (refused := refused_mask(verdicts)) and run.without_mask(refused):
        verdicts = [verdict for verdict in verdicts if verdict.status != "fail"]
    require_healthy(verdicts)
    run.verdicts = verdicts


def _tell(verdicts: Sequence[Verdict]) -> None:
    """Logs one line if all is well, and each verdict if not; with debugging, each in any case."""
    failed = any(verdict.status == "fail" for verdict in verdicts)
    for verdict in verdicts:
        logger.log(logging.INFO if failed else logging.DEBUG, verdict.line)
    if not failed:
        logger.info(f"preflight: {len(verdicts)} check{'' if len(verdicts) == 1 else 's'} passed")
