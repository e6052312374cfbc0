"""Extend a model: from a run's settings to a checkpoint folder that any reader loads.

    config -> model with the interpolation built in -> preflight -> token store -> curriculum -> Trainer -> folder
                                                                            -> with `calibrate`, an attention factor

The folder holds safetensors, `config.json` for readers of both eras, the tokenizer, a model card, and `skipwise.json`
with everything that was done. What stands beside them while training is told in `folder.py`.

    recipe.py      which recipe a run has that names none
    arguments.py   the run's `training` settings over the paper's rates and steps
    folder.py      the output folder: free, or a run to resume
    data.py        documents -> curriculum; validation.py, what it is watched by
    curriculum.py  what is trained step by step; exercises.py, what is not of documents
    streamed.py    its items, where documents are streamed
    tuning.py      which parameters are trained
    widening.py    of a model in 16 bits in float32
    quantized.py   a base in 4 bits, and the plain model at the end
    calibration.py the attention factor, chosen when training is done
    fitting.py     fewer windows at a time where memory runs out
    context.py     windows whose tokens are split over processes; ring.py, on CPUs
    guard.py       steps whose loss is no number, or explodes
    sharding.py    models that are split over processes
    trainer.py     the thin `transformers.Trainer`
    record.py      what was done, for people and machines
    process.py     seconds, peak memory, and how a run is told to stop
"""

import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from accelerate import PartialState
from transformers import PreTrainedConfig

from skipwise.allocator import use_one_malloc_arena
from skipwise.calibrate import require_calibratable
from skipwise.config import FullTuning, QloraTuning, RunConfig
from skipwise.config.recipes import AUTO
from skipwise.data.corpus import TokenStore
from skipwise.data.documents import Sources
from skipwise.data.stream import DocumentStream
from skipwise.data.tokens import require_fast
from skipwise.distributed import close_group_at_exit
from skipwise.doctor import Verdict, doctor
from skipwise.errors import CheckpointError, ConfigError
from skipwise.loss import use_chunked_loss
from skipwise.model import (
    LoadedModel,
    check_loads_in_four_bits,
    check_read_as_stored,
    check_saved,
    check_trainable,
    load_model,
    original_window,
    portability_note,
    read_config,
    read_tokenizer,
    save_model,
    share_weights,
    without_weights,
)
from skipwise.positions import PositionSampler
from skipwise.train.arguments import CHECKPOINTING, mixed_precision, training_arguments, training_settings
from skipwise.train.calibration import calibrate_run, calibration_documents
from skipwise.train.context import check_context, context_group, num_groups, probe_context
from skipwise.train.curriculum import collate, collate_diluted
from skipwise.train.data import (
    RunStage,
    build_curriculum,
    check_sources,
    run_stages,
    short_stage,
)
from skipwise.train.durable import step_of
from skipwise.train.fitting import TooManyAtATimeError, fewer_at_a_time, smaller_batches
from skipwise.train.folder import RECORD_FILE, SETTINGS_FILE, RunFolder
from skipwise.train.guard import BadItems, StepGuard
from skipwise.train.process import Stopwatch, free_memory
from skipwise.train.quantized import (
    give_back,
    merge_record,
    merged_in_full,
    quantization_of,
    run_dtype,
    share_in_four_bits,
)
from skipwise.train.recipe import (
    NoRoomToGrowError,
    RecipeRefusedError,
    as_begun,
    exercises_as_fit,
    require_healthy_run,
    settle_recipe,
)
from skipwise.train.record import finite_log, run_record, sampler_text, streamed_counts, write_record
from skipwise.train.sharding import gathered, is_sharded, keep_for_the_loss, loaded_whole
from skipwise.train.tuning import apply_tuning, check_tuning, is_adapted, merged
from skipwise.train.validation import build_validation, find_held_out_end, tell_held_out_end, validation_lengths
from skipwise.window import Window

__all__ = ["ExtendResult", "begin_or_go_on", "extend", "training_arguments"]

