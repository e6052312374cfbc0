"""What a run shows while it trains, and how it is asked to stop: callbacks of the Trainer."""

import logging
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any

import torch
from tqdm import tqdm
from transformers import TrainerCallback

from skipwise.report.quantities import bytes_text, seconds_text
from skipwise.train.process import on_stop_signals, peak_bytes

logger = logging.getLogger("skipwise")


class StepClock(TrainerCallback):
    """Seconds spent in steps (not in loading data, validating or saving), and the tokens trained in them.

    Attributes:
        is_running: whether a step has begun and not ended.
    """

    def __init__(self) -> None:
        self._begun, self._seconds, self._tokens = 0.0, 0.0, 0
        self.is_running = False

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
        self._begun, self.is_running = time.monotonic(), True

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stops it. An accelerator may still be working, but it lags behind by the same amount at every step."""
        self._seconds += time.monotonic() - self._begun
        self.is_running = False


class ValidateAtTheEnd(TrainerCallback):
    """Validation after the last step, before trackers are closed."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Asks the Trainer to validate."""
        if state.global_step >= state.max_steps:
            control.should_evaluate = True


class ProgressLine(TrainerCallback):
    """One bar with loss, speed and time left; validation results are printed above it."""

    def __init__(self, quiet: bool | None) -> None:
        self._quiet = bool(quiet)
        self._bar: tqdm | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Opens the bar at the first step of this process."""
        if state.is_world_process_zero:
            self._bar = tqdm(
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
            self._bar.set_postfix_str(f"loss {float(logs['loss']):.3f}")
        if shown := _perplexities(logs):
            self._bar.write(f"step {state.global_step}: " + "  ".join(shown))

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Closes the bar."""
        if self._bar is not None:
            self._bar.close()


class StepLines(TrainerCallback):
    """With several processes, one line per step: loss, tokens per second of all, peak memory, time left."""

    def __init__(self) -> None:
        self._begun, self._first = 0.0, 0

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
                f"{place}: loss {float(logs['loss']):.4f}, {logs.get('tokens_per_second', 0):,} tokens a second, "
                f"{bytes_text(peak_bytes())}, {seconds_text(each * (state.max_steps - state.global_step))} left"
            )
        if shown := _perplexities(logs):
            logger.info(f"{place}: " + ", ".join(shown))


def _perplexities(logs: dict[str, Any]) -> list[str]:
    return [f"{name.removeprefix('eval_')} {value:.2f}" for name, value in logs.items() if "perplexity" in name]


class StopOnRequest(TrainerCallback):
    """Turns the first Ctrl-C into: finish this step, save, stop. The second one interrupts at once.

    Attributes:
        requested: whether a stop was asked for.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self.requested = False

    def listening(self) -> AbstractContextManager[None]:
        """Context in which SIGINT and SIGTERM are requests to stop."""
        return on_stop_signals(self._request)

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
        self._say("stopping: this step is finished and saved first (Ctrl-C once more to stop at once and lose it)")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Asks the Trainer for a checkpoint and the end, if any process was asked to stop."""
        if args.world_size > 1:
            requests = torch.tensor(int(self.requested), device=args.device)
            torch.distributed.all_reduce(requests)
            self.requested = bool(requests)
        if self.requested:
            control.should_save = True
            control.should_training_stop = True
