"""What one process knows about the run that it trains, from its settings to the last step."""

import dataclasses
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from torch import Tensor

from skipwise.config import FullTuning, RunConfig
from skipwise.config.recipes import Resolved, resolve
from skipwise.config.stages import RunStage, run_stages
from skipwise.data.corpus import Corpus, StreamedCorpus, open_corpus
from skipwise.doctor import Verdict
from skipwise.errors import CheckpointError, ConfigError
from skipwise.model import LoadedModel
from skipwise.positions import PositionSampler
from skipwise.records.runs import held_out_ends
from skipwise.train.arguments import training_arguments, training_settings
from skipwise.train.checks import CheckedRun, check_run
from skipwise.train.context import ContextGroup
from skipwise.train.data import shows_bars
from skipwise.train.durable import newest_sound
from skipwise.train.fitting import smaller_batches
from skipwise.train.folder import RunFolder
from skipwise.train.guard import BadItems
from skipwise.train.process import free_memory, reset_peak_bytes
from skipwise.train.sharding import check_processes, is_zero3
from skipwise.train.validation import find_held_out_ends
from skipwise.window import Window

logger = logging.getLogger("skipwise")


@dataclass(slots=True, kw_only=True)
class Session:
    """One process's part in a run.

    Attributes:
        folder: of the run.
        given: the run as it was asked for; a resumed run as it was begun.
        resumes: whether it is resumed.
        checked: what is known without weights.
        resolved: the run with everything decided, and why.
        arguments: of the Trainer, with a micro-batch that fits into memory.
        checkpoint: to go on from; None for the beginning.
        bad_items: what went wrong before.
        began: `time.monotonic` when it began.
        corpus: the documents, without the held-out ends of some; None until the run is resolved.
        loaded: the model that is trained, and its tokenizer.
        rows: this process's rows of parameters whose stand-ins `loaded` has (`skipwise.model.shards`).
        verdicts: of the preflight.
        context: the processes that hold each window together; None if each has windows of its own.
    """

    folder: RunFolder
    given: RunConfig
    resumes: bool
    checked: CheckedRun
    resolved: Resolved
    arguments: transformers.TrainingArguments
    checkpoint: Path | None
    bad_items: BadItems
    began: float = dataclasses.field(default_factory=time.monotonic)
    corpus: Corpus | None = None
    loaded: LoadedModel | None = None
    rows: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    verdicts: list[Verdict] = dataclasses.field(default_factory=list)
    context: ContextGroup | None = None

    @property
    def config(self) -> RunConfig:
        """The run, with a micro-batch that fits into memory."""
        return smaller_batches(self.resolved.config, self._begun("most_at_a_time"))

    @property
    def training(self) -> dict[str, Any]:
        """Its `training` settings with every default spelled out."""
        return training_settings(self.config)

    @property
    def window(self) -> Window:
        """Its lengths, in tokens."""
        return self.checked.facts.window

    @property
    def stages(self) -> list[RunStage]:
        """Its stages, with windows no wider than fits into memory."""
        facts = self.checked.facts
        sampler = self.checked.sampler if facts.own_sampler else None
        return run_stages(self.resolved.config, facts.window, facts.steps, sampler, self._begun("widest_tokens"))

    @property
    def first_window_tokens(self) -> int:
        """Tokens per window at the first step, whether or not they fit into memory: they determine the corpus."""
        return run_stages(self.resolved.config, self.window, self.checked.facts.steps)[0].window.train

    @property
    def shards(self) -> bool:
        """Whether FSDP2 splits the model over the processes."""
        return self.config.parallel.shard

    @property
    def split(self) -> bool:
        """Whether no process holds the whole model: by FSDP2, or by stage 3 of ZeRO."""
        return self.shards or is_zero3(self.arguments)

    @property
    def whole_checkpoint(self) -> Path | None:
        """The checkpoint if it is a whole extended model, not low-rank additions or shards of DeepSpeed."""
        full = isinstance(self.resolved.config.tuning, FullTuning)
        return self.checkpoint if full and not is_zero3(self.arguments) else None

    def resolve(self) -> None:
        """Decides, once, what the run leaves open and what depends on its documents; logs what and why."""
        facts, given = self.checked.facts, self.given
        if not self.resumes:
            if not given.data.streaming:
                corpus = self._open_corpus()
                assert not isinstance(corpus, StreamedCorpus)
                facts = dataclasses.replace(facts, long_documents=corpus.scarcest)
            self.resolved = resolve(given, facts)
        for reason in self.resolved.reasons:
            logger.info(reason)
        for warning in self.resolved.warnings:
            logger.warning(warning)
        self._open_corpus()

    def without_mask(self, why: str) -> bool:
        """Drops the mask of diluted attention, which the model refuses; False if the run needs it."""
        facts = dataclasses.replace(self.checked.facts, refuses_mask=why)
        without = resolve(self.given, facts)
        if self.resumes or without.config.dilution:
            return False
        sampler = self.checked.sampler if facts.own_sampler else without.config.build_sampler()
        self.checked, self.resolved = dataclasses.replace(self.checked, facts=facts, sampler=sampler), without
        return True

    def begin_again(self) -> None:
        """Goes back to the last checkpoint, or the beginning, with what has been found to fit into memory."""
        self.loaded, self.rows = None, {}
        self.arguments = training_arguments(self.config)
        self.checkpoint = newest_sound(self.folder.path, logger.warning)
        free_memory()
        self.began = time.monotonic()
        # The failed try's peak is not that of the run.
        reset_peak_bytes()

    def _begun(self, name: str) -> Any:
        """What the run was begun with, or has been found since; None if there is nothing of that name."""
        return self.folder.run.begun().get(name)

    def _open_corpus(self) -> Corpus:
        """Opens the documents once, and chooses the held-out ends of some, which depend on the stages."""
        if self.corpus is None:
            how = {"progress": shows_bars(self.config)}
            self.corpus = open_corpus(self.config.data, self.checked.tokenizer, self.checked.sources, **how)
        if begun := self.folder.run.begun():
            ends = held_out_ends(begun)
        else:
            widest = max(stage.window.train for stage in self.stages)
            ends = find_held_out_ends(self.corpus, self.checked.validation_lengths, widest)
        self.corpus = self.corpus.with_held_out_ends(ends)
        return self.corpus


