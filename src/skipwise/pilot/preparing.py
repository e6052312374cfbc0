"""What is known before the long part of a pilot: documents, preflight, seconds, the full run on named machines."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from skipwise.config import RunConfig
from skipwise.config.recipes import Resolved, resolve
from skipwise.config.stages import run_stages, short_stage
from skipwise.data.corpus import StreamedCorpus, open_corpus
from skipwise.errors import ConfigError
from skipwise.memory import prefill_flops, training_flops
from skipwise.pilot.asked import PilotConfig
from skipwise.pilot.documents import HeldOut, look_at_held_out
from skipwise.pilot.full_run import full_job, full_runs
from skipwise.pilot.measures import Costs, Wanted
from skipwise.pilot.measuring import Measured, measure
from skipwise.pilot.schedule import LEAST_BATCH, LEAST_STEPS, SMALL_BATCH, SMALL_STEPS, SMALL_WINDOW, Training
from skipwise.plan.shape import ModelShape, model_shape
from skipwise.records.pilot import FullRun
from skipwise.records.verdict import refused_mask, require_healthy
from skipwise.train.arguments import CHECKPOINTING, training_settings
from skipwise.train.checks import CheckedRun, check_run
from skipwise.train.layout import Layout
from skipwise.train.outlook import look_ahead
from skipwise.window import Window, length_label

# The paper's rate is of a model of this width; the best rate of Adam falls as width grows (muP, arXiv 2203.03466).
_PAPERS_WIDTH = 4096
# Tokens trained at a time on a CPU, where more is no faster, and on an accelerator.
_CPU_TOKENS, _ACCELERATOR_TOKENS = 4096, 16384
_SHORTEST_PASS = 512
# What takes longer is not measured before the schedule is known.
_LONGEST_SHARE, _LONGEST_SECONDS = 0.02, 60.0

Tell = Callable[[str], None]
"""Called with one line for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What is known before the long part.

    Attributes:
        checked: the full run, checked.
        resolved: the full run, with its recipe.
        shape: of the model.
        held_out: the documents that are asked about.
        measured: seconds on this machine.
        refused: why the model does not take the mask of diluted attention; None if it does, or need not.
        planned: the full run on named machines.
        learning_rate: peak of training.
    """

    checked: CheckedRun
    resolved: Resolved
    shape: ModelShape
    held_out: HeldOut
    measured: Measured
    refused: str | None
    planned: Sequence[FullRun]
    learning_rate: float

    @property
    def window(self) -> Window:
        """Its lengths, in tokens."""
        return self.checked.facts.window

    @property
    def run(self) -> RunConfig:
        """The full run."""
        return self.resolved.config

    @property
    def wanted(self) -> Wanted:
        """What could be measured."""
        found = self.held_out
        return Wanted(
            original=self.window.original,
            target=self.window.target,
            texts=found.long,
            questions=found.questions,
            shortest_passkey=found.shortest_passkey,
        )

    @property
    def costs(self) -> Costs:
        """What that takes here."""
        counts, layers = self.shape.counts, self.shape.layers
        again = bool(training_settings(self.run)[CHECKPOINTING])
        return Costs(
            passes=self.measured.passes,
            pass_work=lambda tokens: prefill_flops(counts, layers, tokens),
            token=self.measured.token,
            windows=self.measured.windows,
            window_work=lambda tokens: training_flops(counts, layers, tokens, checkpointing=again),
            start=self.measured.start,
            preflight=self.measured.preflight,
            question=self.held_out.seconds,
        )

    def trained_window(self, small: bool) -> Window:
        """The window that is trained: in a small pilot of at most 512 tokens, unless one was given."""
        if not small or self.run.window:
            return self.window
        return replace(self.window, train=min(self.window.train, SMALL_WINDOW))

    def training(self, small: bool) -> Training:
        """What training takes, of a small pilot or of one that can decide."""
        job, least_batch = full_job(self.run), SMALL_BATCH if small else LEAST_BATCH
        given = {"per_device_train_batch_size", "gradient_accumulation_steps"} & set(self.run.training)
        halves = [job.global_batch >> power for power in range(job.global_batch.bit_length())]
        batches = [batch for batch in halves if batch >= least_batch] or [job.global_batch]
        return Training(
            seconds_of=training_seconds(self.run, self.trained_window(small), self.costs),
            most_steps=job.steps,
            batches=batches[:1] if given else batches,
            least_steps=SMALL_STEPS if small else LEAST_STEPS,
        )


def training_seconds(run: RunConfig, window: Window, costs: Costs) -> Callable[[int, int], float]:
    """Seconds of a number of steps of a number of windows, as `train` lays them out."""

    def seconds(steps: int, batch: int) -> float:
        stages = run_stages(run, window, steps)
        short = short_stage(run, stages)
        layout = Layout(
            stages=[(stage.begin, stage.window.train) for stage in stages],
            num_steps=steps,
            window_tokens=window.train,
            items_per_step=batch,
            items_at_a_time=windows_at_a_time(window.train, batch),
            keep_tokens=run.keep_tokens,
            short_tokens=short and short.window.train,
            short_share=run.short_share,
        )
        return sum((end - first) * costs.window(layout.tokens_of(stage)) for stage, first, end in layout.stretches())

    return seconds


def windows_at_a_time(tokens: int, batch: int) -> int:
    """Windows in a micro-batch: a power of two that divides the batch."""
    most = (_ACCELERATOR_TOKENS if torch.accelerator.is_available() else _CPU_TOKENS) // tokens
    found = 1
    while found * 2 <= most and batch % (found * 2) == 0:
        found *= 2
    return found


def learning_rate(run: RunConfig, width: int) -> float:
    """The run's own rate; else the paper's, scaled to the width of the model where all weights are trained."""
    rate = training_settings(run)["learning_rate"]
    if "learning_rate" in run.training or run.tuning.kind != "full":
        return rate
    return float(f"{rate * max(1.0, _PAPERS_WIDTH / width):.2g}")


def prepare(config: PilotConfig, tell: Tell, kept: Mapping[str, Any]) -> Prepared:
    """Reads documents, probes and times the model, and plans the full run.

    Args:
        config: what is asked for.
        tell: called with what it does next.
        kept: `to_keep` of an earlier process of the same pilot, which is not measured again.

    Raises:
        SkipwiseError: as `pilot`.
    """
    run = config.run
    if run.data.streaming or run.parallel.context > 1 or run.parallel.shard:
        raise ConfigError(
            "a pilot reads its documents whole and trains in one process; leave data.streaming, parallel.context and "
            "parallel.shard to the full run"
        )
    tell(f"reading {_documents_label(run)}")
    checked = check_run(run)
    corpus = open_corpus(run.data, checked.tokenizer, checked.sources, progress=sys.stderr.isatty())
    assert not isinstance(corpus, StreamedCorpus)
    outlook = look_ahead(run, checked, corpus)
    resolved = Resolved(config=outlook.config, reasons=outlook.reasons, warnings=outlook.warnings)
    window = checked.facts.window
    lengths = Wanted(original=window.original, target=window.target, texts=0, questions={}).lengths
    held_out = look_at_held_out(resolved.config, window, checked.tokenizer, checked.sources, lengths)
    for line in (held_out.told, *resolved.reasons):
        tell(line)
    shape = model_shape(run.model, original=run.original, trust_remote_code=run.trust_remote_code)
    resolved, measured, refused = _measured(config, checked, resolved, lengths, shape, tell, kept)
    return Prepared(
        checked=checked,
        resolved=resolved,
        shape=shape,
        held_out=held_out,
        measured=measured,
        refused=refused,
        planned=full_runs(shape, resolved.config, window, config.machines, config.price),
        learning_rate=learning_rate(resolved.config, shape.text.hidden_size),
    )


def to_keep(prepared: Prepared) -> dict[str, Any]:
    """What a resumed pilot need not measure again, as JSON values."""
    return {"measured": asdict(replace(prepared.measured, verdicts=())), "refused": prepared.refused}


def _measured(
    config: PilotConfig,
    checked: CheckedRun,
    resolved: Resolved,
    lengths: Sequence[int],
    shape: ModelShape,
    tell: Tell,
    kept: Mapping[str, Any],
) -> tuple[Resolved, Measured, str | None]:
    """The run with what the preflight has shown, and its seconds; why it refuses a mask."""

    def without_mask(why: str) -> Resolved:
        return resolve(config.run, replace(checked.facts, refuses_mask=why))

    window = checked.facts.window
    if "measured" in kept:
        again, refused = kept["measured"], kept["refused"]
        seconds = {
            name: {int(tokens): value for tokens, value in again[name].items()} for name in ("passes", "windows")
        }
        return without_mask(refused) if refused else resolved, Measured(**{**again, **seconds}), refused
    tell(f"probing and timing {config.run.model}: passes up to {length_label(window.target)}, training steps")
    found = _measure(config, resolved.config, window, lengths, shape)
    refused = refused_mask(found.verdicts)
    if refused and not (without := without_mask(refused)).config.dilution:
        resolved = without
        tell(f"without diluted attention: {resolved.reasons[0]}")
        found = _measure(config, resolved.config, window, lengths, shape)
    require_healthy(found.verdicts)
    tell(f"preflight: {len(found.verdicts)} probes passed")
    return resolved, found, refused


def _documents_label(run: RunConfig) -> str:
    source = run.data.source
    return source if isinstance(source, str) else ", ".join(map(str, source))


def _measure(
    config: PilotConfig, run: RunConfig, window: Window, lengths: Sequence[int], shape: ModelShape
) -> Measured:
    stages = sorted({stage.window.train for stage in run_stages(run, window, full_job(run).steps)})
    counts, layers = shape.counts, shape.layers
    again = bool(training_settings(run)[CHECKPOINTING])
    # From short inputs on: one of the original window may take minutes.
    shorter = [tokens for power in range(1, 12) if (tokens := lengths[0] >> power) >= _SHORTEST_PASS]
    lengths = sorted({*shorter, *lengths})
    of_pass = prefill_flops(counts, layers, lengths[0])
    windows = [
        (
            tokens,
            min(LEAST_BATCH, windows_at_a_time(tokens, LEAST_BATCH)),
            training_flops(counts, layers, tokens, checkpointing=again) / of_pass,
        )
        for tokens in sorted({stages[0], stages[-1]})
    ]
    return measure(run, window, lengths, windows, min(_LONGEST_SECONDS, _LONGEST_SHARE * config.seconds))
