"""The thin `transformers.Trainer` that runs a curriculum."""

import json
import logging
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import transformers
from torch.utils.data import Sampler, SequentialSampler
from tqdm import tqdm
from transformers import TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from skipwise.data.items import IGNORED_LABEL
from skipwise.data.stream import DocumentStream
from skipwise.model import save_model, share_weights
from skipwise.report.quantities import bytes_text, seconds_text
from skipwise.train.arguments import mixed_precision
from skipwise.train.context import ContextGroup, GroupSampler
from skipwise.train.durable import forget_older, whole_or_not_at_all
from skipwise.train.guard import StepGuard
from skipwise.train.process import on_stop_signals, peak_bytes
from skipwise.train.tuning import is_adapted

logger = logging.getLogger("skipwise")

_STREAM = "stream"

Validate = Callable[[], dict[str, float]]
"""Measures the model as it is, and returns metrics by name."""


class SkipwiseTrainer(transformers.Trainer):
    """A Trainer whose items come in the curriculum's order, whose loss is chunked, and whose evaluation is ours.

    Args:
        guard: judges each step before the optimizer takes it; None where steps are only timed.
        tokenizer: saved with every checkpoint. The Trainer itself is not given it, as it would write the tokenizer's
            special tokens into the model's config.
        validate: called where the Trainer would evaluate, and after the last step; None for never.
        stream: of documents, whose places belong to a checkpoint; None where a place in the run says it all.
        context: the processes that hold each window together; None where each has windows of its own.
        arguments: passed on to `transformers.Trainer`.
    """

    def __init__(
        self,
        *,
        guard: StepGuard | None = None,
        tokenizer: Any = None,
        validate: Validate | None = None,
        stream: DocumentStream | None = None,
        context: ContextGroup | None = None,
        **arguments: Any,
    ) -> None:
        # Only the presence of `eval_dataset` matters: `validate` brings its own documents.
        config = arguments["model"].config
        kept = {"use_cache": config.use_cache} if hasattr(config, "use_cache") else {}
        # Asked for while the Trainer is made.
        self._context = context
        super().__init__(eval_dataset=arguments["train_dataset"], **arguments)
        # The Trainer turns it off for good; training says so at each pass, and readers of the checkpoint want it.
        config.update(kept)
        self._tokenizer, self._validate, self._guard, self._stream = tokenizer, validate, guard, stream
        self._staging: Path | None = None
        self._has_evaluated = False
        # The loss divides by the number of labels over all accumulated batches and processes by itself.
        self.model_accepts_loss_kwargs = True
        for shown_elsewhere in (PrinterCallback, ProgressCallback):
            self.remove_callback(shown_elsewhere)
        self._clock = StepClock()
        self.add_callback(self._clock)
        if guard is not None:
            self.add_callback(guard)
        shown = StepLines() if self.args.world_size > 1 else ProgressLine(quiet=self.args.disable_tqdm)
        self.add_callback(shown)
        self.add_callback(ValidateAtTheEnd())

    def _get_train_sampler(self, *_: Any, **__: Any) -> Sampler:
        items: Any = self.train_dataset
        if self._context is not None:
            return GroupSampler(len(items), self.args.train_batch_size, self._context.size)
        return SequentialSampler(items)

    def get_cp_size(self) -> int:
        """How many processes hold each window together: the Trainer counts each label so often."""
        return 1 if self._context is None else self._context.size

    @property
    def num_groups(self) -> int:
        """How many batches are trained at a time."""
        return self.args.world_size // self.get_cp_size()

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """The chunked loss, taken inside the model's forward pass (see `skipwise.loss.use_chunked_loss`)."""
        loss = model(**inputs, num_items_in_batch=num_items_in_batch)["loss"]
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes
        return loss

    def training_step(self, *arguments: Any, **keywords: Any) -> torch.Tensor:
        """A forward and a backward pass, of which the guard is told."""
        model, inputs, num_labels = arguments
        places = inputs.pop("places")
        self._clock.count(inputs["input_ids"].numel() * self.num_groups)
        labels = (inputs["labels"][:, 1:] != IGNORED_LABEL).sum()
        part_of = nullcontext if self._context is None else self._context.training_part_of
        with part_of(inputs) as part:
            loss = super().training_step(model, part, num_labels, **keywords)
        if self._guard is not None:
            everywhere = self.args.world_size if self.args.average_tokens_across_devices else 1
            whole = loss if self._context is None else self._context.summed(loss)
            mean = whole * num_labels / (labels * everywhere) if num_labels is not None else whole
            # Of a group that shares them its first process answers for items.
            answers = self._context is None or self._context.is_first
            self._guard.count(loss, mean, places if answers else places[:0])
        return loss

    @property
    def is_in_step(self) -> bool:
        """Whether a step has begun and not ended: neither validation, nor loading, nor saving."""
        return self._clock.is_running

    def _get_grad_norm(self, *arguments: Any, **keywords: Any) -> Any:
        """The norm, of which the guard is told; in float16 one that is no number is the scaler's affair."""
        norm = super()._get_grad_norm(*arguments, **keywords)
        scaled = mixed_precision(self.args) is torch.float16
        if self._guard is not None:
            self._guard.count_gradient_norm(None if norm is None or scaled else float(norm))
        return norm

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Validation perplexities, logged like any metric, so that trackers and the best checkpoint see them."""
        if self._validate is None:
            return {}
        if self.is_fsdp_enabled and not self._has_evaluated:
            # Validation enters by parts of the model, and whatever is entered first FSDP takes for the whole.
            whole: Any = self.model
            two = torch.zeros(1, 2, dtype=torch.int64, device=self.args.device)
            with torch.no_grad():
                whole(input_ids=two, position_ids=torch.arange(2, device=two.device)[None], labels=two)
        self._has_evaluated = True
        metrics = {f"eval_{name}": value for name, value in self._validate().items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], *arguments: Any, **keywords: Any) -> None:
        """Adds seconds and speed of the steps that an entry is about; they stay in the log through a resume."""
        if "loss" in logs:
            seconds, tokens = self._clock.take()
            if self._guard is not None and (bad := self._guard.take_bad_losses()):
                # The Trainer shows the average of the steps before in their place.
                logs |= {"bad": len(bad)} | ({"loss": bad[0]} if self.args.logging_steps == 1 else {})
            logs["step_seconds"] = round(seconds, 4)
            logs["tokens_per_second"] = round(tokens / seconds) if seconds else 0
        super().log(logs, *arguments, **keywords)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Writes a checkpoint to the side, and gives it its name when all of it is on the disk."""
        run_folder, step = Path(str(self.args.output_dir)), self.state.global_step
        best = self.state.best_global_step
        with whole_or_not_at_all(run_folder, step) as staged:
            self._staging = staged.parent
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._staging = None
            if self._stream is not None:
                places = json.dumps(self._stream.state(step))
                (staged / f"{_STREAM}-{self.args.process_index}.json").write_text(places, encoding="utf-8")
            if best and self.args.should_save:
                # The Trainer has looked for it beside the one that is being written.
                self.state.best_model_checkpoint = str(run_folder / f"checkpoint-{best}")
                self.state.save_to_json(str(staged / TRAINER_STATE_NAME))
        if self.args.should_save:
            kept = self.state.best_model_checkpoint
            forget_older(run_folder, step, self.args.save_total_limit, None if kept is None else Path(kept))

    def _get_output_dir(self, trial: Any) -> str:
        """Where a checkpoint is written: to the side."""
        return super()._get_output_dir(trial) if self._staging is None else str(self._staging)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Loads low-rank additions and shards; a whole model was built from the checkpoint, which loads any class."""
        if is_adapted(self.model) or self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Writes a checkpoint on the way; of a whole model one that is as readable as the last."""
        folder = output_dir or str(self.args.output_dir)
        if not self.args.should_save:
            return
        if is_adapted(self.model):
            # Of a model in shards `state_dict` is gathered from them.
            self.model.save_pretrained(folder, state_dict=state_dict, save_embedding_layers=False)
            share_weights(folder)
        else:
            # Other processes put their random state beside it meanwhile, so the folder cannot appear all at once.
            Path(folder).mkdir(parents=True, exist_ok=True)
            whole: Any = self.model
            save_model(whole, self._tokenizer, folder, state_dict=state_dict)


