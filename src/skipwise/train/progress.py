"""What a run shows while it trains, and how it is asked to stop: callbacks of the Trainer."""

import logging
import math
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import TrainerCallback

from skipwise.bars import Bar
from skipwise.report.quantities import bytes_text, seconds_text
from skipwise.train.process import on_stop_signals, peak_bytes
from skipwise.window import length_label

logger = logging.getLogger("skipwise")

# Validations that take no longer than this, all together, are not worth a warning.
_CHEAP_SECONDS = 60.0

DOCUMENTS_LOSS, EXERCISES_LOSS = "documents_loss", "exercises_loss"


class StepClock(TrainerCallback):
    """Seconds spent in steps (not in loading data, validating or saving), and the tokens trained in them.

    Attributes:
        is_running: whether a step has begun and not ended.
        has_run: whether a step has begun.
    """

    def __init__(self) -> None:
        self._begun, self._seconds, self._tokens = 0.0, 0.0, 0
        self.is_running = self.has_run = False

    def count(self, tokens: int) -> None:
        """Adds tokens, over all processes."""
        self._tokens += tokens

    def take(self) -> tuple[float, int]:
        """Seconds and tokens of all steps since the last call."""
        taken = self._seconds, self._tokens
        self._seconds, self._tokens = 0.0, 0
        return taken

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Starts the clock."""
        self._begun, self.is_running, self.has_run = time.monotonic(), True, True

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stops it. An accelerator may still be working, but it lags behind by the same amount at every step."""
        self._seconds += time.monotonic() - self._begun
        self.is_running = False


class LossesApart:
    """The mean loss of documents, and that of exercises: an exercise is easy in time, a document never is.

    A batch that has both counts as documents, of whose labels it has hundreds for each one of an exercise. In a run of
    several processes, these are the losses of the first one's batches.

    Args:
        is_exercise: whether the item at a place in the run is an exercise.
    """

    def __init__(self, is_exercise: Callable[[int], bool]) -> None:
        self._is_exercise = is_exercise
        self._batches: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def count(self, mean: torch.Tensor, labels: torch.Tensor, places: torch.Tensor) -> None:
        """Notes a batch: its loss per label, its labels, and the places of its items, int64 (n,)."""
        self._batches.append((mean.detach(), labels, places))

    def take(self) -> dict[str, float]:
        """`documents_loss` and `exercises_loss` of the batches since the last call, as far as there were any."""
        sums = {DOCUMENTS_LOSS: [0.0, 0], EXERCISES_LOSS: [0.0, 0]}
        for mean, labels, places in self._batches:
            number, items = int(labels), places.tolist()
            if items and number:
                of = sums[EXERCISES_LOSS if all(map(self._is_exercise, items)) else DOCUMENTS_LOSS]
                of[0] += float(mean) * number
                of[1] += number
        self._batches = []
        return {name: total / number for name, (total, number) in sums.items() if number}


class ValidateAtTheEnd(TrainerCallback):
    """Validation after the last step, before trackers are closed."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Asks the Trainer to validate."""
        if state.global_step >= state.max_steps:
            control.should_evaluate = True


