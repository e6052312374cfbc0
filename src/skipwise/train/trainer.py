"""The thin `transformers.Trainer` that runs a curriculum."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import transformers
from tqdm import tqdm
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from skipwise.model import save_model

Validate = Callable[[], dict[str, float]]
"""Measures the model as it is, and returns metrics by name."""


class SkipwiseTrainer(transformers.Trainer):
    """A Trainer whose items come in the curriculum's order, whose loss is chunked, and whose evaluation is ours.

    Args:
        validate: called where the Trainer would evaluate; None for never.
        arguments: passed on to `transformers.Trainer`.
    """

    def __init__(self, *, validate: Validate | None = None, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._validate = validate
        # The loss divides by the number of labels over all accumulated batches and processes by itself.
        self.model_accepts_loss_kwargs = True
        for shown_elsewhere in (PrinterCallback, ProgressCallback):
            self.remove_callback(shown_elsewhere)
        self.add_callback(ProgressLine(quiet=self.args.disable_tqdm))

    def _get_train_sampler(self, *_: Any, **__: Any) -> torch.utils.data.Sampler:
        return torch.utils.data.SequentialSampler(self.train_dataset)  # type: ignore[arg-type]

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """The chunked loss, taken inside the model's forward pass (see `skipwise.loss.use_chunked_loss`)."""
        loss = model(**inputs, num_items_in_batch=num_items_in_batch)["loss"]
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes
        return loss

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Validation perplexities, logged like any metric, so that trackers and the best checkpoint see them."""
        if self._validate is None:
            return {}
        metrics = {f"eval_{name}": value for name, value in self._validate().items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if isinstance(self.model, PreTrainedModel) and self.args.should_save and state_dict is None:
            # Again, so that every checkpoint on the way is as readable as the last.
            save_model(self.model, self.processing_class, output_dir or self.args.output_dir)  # type: ignore[arg-type]


class ProgressLine(TrainerCallback):
    """One bar with loss, speed and time left; loss and validation figures as they come."""

    def __init__(self, quiet: bool | None) -> None:
        self._quiet = bool(quiet)
        self._bar: tqdm | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Opens the bar at the step the run begins or goes on from."""
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
        if shown := [
            f"{name.removeprefix('eval_')} {value:.2f}" for name, value in logs.items() if "perplexity" in name
        ]:
            self._bar.write(f"step {state.global_step}: " + "  ".join(shown))

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Closes the bar."""
        if self._bar is not None:
            self._bar.close()


class StopOnRequest(TrainerCallback):
    """Turns the first Ctrl-C into: finish this step, save, stop. The second one interrupts at once."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self.requested = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within, SIGINT and SIGTERM are requests; only the main thread can listen, elsewhere nothing changes."""
        try:
            before = {number: signal.signal(number, self._request) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:
            yield
            return
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        self._say("stopping: this step is finished and saved first (once more to stop at once and lose it)")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Asks the Trainer for a checkpoint and the end, where a stop was requested."""
        if self.requested:
            control.should_save = True
            control.should_training_stop = True


class Stopwatch:
    """Seconds since it was made, and the peak of memory."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return time.monotonic() - self._begun

    @property
    def peak_bytes(self) -> int:
        """Peak of the accelerator's memory, or of the whole process where there is none."""
        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated()
        import resource
        import sys

        # Kibibytes on Linux, bytes on macOS.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest `checkpoint-<step>` of a run, or None."""
    found = transformers.trainer_utils.get_last_checkpoint(str(folder)) if folder.is_dir() else None
    return Path(found) if found else None
