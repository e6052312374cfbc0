"""What can be known about a run before weights are read: what is wrong with it, and the facts for `resolve`."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from transformers import PreTrainedConfig

from skipwise.config import FullTuning, QloraTuning, RunConfig
from skipwise.config.recipes import Facts, Resolved, as_begun, resolve
from skipwise.config.stages import run_stages, short_stage
from skipwise.data.documents import Sources
from skipwise.data.tokens import require_chat_template, require_fast
from skipwise.model import (
    check_loads_in_four_bits,
    check_trainable,
    read_config,
    read_tokenizer,
    without_weights,
)
from skipwise.positions import PositionSampler
from skipwise.train.context import check_context
from skipwise.train.data import check_sources
from skipwise.train.exercises import shortest_exercise
from skipwise.train.facts import model_facts
from skipwise.train.quantized import share_in_four_bits
from skipwise.train.tuning import check_tuning
from skipwise.train.validation import validation_lengths

logger = logging.getLogger("skipwise")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedRun:
    """What a run's settings mean for its model.

    Attributes:
        base: config of the model.
        tokenizer: the model's own.
        sampler: of positions.
        facts: everything but the lengths of the documents.
        resolved: the run as far as these facts decide; a resumed run as it was begun.
        validation_lengths: in tokens.
        sources: its documents, inspected, by source.
    """

    base: PreTrainedConfig
    tokenizer: Any
    sampler: PositionSampler
    facts: Facts
    resolved: Resolved
    validation_lengths: list[int]
    sources: list[Sources]


def check_run(
    given: RunConfig,
    sampler: PositionSampler | None = None,
    *,
    processes: int | None = None,
    begun: RunConfig | None = None,
    sources: Sequence[Sources] | None = None,
) -> CheckedRun:
    """Finds what is wrong with a run as far as possible without reading weights or tokenizing documents.

    Files are inspected after the quick checks, before the tokenizer is loaded.

    Args:
        given: the run.
        sampler: instead of its own.
        processes: of the run; by default the number in this process's group.
        begun: for a resumed run, the run as it was resolved when it was begun.
        sources: its documents, if they are inspected already.

    Raises:
        SkipwiseError: as `extend`.
    """
    if begun is not None:
        given = as_begun(given, begun)
    trusted = {"trust_remote_code": given.trust_remote_code}
    base = read_config(given.model, original=given.original, **trusted)
    facts = model_facts(given, base, sampler=sampler, processes=processes)
    config = given if begun is not None else resolve(given, facts).config
    lengths = _check_lengths(config, base, facts, sampler, processes)
    check_trainable(config.model, base)
    if not isinstance(config.tuning, FullTuning):
        skeleton = without_weights(base, **trusted)
        if isinstance(config.tuning, QloraTuning):
            check_loads_in_four_bits(config.model, **trusted)
            logger.info(f"{share_in_four_bits(skeleton):.0%} of the weights are stored in 4 bits")
        check_tuning(skeleton, config.tuning)
    sources = check_sources(config, sources)
    tokenizer = read_tokenizer(config.model, base, **trusted)
    require_fast(tokenizer)
    if any(own.are_conversations for own in sources):
        require_chat_template(tokenizer)
    if config.data.retrieval:
        facts = replace(facts, shortest_exercise=shortest_exercise(tokenizer, config.data.retrieval_language))
    return CheckedRun(
        base=base,
        tokenizer=tokenizer,
        sampler=sampler or config.build_sampler(),
        facts=facts,
        resolved=Resolved(config=given) if begun is not None else resolve(given, facts),
        validation_lengths=lengths,
        sources=sources,
    )


def _check_lengths(
    config: RunConfig, base: PreTrainedConfig, facts: Facts, sampler: PositionSampler | None, processes: int | None
) -> list[int]:
    """The lengths of validation; refuses windows that contradict each other, the sampler or the processes."""
    window = facts.window
    stages = run_stages(config, window, facts.steps, sampler)
    every_stage = [*stages, *filter(None, [short_stage(config, stages)])]
    check_context(config, base, [stage.window for stage in every_stage], processes)
    lengths = validation_lengths(config, window)
    for stage in stages:
        # A sampler is made without its window, and may refuse it.
        stage.sampler.sample(window.target, stage.window, np.random.default_rng(0))
    return lengths
