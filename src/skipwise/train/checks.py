"""What can be known of a run before weights are read: what is wrong with it, and what `resolve` needs to know."""

import logging
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from accelerate import PartialState
from transformers import PreTrainedConfig

from skipwise.config import FullTuning, QloraTuning, RunConfig
from skipwise.config.recipes import Facts, Resolved, as_begun, resolve
from skipwise.config.stages import run_stages, short_stage
from skipwise.data.documents import Sources
from skipwise.data.tokens import require_fast
from skipwise.doctor.bench import local_span
from skipwise.model import (
    check_loads_in_four_bits,
    check_trainable,
    original_window,
    read_config,
    read_tokenizer,
    scaled_by,
    without_weights,
)
from skipwise.positions import PositionSampler
from skipwise.train.arguments import training_settings
from skipwise.train.context import check_context
from skipwise.train.data import check_sources
from skipwise.train.exercises import shortest_exercise
from skipwise.train.quantized import share_in_four_bits
from skipwise.train.tuning import check_tuning
from skipwise.train.validation import validation_lengths
from skipwise.window import Window

logger = logging.getLogger("skipwise")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedRun:
    """What a run's settings come to for its model.

    Attributes:
        base: config of the model.
        tokenizer: the model's own.
        sampler: of positions.
        window: its lengths, in tokens.
        facts: all but how long its documents are.
        resolved: the run as far as these facts decide; of a run that goes on, as it was begun.
        validation_lengths: in tokens.
        sources: its documents, looked through.
    """

    base: PreTrainedConfig
    tokenizer: Any
    sampler: PositionSampler
    window: Window
    facts: Facts
    resolved: Resolved
    validation_lengths: list[int]
    sources: Sources


def model_facts(
    given: RunConfig, base: PreTrainedConfig, *, sampler: PositionSampler | None = None, processes: int | None = None
) -> Facts:
    """What `resolve` needs to know of a run's model and machine, by the model's config alone.

    Args:
        given: the run.
        base: config of the model.
        sampler: in place of the run's own.
        processes: of the run; by default as many as this process is one of.

    Raises:
        ConfigError, PositionError: lengths that contradict each other, or settings of `training` that are unknown.
    """
    training, local = training_settings(given), local_span(base.get_text_config(decoder=True))
    groups = max(1, (processes or PartialState().num_processes) // given.parallel.context)
    at_a_time, times = training["per_device_train_batch_size"], training["gradient_accumulation_steps"]
    return Facts(
        window=given.resolve_window(original_window(base)),
        refuses_mask=None
        if local is None
        else f"layers that attend to the last {local} tokens only take no other mask",
        interpolation=scaled_by(base, given.target),
        own_sampler=sampler is not None,
        steps=training["max_steps"],
        step_windows=at_a_time * times * groups,
    )


def check_run(
    given: RunConfig,
    sampler: PositionSampler | None = None,
    *,
    processes: int | None = None,
    begun: RunConfig | None = None,
) -> CheckedRun:
    """Finds all that can be wrong with a run without reading weights or tokenizing documents.

    Files are looked at after all that takes no time, and before even the tokenizer is loaded.

    Args:
        given: the run.
        sampler: in place of its own.
        processes: of the run; by default as many as this process is one of.
        begun: the same as it was resolved, where it goes on.

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
            logger.info(f"4 bits hold {share_in_four_bits(skeleton):.0%} of the weights")
        check_tuning(skeleton, config.tuning)
    sources = check_sources(config)
    tokenizer = read_tokenizer(config.model, base, **trusted)
    require_fast(tokenizer)
    if config.data.retrieval:
        facts = replace(facts, shortest_exercise=shortest_exercise(tokenizer))
    return CheckedRun(
        base=base,
        tokenizer=tokenizer,
        sampler=sampler or config.build_sampler(),
        window=facts.window,
        facts=facts,
        resolved=Resolved(config=given) if begun is not None else resolve(given, facts),
        validation_lengths=lengths,
        sources=sources,
    )


def _check_lengths(
    config: RunConfig, base: PreTrainedConfig, facts: Facts, sampler: PositionSampler | None, processes: int | None
) -> list[int]:
    """Refuses windows that contradict each other, the sampler or the number of processes; lengths of validation."""
    window = facts.window
    stages = run_stages(config, window, facts.steps, sampler)
    every_stage = [*stages, *filter(None, [short_stage(config, stages)])]
    check_context(config, base, [stage.window for stage in every_stage], processes)
    lengths = validation_lengths(config, window)
    for stage in stages:
        # A sampler is made without knowing its window, and may refuse it.
        stage.sampler.sample(window.target, stage.window, np.random.default_rng(0))
    return lengths