logger = logging.getLogger("skipwise")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtendResult:
    """What a run left behind.

    Attributes:
        folder: of the extended model; of the checkpoints where the run was stopped.
        finished: False where the run was stopped on request and can be resumed.
        steps: optimizer steps done so far.
        verdicts: of the preflight.
        log: the Trainer's log, one dict an entry: loss by step, validation perplexities from before training on.
        record: what stands in `skipwise.json`; empty where the run was stopped.
    """

    folder: Path
    finished: bool
    steps: int
    verdicts: list[Verdict]
    log: list[dict[str, Any]]
    record: dict[str, Any]


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
    asked = config
    given = as_begun(config) if resume or RunFolder(config).is_to_be_resumed else config
    base = read_config(given.model, original=given.original, trust_remote_code=given.trust_remote_code)
    config = settle_recipe(given, base, sampler)
    how: dict[str, Any] = {"sampler": sampler, "resume": resume, "skip_bad_items": skip_bad_items}
    while True:
        try:
            return _extend_as_fits(config, asked=asked, **how)
        except RecipeRefusedError as error:
            if given.recipe != AUTO or error.instead == config.recipe:
                raise
            logger.warning(f"recipe: {error.instead}, and not {config.recipe}, as {error}")
            if isinstance(error, NoRoomToGrowError):
                RunFolder(config).start_over(error.instead)
                if PartialState().num_processes > 1:
                    # The others wait for this one, and only whoever started them can start them anew.
                    raise
            config = given.with_recipe(error.instead)
        free_memory()


def begin_or_go_on(config: RunConfig) -> dict[str, Any] | None:
    """The record of a run of which the end alone counts: begun, gone on with, or read where it is finished.

    Returns:
        What stands in its `skipwise.json`; None where it was stopped on request. No checkpoint outlives the end.

    Raises:
        SkipwiseError: as `extend`.
    """
    folder = config.output_folder
    if (folder / RECORD_FILE).exists():
        record = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
    else:
        result = extend(config, resume=(folder / SETTINGS_FILE).exists())
        if not result.finished:
            return None
        record = result.record
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    return record


def _extend_as_fits(
    config: RunConfig, *, sampler: PositionSampler | None, resume: bool, skip_bad_items: bool, asked: RunConfig
) -> ExtendResult:
    """`extend`, with fewer windows at a time where memory runs out."""
    folder = RunFolder(config)
    if folder.is_to_be_resumed:
        # What was skipped is on record; what has gone wrong since is not to be skipped unasked.
        resume, skip_bad_items = True, False
    try:
        while True:
            fitting = smaller_batches(config, folder.most_at_a_time()) if resume else config
            how: dict[str, Any] = {"sampler": sampler, "resume": resume, "skip_bad_items": skip_bad_items}
            try:
                return _extend(fitting, folder, asked=asked, **how)
            except TooManyAtATimeError as error:
                folder.remember_most_at_a_time(error.most)
                logger.warning(str(error))
                if PartialState().num_processes > 1:
                    # The others wait for this one, and only whoever started them can start them anew.
                    raise
            # What was begun goes on, by now without what the error held of the last try.
            resume, skip_bad_items = True, False
            free_memory()
    finally:
        folder.release()


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedRun:
    """What a run's settings come to for its model.

    Attributes:
        base: config of the model.
        sampler: of positions.
        window: its lengths, in tokens.
        stages: as `run_stages` gives them.
        validation_lengths: in tokens.
        sources: its documents, looked through.
    """

    base: PreTrainedConfig
    sampler: PositionSampler
    window: Window
    stages: list[RunStage]
    validation_lengths: list[int]
    sources: Sources


def check_run(config: RunConfig, sampler: PositionSampler | None = None, *, processes: int | None = None) -> CheckedRun:
    """Finds all that can be wrong with a run without reading weights or tokenizing documents.

    Files are looked at after all that takes no time, and before even the tokenizer is loaded.

    Args:
        config: the run.
        sampler: in place of its own.
        processes: of the run; by default as many as this process is one of.

    Raises:
        SkipwiseError: as `extend`.
    """
    trusted = {"trust_remote_code": config.trust_remote_code}
    base = read_config(config.model, original=config.original, **trusted)
    config = settle_recipe(config, base, sampler, processes)
    window = config.resolve_window(original_window(base))
    stages = run_stages(config, window, training_settings(config)["max_steps"], sampler)
    every_stage = [*stages, *filter(None, [short_stage(config, stages)])]
    check_context(config, base, [stage.window for stage in every_stage], processes)
    lengths = validation_lengths(config, window)
    sampler = sampler or config.build_sampler()
    for stage in stages:
        # A sampler is made without knowing its window, and may refuse it.
        stage.sampler.sample(window.target, stage.window, np.random.default_rng(0))
    check_trainable(config.model, base)
    if not isinstance(config.tuning, FullTuning):
        skeleton = without_weights(base, **trusted)
        if isinstance(config.tuning, QloraTuning):
            check_loads_in_four_bits(config.model, **trusted)
            logger.info(f"4 bits hold {share_in_four_bits(skeleton):.0%} of the weights")
        check_tuning(skeleton, config.tuning)
    sources = check_sources(config)
    require_fast(read_tokenizer(config.model, base, **trusted))
    return CheckedRun(
        base=base,
        sampler=sampler,
        window=window,
        stages=stages,
        validation_lengths=lengths,
        sources=sources,
    )


