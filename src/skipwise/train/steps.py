"""The steps of a run: what they are made of, the Trainer that takes them, and smaller ones if memory runs out."""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import transformers
from accelerate import PartialState

from skipwise.calibrate import require_calibratable
from skipwise.data.corpus import Corpus, StoredCorpus, TokenStore
from skipwise.data.stream import DocumentStream
from skipwise.loss import use_chunked_loss
from skipwise.train.calibration import calibration_documents
from skipwise.train.context import num_groups
from skipwise.train.curriculum import Curriculum, collate, collate_diluted
from skipwise.train.data import make_stages
from skipwise.train.durable import step_of
from skipwise.train.fitting import TooMuchAtATimeError, fewer_at_a_time
from skipwise.train.guard import StepGuard
from skipwise.train.preparation import load_to_train
from skipwise.train.progress import StopOnRequest
from skipwise.train.record import run_record, sampler_text
from skipwise.train.session import Session
from skipwise.train.sharding import keep_for_the_loss
from skipwise.train.tuning import apply_tuning
from skipwise.train.validation import build_validation, tell_held_out_end

if TYPE_CHECKING:
    from skipwise.train.trainer import SkipwiseTrainer

logger = logging.getLogger("skipwise")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A run whose steps are done, or were stopped on request.

    Attributes:
        trainer: that has trained it.
        documents: of its first stage.
        to_calibrate_on: documents to choose an attention factor by; None if none is to be chosen.
        record: what was known before its first step, ready for JSON.
        finished: False if it was stopped.
    """

    trainer: "SkipwiseTrainer"
    documents: TokenStore | DocumentStream
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
    from skipwise.train.trainer import SkipwiseTrainer  # Loads the whole Trainer of transformers.

    transformers.set_seed(run.config.seed)
    loaded, corpus, config = run.loaded, run.corpus, run.config
    assert loaded is not None
    assert corpus is not None
    curriculum, documents = _curriculum(run, corpus)
    validate = build_validation(config, corpus, loaded, run.checked.validation_lengths, share_out=not run.split)
    to_calibrate_on = None
    if config.calibrate:
        # A model that cannot be calibrated is refused before hours of training.
        to_calibrate_on = calibration_documents(corpus, run.window.target)
        require_calibratable(loaded.model, loaded.tokenizer, to_calibrate_on)
    record = _begin(run, documents)
    use_chunked_loss(loaded.model)
    model = apply_tuning(loaded.model, config.tuning)
    keep_for_the_loss(model, run.arguments)
    stop = StopOnRequest(logger.warning)
    trainer = SkipwiseTrainer(
        guard=StepGuard(config.guard, run.bad_items, curriculum.describe, logger.warning),
        model=model,
        args=run.arguments,
        train_dataset=curriculum,
        data_collator=collate_diluted if config.dilution else collate,
        tokenizer=loaded.tokenizer,
        validate=validate,
        stream=documents if isinstance(documents, DocumentStream) else None,
        context=run.context,
        callbacks=[stop],
    )
    checkpoint = run.checkpoint
    with stop.listening(), fewer_at_a_time(trainer, 0 if checkpoint is None else step_of(checkpoint)):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finished = not stop.requested or trainer.state.global_step == trainer.state.max_steps
    return Trained(
        trainer=trainer, documents=documents, to_calibrate_on=to_calibrate_on, record=record, finished=finished
    )


def _curriculum(run: Session, corpus: Corpus) -> tuple[Curriculum, TokenStore | DocumentStream]:
    """All items of the run in order, and the documents of its first stage."""
    config, arguments = run.config, run.arguments
    # Runs of earlier versions do not say how many windows were trained at a time.
    begun_with = run.folder.run.begun().get("at_a_time", arguments.train_batch_size)
    steps, windows = run.training["max_steps"], _windows_per_step(run)
    stages, short, documents = make_stages(config, corpus, run.stages, num_steps=steps, items_per_step=windows)
    curriculum = Curriculum(
        stages,
        steps,
        run.window.train,
        items_per_step=windows,
        items_at_a_time=begun_with,
        skipped=run.bad_items.skipped,
        evenly=begun_with != arguments.train_batch_size,
        # Processes that share a model or windows cannot do without a batch alone.
        keep_tokens=config.keep_tokens and run.context is None and not (arguments.deepspeed or arguments.fsdp),
        short=short,
        short_steps=config.short_steps,
    )
    if isinstance(documents, DocumentStream) and run.checkpoint is not None:
        from skipwise.train.trainer import stream_places

        documents.restore(stream_places(run.checkpoint))
    return curriculum, documents


def _begin(run: Session, documents: TokenStore | DocumentStream) -> dict[str, Any]:
    """Claims the folder, and returns the record of what is known before the first step."""
    end = documents.view.held_out_end if isinstance(documents, TokenStore) else None
    run.folder.begin(
        run.resolved,
        sampler=sampler_text(run.checked.sampler),
        corpus=_fingerprint(run, documents),
        windows=_windows_per_step(run),
        at_a_time=run.arguments.train_batch_size,
        end=end,
    )
    record = run_record(run, documents)
    if end is not None and isinstance(documents, TokenStore):
        record["corpus"]["held_out_end"] = tell_held_out_end(end, documents)
    return record


def _fingerprint(run: Session, documents: TokenStore | DocumentStream) -> str:
    """Identifies the documents of the first stage, whatever window fits into memory."""
    if isinstance(run.corpus, StoredCorpus) and "widest_tokens" in run.folder.run.begun():
        documents = run.corpus.documents("train", min_tokens=run.first_window_tokens)
    return documents.fingerprint


def _windows_per_step(run: Session) -> int:
    arguments = run.arguments
    return arguments.train_batch_size * arguments.gradient_accumulation_steps * num_groups(run.config)