class ValidationCost(TrainerCallback):
    """Warns once, after a step that followed a validation, if a run validates for more than a third of its time.

    Attributes:
        seconds: that the latest validation took; 0 if there was none.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say: Callable[[str], None] | None = say
        self._begun = self.seconds = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Starts the clock."""
        self._begun = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Compares all validations with all steps, as if each took as long as the latest."""
        if self._say is None or not self.seconds:
            return
        on_the_way = math.ceil(state.max_steps / args.eval_steps) - 1 if args.eval_strategy != "no" else 0
        times = 2 + on_the_way
        validating, training = self.seconds * times, (time.monotonic() - self._begun) * state.max_steps
        if state.is_world_process_zero and validating > max(_CHEAP_SECONDS, training / 2):
            rarer = "validation.every_steps=0 leaves those before and after training, and " if on_the_way else ""
            self._say(
                f"validating took {seconds_text(self.seconds)}, and is done {times} times: with steps as long as this "
                f"one that is {validating / (validating + training):.0%} of the run; {rarer}fewer "
                "validation.num_documents or shorter validation.lengths cost less"
            )
        self._say = None


class ProgressLine(TrainerCallback):
    """One bar with loss, speed and time left; validation results are printed above it."""

    def __init__(self, quiet: bool | None) -> None:
        self._quiet = bool(quiet)
        self._bar: Bar | None = None
        self._losses = ShownLosses()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Opens the bar at the first step of this process."""
        if state.is_world_process_zero:
            self._bar = Bar(
                total=state.max_steps, initial=state.global_step, desc="training", unit="step", disable=self._quiet
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Moves the bar."""
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Shows the loss in the bar and validation above it."""
        if self._bar is None or not logs or self._quiet:
            return
        if "loss" in logs:
            self._bar.set_postfix_str(self._losses.text(logs))
        if shown := _perplexities(logs):
            self._bar.write(f"step {state.global_step}: {shown}", file=sys.stderr)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Closes the bar."""
        if self._bar is not None:
            self._bar.close()


class StepLines(TrainerCallback):
    """With several processes, one line per step: loss, tokens per second of all, peak memory, time left."""

    def __init__(self) -> None:
        self._begun, self._first = 0.0, 0
        self._losses = ShownLosses()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Notes the first step of this process."""
        self._begun, self._first = time.monotonic(), state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Logs the line, in the first process."""
        if not state.is_world_process_zero or not logs:
            return
        place = f"step {state.global_step} of {state.max_steps}"
        if "loss" in logs:
            each = (time.monotonic() - self._begun) / max(1, state.global_step - self._first)
            logger.info(
                f"{place}: {self._losses.text(logs)}, {logs.get('tokens_per_second', 0):,} tokens a second, "
                f"{bytes_text(peak_bytes())}, {seconds_text(each * (state.max_steps - state.global_step))} left"
            )
        if shown := _perplexities(logs):
            logger.info(f"{place}: {shown}")


class ShownLosses:
    """The latest losses as text; of documents and of exercises where a run has both."""

    def __init__(self) -> None:
        self._apart: dict[str, float] = {}

    def text(self, logs: dict[str, Any]) -> str:
        """Such as `loss 3.35, exercises 0.002`; a kind that this entry is not about keeps its last loss."""
        apart = {name: logs[name] for name in (DOCUMENTS_LOSS, EXERCISES_LOSS) if name in logs}
        if not self._apart and not apart:
            return f"loss {_loss(logs['loss'])}"
        self._apart |= apart
        words = {DOCUMENTS_LOSS: "loss", EXERCISES_LOSS: "exercises"}
        return ", ".join(f"{word} {_loss(self._apart[name])}" for name, word in words.items() if name in self._apart)


def _loss(value: Any) -> str:
    return f"{float(value):.3g}"


def _perplexities(logs: dict[str, Any]) -> str:
    """Validation, such as `perplexity 7.96 at 256, 8.52 at 512`; of a mixture also of each source."""
    by_source: dict[str, list[str]] = {}
    for name, value in logs.items():
        if found := re.fullmatch(r"eval_perplexity_(\d+)(?:_(.+))?", name):
            by_source.setdefault(found[2] or "", []).append(f"{value:.2f} at {length_label(int(found[1]))}")
    return "; ".join(f"{source}{': ' * bool(source)}perplexity {', '.join(all_)}" for source, all_ in by_source.items())


class StopAskedError(Exception):
    """A validation was left out or cut off, as the run is asked to stop."""


class StopOnRequest(TrainerCallback):
    """Turns the first Ctrl-C into: finish this step, save, stop. The second one interrupts at once.

    A validation is cut off, and the resumed run measures it. With several processes, one that has begun is finished,
    as those that left it early would leave the others waiting; so is one that tells the Trainer which checkpoint is
    the best, or how to change the learning rate.

    Attributes:
        requested: whether a stop was asked for.
        has_cut_off: whether a validation was cut off or left out for it.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self.requested = self.has_cut_off = self._cuts = False

    def listening(self) -> AbstractContextManager[None]:
        """Context in which SIGINT and SIGTERM are requests to stop."""
        return on_stop_signals(self._request)

    @contextmanager
    def cutting_off(self, args: Any) -> Iterator[None]:
        """Context of a validation, which a request to stop ends before the next module of the model is computed.

        Raises:
            StopAskedError: it was cut off, or is not to begin: in all processes alike.
        """
        if args.metric_for_best_model is not None:
            yield
            return
        if self._agreed(args):
            self._cut_off()
        if args.world_size > 1:
            yield
            return
        hook = register_module_forward_pre_hook(lambda *_: self._cut_off() if self.requested else None)
        self._cuts = True
        try:
            yield
        finally:
            self._cuts = False
            hook.remove()

    def _cut_off(self) -> None:
        self.has_cut_off = True
        raise StopAskedError

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
        first = "validation ends, and what is trained is" if self._cuts else "this step is finished and"
        self._say(f"stopping: {first} saved first (Ctrl-C once more to stop at once and lose it)")

    def _agreed(self, args: Any) -> bool:
        """Whether any process was asked to stop; all of them ask here together."""
        if args.world_size == 1:
            return self.requested
        requests = torch.tensor(int(self.requested), device=args.device)
        torch.distributed.all_reduce(requests)
        # A request that came meanwhile is kept for the next time.
        self.requested = self.requested or bool(requests)
        return bool(requests)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Asks the Trainer for a checkpoint and the end, if any process was asked to stop."""
        if self._agreed(args):
            control.should_save = control.should_training_stop = True

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The same, if the request came during a validation that was finished."""
        self.on_step_end(args, state, control)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Takes back what a cut-off validation has left in `control`: the checkpoint says now that it is due."""
        control.should_evaluate = False
