"""The steps of a run: what they are made of, the Trainer that takes them, and smaller ones if memory runs out."""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import transformers
from accelerate import PartialState

from skipwise.calibrate import require_calibratable
from skipwise.data.corpus import StoredCorpus, TokenStore
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
    from skipwise.train.trainer import SkipwiseTrainer, Validate

logger = logging.getLogger("skipwise")


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What a run is trained and measured on.

    Attributes:
        curriculum: its items in order.
        documents: of its first stage.
        validate: measures the model during training; None for never.
        to_calibrate_on: documents to choose an attention factor by; None if none is to be chosen.
    """

    curriculum: Curriculum
    documents: TokenStore | DocumentStream
    validate: "Validate | None"
    to_calibrate_on: list[np.ndarray] | None

    @property
    def stream(self) -> DocumentStream | None:
        """The documents, if they are streamed."""
        return self.documents if isinstance(self.documents, DocumentStream) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A run whose steps are done, or were stopped on request.

    Attributes:
        trainer: that has trained it.
        material: that it was trained on.
        record: what was known before its first step, ready for JSON.
        finished: False if it was stopped.
    """

    trainer: "SkipwiseTrainer"
    material: Material
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
    material = _material(run)
    record = _begin(run, material)
    assert run.loaded is not None
    use_chunked_loss(run.loaded.model)
    model = apply_tuning(run.loaded.model, run.config.tuning)
    keep_for_the_loss(model, run.arguments)
    stop = StopOnRequest(logger.warning)
    trainer = SkipwiseTrainer(
        guard=StepGuard(run.config.guard, run.bad_items, material.curriculum.describe, logger.warning),
        model=model,
        args=run.arguments,
        train_dataset=material.curriculum,
        data_collator=collate_diluted if run.config.dilution else collate,
        tokenizer=run.loaded.tokenizer,
        validate=material.validate,
        stream=material.stream,
        context=run.context,
        callbacks=[stop],
    )
    checkpoint = run.checkpoint
    with stop.listening(), fewer_at_a_time(trainer, 0 if checkpoint is None else step_of(checkpoint)):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finished = not stop.requested or trainer.state.global_step == trainer.state.max_steps
    return Trained(trainer=trainer, material=material, record=record, finished=finished)


def _material(run: Session) -> Material:
    """Makes documents into a curriculum, validation, and what to calibrate on."""
    config, loaded, arguments, corpus = run.config, run.loaded, run.arguments, run.corpus
    assert loaded is not None
    assert corpus is not None
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
    validate = build_validation(config, corpus, loaded, run.checked.validation_lengths, share_out=not run.split)
    to_calibrate_on = None
    if config.calibrate:
        # A model that cannot be calibrated is refused before hours of training.
        to_calibrate_on = calibration_documents(corpus, run.window.target)
        require_calibratable(loaded.model, loaded.tokenizer, to_calibrate_on)
    return Material(curriculum=curriculum, documents=documents, validate=validate, to_calibrate_on=to_calibrate_on)


def _begin(run: Session, material: Material) -> dict[str, Any]:
    """Claims the folder, and returns the record of what is known before the first step."""
    documents = material.documents
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
