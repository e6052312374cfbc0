"""Extend a model: from a run's settings to a checkpoint folder that any reader loads.

    settings -> what `resolve` makes of them -> model with the interpolation built in -> preflight -> curriculum
             -> Trainer -> folder, with `calibrate` an attention factor

The folder holds safetensors, `config.json` for readers of transformers 4 and 5, the tokenizer, a model card, and
`skipwise.json` with everything that was done. `folder.py` says what else is in it during training.

    session.py     what one process knows of its run; checks.py, all that can be wrong without weights
    preparation.py the model, loaded and probed
    steps.py       curriculum and Trainer; fitting.py, smaller micro-batches if memory runs out
    delivery.py    the model at the end: gathered, merged, saved, calibrated

    arguments.py   `training` settings over the paper's; _trainer.py, trainer.py, the thin `transformers.Trainer`
    folder.py      the output folder: free, or a run to resume; durable.py, its checkpoints; record.py, what was done
    data.py        documents -> stages of training; validation.py, the held-out split
    curriculum.py  what is trained at each step; exercises.py, retrieval exercises; streamed.py, streamed documents
    tuning.py      which parameters are trained; widening.py, in float32; quantized.py, over 4 bits
    calibration.py the attention factor, chosen when training is done
    context.py     windows whose tokens are split over processes; ring.py, on CPUs
    fsdp.py        models split over processes by FSDP2; plain_parts.py, their weights as those of a plain model
    sharding.py    models that DeepSpeed splits
    guard.py       steps with a loss that is not finite, or explodes; log.py, the log of all steps
    progress.py    what is shown meanwhile; process.py, seconds, memory and signals
"""

import shutil
from typing import Any

from skipwise.allocator import free_large_blocks_at_once, use_one_malloc_arena
from skipwise.config import RunConfig
from skipwise.distributed import close_group_at_exit
from skipwise.positions import PositionSampler
from skipwise.records.runs import Run
from skipwise.train.delivery import ExtendResult, deliver
from skipwise.train.folder import RunFolder
from skipwise.train.preparation import prepare
from skipwise.train.session import open_session
from skipwise.train.steps import train


def extend(
    config: RunConfig, *, sampler: PositionSampler | None = None, resume: bool = False, skip_bad_items: bool = False
) -> ExtendResult:
    """Extends a model's context window by skip-wise training.

    Args:
        config: the run.
        sampler: used instead of the one that `config.sampler` describes, for samplers of your own.
        resume: continue from the run's last checkpoint; the result is that of an uninterrupted run. A process restarted
            by an elastic launcher resumes by itself.
        skip_bad_items: with `resume`, replace the items of steps that went wrong by others.

    Returns:
        What the run made: the folder with the extended model, or with the checkpoint to resume from if it was
        stopped on request, and the record of what was done.

    Raises:
        ConfigError: settings that cannot be used, or an output folder that is taken.
        DataError: documents that cannot be read, or too short.
        PositionError: lengths that contradict each other.
        CheckpointError: a model or checkpoint that cannot be read or written, losses that are not finite, or no memory
            for a single window.
        UnsupportedModelError: the model has no positions to extend, or the preflight failed.
    """
    close_group_at_exit()
    use_one_malloc_arena()
    if config.parallel.shard:
        free_large_blocks_at_once()
    with RunFolder(config.output_folder) as folder:
        run = open_session(folder, config, sampler, resume=resume, skip_bad_items=skip_bad_items)
        prepare(run)
        run.resolve()
        return deliver(run, train(run))


def begin_or_go_on(config: RunConfig) -> dict[str, Any] | None:
    """Starts a run, resumes it, or reads its record if it is finished; deletes its checkpoints at the end.

    Returns:
        The contents of its `skipwise.json`; None if it was stopped on request.

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