def _extend(
    config: RunConfig,
    folder: RunFolder,
    *,
    sampler: PositionSampler | None,
    resume: bool,
    skip_bad_items: bool,
    asked: RunConfig,
) -> ExtendResult:
    if skip_bad_items and not resume:
        raise ConfigError("--skip-bad-items is for a run that had bad steps; give --resume with it")
    checked = check_run(config, sampler)
    sources = checked.sources
    sampler, window, lengths = checked.sampler, checked.window, checked.validation_lengths
    training = training_settings(config)
    # First, as it tells the processes of a parallel run of one another.
    arguments = training_arguments(config)
    checkpoint = folder.checkpoint() if resume else folder.require_free()
    bad_items = BadItems(folder.path)
    if resume and skip_bad_items:
        logger.info(f"going on without {len(bad_items.skip()):,} items of steps that went wrong")
    elif folder.is_to_be_resumed and len(bad_items.bad_steps) >= config.guard.bad_steps:
        raise CheckpointError(
            f"{len(bad_items.bad_steps)} steps have gone wrong, and starting anew does not mend them: their items are "
            f"in {str(bad_items.path)!r}; go on without them by --resume --skip-bad-items"
        )
    # Validation before training has been, where a run goes on.
    arguments.eval_on_start = checkpoint is None

    show_bars = PartialState().is_main_process and not config.training.get("disable_tqdm", False)
    use_one_malloc_arena()
    stopwatch = Stopwatch()
    transformers.set_seed(config.seed)
    split = is_sharded(arguments)
    # A checkpoint on the way is a whole extended model; of low-rank additions, or shards, it holds no more than these.
    whole = checkpoint if isinstance(config.tuning, FullTuning) and not split else None

    def load(**how: Any) -> LoadedModel:
        with loaded_whole(arguments):
            return load_model(
                whole or config.model,
                interpolation=None if whole else config.build_interpolation(),
                window=None if whole else window,
                original=None if whole else config.original,
                attention=config.attention,
                trust_remote_code=config.trust_remote_code,
                **how,
            )

    in_training: dict[str, Any] = {
        "dtype": config.dtype,
        "quantization": quantization_of(config, arguments, checked.base),
    }
    loaded = load(**in_training)
    check_read_as_stored(loaded.model)
    loaded.model.to(PartialState().device)  # pyright: ignore[reportArgumentType]
    with loaded_whole(arguments):
        verdicts = doctor(
            loaded.model,
            window,
            config.build_interpolation(),
            tokenizer=loaded.tokenizer,
            gradient_checkpointing=training[CHECKPOINTING],
            mixed_precision=mixed_precision(arguments),
            check_dilution=config.dilution,
            # In the other processes of a parallel run the transformers library writes no files.
            check_reload=PartialState().is_main_process,
            seed=config.seed,
        )
    context = context_group(config, arguments.device)
    if context is not None:
        verdicts.append(probe_context(loaded.model, window, context, mixed_precision(arguments), config.seed))
    for verdict in verdicts:
        logger.info(verdict.line)
    require_healthy_run(verdicts)

    config = exercises_as_fit(config, asked, loaded.tokenizer, window)
    folder.keep_retrieval(config.data.retrieval)
    begun_with = folder.at_a_time(arguments.train_batch_size)
    per_step = arguments.train_batch_size * arguments.gradient_accumulation_steps * num_groups(config)
    widest = max(stage.window.train for stage in checked.stages)
    end = folder.begun_held_out_end(lambda: find_held_out_end(config, sources, loaded.tokenizer, lengths, widest))
    curriculum, documents = build_curriculum(
        config,
        sources,
        loaded.tokenizer,
        window,
        checked.stages,
        training["max_steps"],
        items_per_step=per_step,
        items_at_a_time=begun_with,
        skipped=bad_items.skipped,
        evenly=begun_with != arguments.train_batch_size,
        strict=asked.recipe == AUTO,
        together=context is not None or bool(arguments.deepspeed or arguments.fsdp),
        held_out_end=end,
    )
    from skipwise.train.trainer import SkipwiseTrainer, StopOnRequest, stream_places  # Loads all of the Trainer.

    stream = documents if isinstance(documents, DocumentStream) else None
    if stream is not None and checkpoint is not None:
        stream.restore(stream_places(checkpoint))
    validate = build_validation(config, sources, loaded, lengths, share_out=not split, held_out_end=end)
    to_calibrate_on = None
    if config.calibrate:
        # What cannot be calibrated is said before hours of training.
        to_calibrate_on = calibration_documents(
            config.data, loaded.tokenizer, window.target, progress=show_bars, sources=sources, held_out_end=end
        )
        require_calibratable(loaded.model, loaded.tokenizer, to_calibrate_on)
    folder.begin(
        sampler=sampler_text(sampler),
        corpus=documents.fingerprint,
        windows=per_step,
        at_a_time=arguments.train_batch_size,
        held_out_end=end,
    )
    record = run_record(config, training, window, sampler, sources, documents, verdicts)
    if end is not None and isinstance(documents, TokenStore):
        record["corpus"]["held_out_end"] = tell_held_out_end(end, documents)

    use_chunked_loss(loaded.model)
    model = apply_tuning(loaded.model, config.tuning)
    keep_for_the_loss(model, arguments)
    stop = StopOnRequest(logger.warning)
    trainer = SkipwiseTrainer(
        guard=StepGuard(config.guard, bad_items, curriculum.describe, logger.warning),
        model=model,
        args=arguments,
        train_dataset=curriculum,
        data_collator=collate_diluted if config.dilution else collate,
        tokenizer=loaded.tokenizer,
        validate=validate,
        stream=stream,
        context=context,
        callbacks=[stop],
    )
    with stop.listening(), fewer_at_a_time(trainer, 0 if checkpoint is None else step_of(checkpoint)):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    steps, log = trainer.state.global_step, finite_log(trainer.state.log_history)
    finished = not stop.requested or steps == trainer.state.max_steps

    if finished:
        record |= {
            "steps": steps,
            # Seconds and peak memory are those of this process, from this step on.
            "resumed_at_step": None if checkpoint is None else step_of(checkpoint),
            "seconds": round(stopwatch.seconds, 1),
            "training_seconds": round(sum(entry.get("step_seconds", 0.0) for entry in log), 1),
            "peak_bytes": stopwatch.peak_bytes,
            "bad_steps": bad_items.bad_steps,
            "skipped_items": bad_items.skipped,
            "log": log,
        }
        if stream is not None:
            record["corpus"] |= streamed_counts(stream, sources)
        writes = trainer.is_world_process_zero()
        if split:
            model = gathered(trainer, lambda: apply_tuning(load(**in_training).model, config.tuning))
        if writes and is_adapted(model):
            model.save_pretrained(str(folder.path / "adapter"), save_embedding_layers=False)
            share_weights(folder.path / "adapter")
        plain: Any = model
        if isinstance(config.tuning, QloraTuning):
            dtype = run_dtype(config, checked.base)
            record["merge"] = merge_record(config.tuning, dtype)
            if writes or to_calibrate_on is not None:
                plain = merged_in_full(model, load(dtype="float32").model, config.tuning, dtype)
                give_back(model)
        elif writes or not split:
            plain = merged(model)
        # The chunked loss, which stood in for the model's own forward pass.
        vars(plain).pop("forward", None)
        if writes:
            save_model(plain, loaded.tokenizer, folder.path)
            with loaded_whole(arguments):
                check_saved(plain, folder.path)
        factor = None
        if to_calibrate_on is not None:
            # At the target a pass may need the memory that gradients and the optimizer hold.
            plain.zero_grad(set_to_none=True)
            trainer.optimizer = trainer.lr_scheduler = None
            trainer.accelerator.free_memory()
            plain.to(PartialState().device)
            record["calibration"], factor = calibrate_run(
                plain, loaded.tokenizer, to_calibrate_on, folder.path, seed=config.seed, progress=show_bars
            )
        if writes:
            note = portability_note(plain.config)
            write_record(folder.path, record, window, verdicts, notes=[note] if note else [], factor=factor)
    return ExtendResult(
        folder=folder.path,
        finished=finished,
        steps=steps,
        verdicts=verdicts,
        log=log,
        record=record if finished else {},
    )