def stream_places(checkpoint: Path) -> list[dict[str, list[int]]]:
    """Where the lanes of a stream stood at a checkpoint, as each process knew them."""
    return [json.loads(file.read_text(encoding="utf-8")) for file in sorted(checkpoint.glob(f"{_STREAM}-*.json"))]


class StepClock(TrainerCallback):
    """Seconds within steps, neither data, nor validation, nor saving, and the tokens that were trained in them."""

    def __init__(self) -> None:
        self._begun, self._seconds, self._tokens = 0.0, 0.0, 0
        self.is_running = False

    def count(self, tokens: int) -> None:
        """Adds tokens of all processes."""
        self._tokens += tokens

    def take(self) -> tuple[float, int]:
        """Seconds and tokens of all steps since this was asked last."""
        taken = self._seconds, self._tokens
        self._seconds, self._tokens = 0.0, 0
        return taken

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Starts the clock."""
        self._begun, self.is_running = time.monotonic(), True

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stops it; an accelerator may still be at work, but no further behind at one step than at the next."""
        self._seconds += time.monotonic() - self._begun
        self.is_running = False


class ValidateAtTheEnd(TrainerCallback):
    """Validation after the last step, before trackers are closed."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Asks the Trainer for it."""
        if state.global_step >= state.max_steps:
            control.should_evaluate = True


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


class StepLines(TrainerCallback):
    """Of several processes the first one's line a step: loss, tokens a second of all, peak memory, time left."""

    def __init__(self) -> None:
        self._begun, self._first = 0.0, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Notes the step that the run begins or goes on from."""
        self._begun, self._first = time.monotonic(), state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Writes a line."""
        if not state.is_world_process_zero or not logs:
            return
        place = f"step {state.global_step} of {state.max_steps}"
        if "loss" in logs:
            each = (time.monotonic() - self._begun) / max(1, state.global_step - self._first)
            logger.info(
                f"{place}: loss {float(logs['loss']):.4f}, {logs.get('tokens_per_second', 0):,} tokens a second, "
                f"{bytes_text(peak_bytes())}, {seconds_text(each * (state.max_steps - state.global_step))} left"
            )
        if shown := [f"{name.removeprefix('eval_')} {value:.2f}" for name, value in logs.items() if "perplex" in name]:
            logger.info(f"{place}: " + ", ".join(shown))


class StopOnRequest(TrainerCallback):
    """Turns the first Ctrl-C into: finish this step, save, stop. The second one interrupts at once."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self.requested = False

    def listening(self) -> AbstractContextManager[None]:
        """Within, SIGINT and SIGTERM are requests."""
        return on_stop_signals(self._request)

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
        self._say("stopping: this step is finished and saved first (Ctrl-C once more to stop at once and lose it)")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Asks the Trainer for a checkpoint and the end, where a stop was requested of any process."""
        if args.world_size > 1:
            requests = torch.tensor(int(self.requested), device=args.device)
            torch.distributed.all_reduce(requests)
            self.requested = bool(requests)
        if self.requested:
            control.should_save = True
            control.should_training_stop = True
