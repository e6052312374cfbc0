"""The steps of a run: what they are made of, the Trainer that takes them, and smaller ones if memory runs out."""

import dataclasses
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import transformers
from accelerate import PartialState
from transformers import PreTrainedModel

from skipwise.calibrate import require_calibratable
from skipwise.config.stages import short_stage
from skipwise.data.corpus import Corpus, MixedStore, StreamedCorpus, TokenStore
from skipwise.data.stream import DocumentStream
from skipwise.loss import use_chunked_loss
from skipwise.train.arguments import mixed_precision
from skipwise.train.calibration import calibration_documents
from skipwise.train.context import num_groups
from skipwise.train.curriculum import Curriculum, collate, collate_diluted
from skipwise.train.data import StagedItems, make_stages
from skipwise.train.durable import step_of
from skipwise.train.fitting import TooMuchAtATimeError, fewer_at_a_time
from skipwise.train.guard import StepGuard
from skipwise.train.layout import Layout
from skipwise.train.log import RunLog
from skipwise.train.preparation import load_to_train
from skipwise.train.progress import StopAskedError, StopOnRequest
from skipwise.train.record import run_record, sampler_text
from skipwise.train.session import Session
from skipwise.train.sharding import keep_for_the_loss
from skipwise.train.tuning import apply_tuning, is_adapted, restore_additions
from skipwise.train.validation import build_validation, tell_held_out_ends

if TYPE_CHECKING:
    from peft import PeftModel

    from skipwise.train.trainer import SkipwiseTrainer

