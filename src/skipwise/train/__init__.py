"""Extend a model: from a run's settings to a checkpoint folder that any reader loads.

    settings -> what `resolve` makes of them -> model with the interpolation built in -> preflight -> curriculum
             -> Trainer -> folder, with `calibrate` an attention factor

The folder holds safetensors, `config.json` for readers of both eras, the tokenizer, a model card, and `skipwise.json`
with everything that was done. What stands beside them while training is told in `folder.py`.

    checks.py      all that can be wrong without weights, and the facts that `config.recipes.resolve` asks for
    session.py     what one process knows of its run
    preparation.py the model, loaded and probed
    steps.py       curriculum and Trainer, with less at a time where memory runs out
    delivery.py    the model at the end: gathered, merged, saved, calibrated

    arguments.py   the run's `training` settings over the paper's rates and steps
    folder.py      the output folder: free, or a run to resume
    data.py        documents -> curriculum; validation.py, what it is watched by
    curriculum.py  what is trained step by step; exercises.py, what is not of documents
    streamed.py    its items, where documents are streamed
    tuning.py      which parameters are trained
    widening.py    of a model in 16 bits in float32
    quantized.py   a base in 4 bits, and the plain model at the end
    calibration.py the attention factor, chosen when training is done
    fitting.py     out-of-memory recovery
    context.py     windows whose tokens are split over processes; ring.py, on CPUs
    guard.py       steps whose loss is no number, or explodes
    sharding.py    models that are split over processes
    trainer.py     the thin `transformers.Trainer`
    record.py      what was done, for people and machines
    process.py     seconds, peak memory, and how a run is told to stop
"""

import shutil
from typing import Any

from skipwise.allocator import use_one_malloc_arena
from skipwise.config import RunConfig
from skipwise.distributed import close_group_at_exit
from skipwise.positions import PositionSampler
from skipwise.records.runs import Run
from skipwise.train.arguments import training_arguments
from skipwise.train.checks import check_run
from skipwise.train.delivery import ExtendResult, deliver
from skipwise.train.folder import RunFolder
from skipwise.train.preparation import prepare
from skipwise.train.session import open_session
from skipwise.train.steps import train

__all__ = ["ExtendResult", "begin_or_go_on", "check_run", "extend", "training_arguments"]


def extend(
    config: RunConfig, *, sampler: PositionSampler | None = None, resume: bool = False, skip_bad_items: bool = False
) -> ExtendResult:
    """Extends a model's context window by skip-wise training.

    Args:
        config: the run.
        sampler: used in place of the one that `config.sampler` describes, for samplers of your own.
        resume: go on from the run's last checkpoint; the result is that of an uninterrupted run. A process that an
            elastic launcher has started anew does so unasked.
        skip_bad_items: of a run that is resumed, do without the items of steps that went wrong; others stand in.

    Returns:
        What the run left behind: the folder with the extended model, or with the checkpoint to resume from where it was
        stopped on request, and the record of what was done.

    Raises:
        ConfigError: settings that cannot be used, or an output folder that is taken.
        DataError: documents that cannot be read, or too short.
        PositionError: lengths that contradict each other.
        CheckpointError: a model or checkpoint that cannot be read or written, losses that are no numbers, or no memory
            for a single window.
        UnsupportedModelError: the model has no positions to extend, or the preflight failed.
    """
    close_group_at_exit()
    use_one_malloc_arena()
    with RunFolder(config.output_folder) as folder:
        run = open_session(folder, config, sampler, resume=resume, skip_bad_items=skip_bad_items)
        prepare(run)
        run.resolve()
        return deliver(run, train(run))


def begin_or_go_on(config: RunConfig) -> dict[str, Any] | None:
    """The record of a run of which the end alone counts: begun, gone on with, or read where it is finished.

    Returns:
        What stands in its `skipwise.json`; None where it was stopped on request. No checkpoint outlives the end.

    Raises:
        SkipwiseError: as `extend`.
    """
    folder = config.output_folder
    run = Run.open(folder)
    if (record := run.record()) is None:
        result = extend(config, resume=run.is_begun)
        if not result.finished:
            return None
        record = result.record
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    return record