def open_session(
    folder: RunFolder, given: RunConfig, sampler: PositionSampler | None, *, resume: bool, skip_bad_items: bool
) -> Session:
    """Checks everything that can be wrong with a run before its model is loaded.

    Args:
        folder: of the run.
        given: the run.
        sampler: instead of its own.
        resume: go on with what was begun there.
        skip_bad_items: without the items of steps that went wrong.

    Raises:
        SkipwiseError: as `skipwise.train.extend`.
    """
    folder.require_ready(resume=resume)
    if folder.is_to_be_resumed:
        # What was skipped is on record; what has gone wrong since must not be skipped unasked.
        resume, skip_bad_items = True, False
    if skip_bad_items and not resume:
        raise ConfigError("--skip-bad-items is for a run that had bad steps; give --resume with it")
    begun = folder.run.config() if resume else None
    checked = check_run(given, sampler, begun=begun)
    resolved, most = checked.resolved, None
    if begun is not None:
        # Runs of earlier versions do not say why.
        resolved = dataclasses.replace(resolved, reasons=tuple(folder.run.begun().get("reasons", ())))
    if resume:
        most = folder.run.begun().get("most_at_a_time")
    # Before the folder is claimed, as the processes of a parallel run learn here of one another.
    arguments = training_arguments(smaller_batches(resolved.config, most))
    checkpoint = folder.checkpoint(resolved.config) if resume else None
    check_processes(resolved.config, arguments, checkpoint)
    reset_peak_bytes()
    return Session(
        folder=folder,
        given=resolved.config if resume else given,
        resumes=resume,
        checked=checked,
        resolved=resolved,
        arguments=arguments,
        checkpoint=checkpoint,
        bad_items=_bad_items(folder, resolved.config, skip_bad_items),
    )


def _bad_items(folder: RunFolder, config: RunConfig, skip: bool) -> BadItems:
    """What went wrong in the run before.

    Raises:
        CheckpointError: too much, and an elastic launcher restarts the run.
    """
    bad_items = BadItems(folder.path)
    if skip:
        logger.info(f"continuing without the {len(bad_items.skip()):,} windows of steps that failed")
    elif folder.is_to_be_resumed and len(bad_items.bad_steps) >= config.guard.bad_steps:
        raise CheckpointError(
            f"{len(bad_items.bad_steps)} steps have gone wrong, and starting anew does not help: their items are "
            f"in {str(bad_items.path)!r}; continue without them by --resume --skip-bad-items",
            page="loss-exploded",
        )
    return bad_items