logger = logging.getLogger("skipwise")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A run whose steps are done, or were stopped on request.

    Attributes:
        trainer: that has trained it.
        log: of its steps.
        documents: of its first stage.
        to_calibrate_on: documents to choose an attention factor by; None if none is to be chosen.
        record: what was known before its first step, ready for JSON.
        finished: False if it was stopped.
    """

    trainer: "SkipwiseTrainer"
    log: RunLog
    documents: TokenStore | MixedStore | DocumentStream
    to_calibrate_on: list[np.ndarray] | None
    record: dict[str, Any]
    finished: bool


def train(run: Session) -> Trained:
    """Trains; if memory runs out on the first steps, again with less at a time, from the last checkpoint.

    Raises:
        TooMuchAtATimeError: with several processes, which wait for this one: only their launcher can restart them.
        SkipwiseError: as `skipwise.train.extend`.
    """
    try:
        return _train(run)
    except TooMuchAtATimeError as error:
        run.folder.remember(error.less)
        logger.warning(str(error))
        if PartialState().num_processes > 1:
            raise
    # Outside of the handler, which holds the memory of the failed try.
    run.begin_again()
    run.loaded = load_to_train(run)
    return train(run)


def _train(run: Session) -> Trained:
    # Loads the whole Trainer of transformers.
    from skipwise.train.trainer import ShardedTrainer, SkipwiseTrainer, is_validation_due, stream_places

    transformers.set_seed(run.config.seed)
    loaded, corpus, config = run.loaded, run.corpus, run.config
    assert loaded is not None
    assert corpus is not None
    layout = _layout(run)
    made = make_stages(config, corpus, run.stages, layout)
    skipped, documents = run.bad_items.skipped, made.documents
    curriculum = Curriculum(layout, made.stages, made.short, skipped, made.far_labels)
    if isinstance(documents, DocumentStream) and run.checkpoint is not None:
        documents.restore(stream_places(run.checkpoint))
    validate = build_validation(config, corpus, loaded, run.checked.validation_lengths, share_out=not run.split)
    to_calibrate_on = None
    if config.calibrate:
        # A model that cannot be calibrated is refused before hours of training.
        to_calibrate_on = calibration_documents(corpus, run.window.target)
        require_calibratable(loaded.model, loaded.tokenizer, to_calibrate_on)
    record = _begin(run, corpus, made)
    model = _model_to_train(run, loaded.model)
    stop, log = StopOnRequest(logger.warning), RunLog(run.folder.path, run.checkpoint)
    run.arguments.eval_on_start = is_validation_due(run.checkpoint)
    trainer = (ShardedTrainer if run.shards else SkipwiseTrainer)(
        stop=stop,
        guard=StepGuard(config.guard, run.bad_items, curriculum.describe, logger.warning),
        log=log,
        model=model,
        args=run.arguments,
        train_dataset=curriculum,
        data_collator=collate_diluted if config.dilution else collate,
        tokenizer=loaded.tokenizer,
        validate=validate,
        stream=documents if isinstance(documents, DocumentStream) else None,
        context=run.context,
        is_exercise=curriculum.is_exercise if config.data.retrieval else None,
    )
    checkpoint = run.checkpoint
    with stop.listening(), fewer_at_a_time(trainer, 0 if checkpoint is None else step_of(checkpoint)):
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except StopAskedError:
            # Before the first step, where the Trainer cannot be asked to end: bars and trackers are closed.
            trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)
    state = trainer.state
    finished = not stop.requested or (state.global_step == state.max_steps and not stop.has_cut_off)
    return Trained(
        trainer=trainer,
        log=log,
        documents=documents,
        to_calibrate_on=to_calibrate_on,
        record=record,
        finished=finished,
    )


def _model_to_train(run: Session, model: PreTrainedModel) -> "PreTrainedModel | PeftModel":
    """The model with the chunked loss and what is trained beside it, split if the run splits it."""
    use_chunked_loss(model, distill=run.config.loss.distill)
    tuned = apply_tuning(model, run.config.tuning)
    keep_for_the_loss(tuned, run.arguments)
    if run.shards:
        from skipwise.train.fsdp import shard

        if run.checkpoint is not None and is_adapted(tuned):
            restore_additions(tuned, run.checkpoint)
        shard(tuned, run.rows, run.arguments.device, mixed_precision(run.arguments))
        run.rows = {}
    return tuned


def _layout(run: Session) -> Layout:
    """Which windows each step of the run has."""
    config, arguments = run.config, run.arguments
    # Runs of earlier versions do not say how many windows were trained at a time.
    begun_with = run.folder.run.begun().get("at_a_time", arguments.train_batch_size)
    short = short_stage(config, run.stages)
    return Layout(
        stages=[(stage.begin, stage.window.train) for stage in run.stages],
        num_steps=run.training["max_steps"],
        window_tokens=run.window.train,
        items_per_step=_windows_per_step(run),
        items_at_a_time=begun_with,
        evenly=begun_with != arguments.train_batch_size,
        # Processes that share a model or windows cannot do without a batch alone.
        keep_tokens=config.keep_tokens and run.context is None and not (arguments.deepspeed or run.shards),
        short_tokens=short and short.window.train,
        short_share=config.short_share,
    )


def _begin(run: Session, corpus: Corpus, made: StagedItems) -> dict[str, Any]:
    """Claims the folder, and returns the record of what is known before the first step."""
    ends = [part.held_out_end for part in corpus.parts if part.held_out_end is not None]
    run.folder.begin(
        run.resolved,
        sampler=sampler_text(run.checked.sampler),
        corpus=_fingerprint(run, corpus, made),
        windows=_windows_per_step(run),
        at_a_time=run.arguments.train_batch_size,
        ends=ends,
    )
    record = run_record(run, made.documents)
    if made.drawn:
        record["corpus"]["sources"] = [dataclasses.asdict(drawn) for drawn in made.drawn]
    if ends:
        record["corpus"]["held_out_end"] = tell_held_out_ends(corpus)
    return record


def _fingerprint(run: Session, corpus: Corpus, made: StagedItems) -> str:
    """Identifies the documents of the first stage, whatever window fits into memory."""
    if not isinstance(corpus, StreamedCorpus) and "widest_tokens" in run.folder.run.begun():
        return corpus.training(run.first_window_tokens).fingerprint
    return made.documents.fingerprint


def _windows_per_step(run: Session) -> int:
    arguments = run.arguments
    return arguments.train_batch_size * arguments.gradient_accumulation_steps * num_groups(run.config)
