"""The thin `transformers.Trainer` that runs a curriculum."""

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, ProgressCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from skipwise.data.items import IGNORED_LABEL
from skipwise.data.stream import DocumentStream
from skipwise.model import empty_twin, save_in_parts, save_model, share_weights
from skipwise.train._trainer import OpenTrainer
from skipwise.train.arguments import mixed_precision
from skipwise.train.context import ContextGroup
from skipwise.train.curriculum import BatchPlaces
from skipwise.train.durable import OPTIMIZER_SHARDS, forget_older, whole_or_not_at_all
from skipwise.train.fsdp import load_optimizer, parts, save_optimizer, split_again, whole
from skipwise.train.guard import StepGuard
from skipwise.train.log import RunLog
from skipwise.train.progress import (
    LossesApart,
    ProgressLine,
    StepClock,
    StepLines,
    StopAskedError,
    StopOnRequest,
    ValidateAtTheEnd,
    ValidationCost,
)
from skipwise.train.tuning import is_adapted

logger = logging.getLogger("skipwise")

_STREAM = "stream"

Validate = Callable[[], dict[str, float]]
"""Measures the model in its present state, and returns metrics by name."""


class SkipwiseTrainer(OpenTrainer):
    """A Trainer whose items come in the curriculum's order, whose loss is chunked, and whose evaluation is ours.

    Args:
        stop: ends the run on request; None for never.
        guard: judges each step before the optimizer takes it; None if steps are only timed.
        log: the file of the log; None if `state` is to keep all of it.
        tokenizer: saved with every checkpoint. The Trainer itself is not given it, as it would write the tokenizer's
            special tokens into the model's config.
        validate: called where the Trainer would evaluate, and after the last step; None for never.
        stream: of documents; its lanes' places are saved with a checkpoint. None if documents are stored.
        context: the processes that hold each window together; None if each has windows of its own.
        is_exercise: whether the item at a place is an exercise, whose loss is shown apart; None if there are none.
        arguments: passed on to `transformers.Trainer`.
    """

    def __init__(
        self,
        *,
        stop: StopOnRequest | None = None,
        guard: StepGuard | None = None,
        log: RunLog | None = None,
        tokenizer: Any = None,
        validate: Validate | None = None,
        stream: DocumentStream | None = None,
        context: ContextGroup | None = None,
        is_exercise: Callable[[int], bool] | None = None,
        **arguments: Any,
    ) -> None:
        config = arguments["model"].config
        kept = {"use_cache": config.use_cache} if hasattr(config, "use_cache") else {}
        self._context = context  # The Trainer asks for it while it is made.
        # Only the presence of `eval_dataset` matters: `validate` brings its own documents.
        super().__init__(eval_dataset=arguments["train_dataset"], **arguments)
        # The Trainer turns it off for good; training passes it at each step, and readers of the checkpoint want it.
        config.update(kept)
        self._tokenizer, self._validate, self._guard, self._stream = tokenizer, validate, guard, stream
        self._log = log
        self._apart = None if is_exercise is None else LossesApart(is_exercise)
        # The loss itself divides by the number of labels over all accumulated batches and processes.
        self.model_accepts_loss_kwargs = True
        for shown_elsewhere in (PrinterCallback, ProgressCallback):
            self.remove_callback(shown_elsewhere)
        self._clock, self._cost = StepClock(), ValidationCost(logger.warning)
        self._stop = stop or StopOnRequest(logger.warning)
        shown = StepLines() if self.args.world_size > 1 else ProgressLine(quiet=self.args.disable_tqdm)
        for callback in filter(None, (stop, self._clock, guard, log, shown, ValidateAtTheEnd(), self._cost)):
            self.add_callback(callback)

    def batch_places(self, begin: int) -> BatchPlaces:
        """The places of this process's batches, in order; every process of a group that shares windows has the same."""
        items: Any = self.train_dataset
        group = self.args.process_index // self.get_cp_size()
        how = {"num_groups": self.num_groups, "group": group, "begin": begin}
        return BatchPlaces(len(items), self.args.train_batch_size, **how)

    def get_cp_size(self) -> int:
        """How many processes hold each window together: the Trainer counts each label that many times."""
        return 1 if self._context is None else self._context.size

    @property
    def num_groups(self) -> int:
        """How many batches are trained at a time."""
        return self.args.world_size // self.get_cp_size()

    @property
    def is_in_step(self) -> bool:
        """Whether a step has begun and not ended: neither validation, nor loading, nor saving."""
        return self._clock.is_running

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """The chunked loss, computed inside the model's forward pass (see `skipwise.loss.use_chunked_loss`)."""
        loss = model(**inputs, num_items_in_batch=num_items_in_batch)["loss"]
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes
        return loss

    def training_step(self, *arguments: Any, **keywords: Any) -> torch.Tensor:
        """A forward and a backward pass, whose loss the guard is told."""
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
            # A batch of conversations may have no label; its loss is 0 then.
            scored = labels.clamp(min=1) * everywhere
            mean = whole * num_labels / scored if num_labels is not None else whole
            # In a group that shares windows, the first process reports their items.
            answers = self._context is None or self._context.is_first
            self._guard.count(loss, mean, places if answers else places[:0])
            if self._apart is not None and answers:
                self._apart.count(mean, scored, places)
        return loss

    def on_gradient_norm(self, norm: Any) -> None:
        """Tells the guard; in float16 the scaler deals with a norm that is not finite."""
        if self._guard is not None:
            scaled = mixed_precision(self.args) is torch.float16
            self._guard.count_gradient_norm(None if norm is None or scaled else float(norm))

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Validation perplexities, logged like any metric, so that trackers and the best checkpoint see them.

        Returns:
            The perplexities; none if the run is asked to stop, and then the checkpoint says that they are due.

        Raises:
            StopAskedError: the run is asked to stop, and this process has trained nothing yet that could be saved.
        """
        if self._validate is None:
            return {}
        begun = time.monotonic()
        try:
            with self._stop.cutting_off(self.args):
                metrics = {f"eval_{name}": value for name, value in self._validate().items()}
        except StopAskedError:
            if not self._clock.has_run:
                raise
            self.control.should_save = self.control.should_training_stop = True
            return {}
        self._cost.seconds = time.monotonic() - begun
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        if self.control.should_training_stop and not self._clock.has_run:
            raise StopAskedError
        return metrics

    def log(self, logs: dict[str, float], *arguments: Any, **keywords: Any) -> None:
        """Adds seconds and speed of the steps that an entry is about; they stay in the log through a resume."""
        if "loss" in logs:
            seconds, tokens = self._clock.take()
            if self._guard is not None and (bad := self._guard.take_bad_losses()):
                # The Trainer logs the average of the steps before in their place.
                logs |= {"bad": len(bad)} | ({"loss": bad[0]} if self.args.logging_steps == 1 else {})
            logs |= {} if self._apart is None else self._apart.take()
            logs["step_seconds"] = round(seconds, 4)
            logs["tokens_per_second"] = round(tokens / seconds) if seconds else 0
        super().log(logs, *arguments, **keywords)

    @contextmanager
    def saving(self) -> Iterator[Path]:
        """Context in which a checkpoint is written to the side; afterwards, all of it on disk, it gets its name."""
        run_folder, step, best = Path(str(self.args.output_dir)), self.state.global_step, self.state.best_global_step
        with whole_or_not_at_all(run_folder, step) as staged:
            yield staged.parent
            if self._log is not None:
                self._log.save(staged)
            if self._stream is not None:
                places = json.dumps(self._stream.state(step))
                (staged / f"{_STREAM}-{self.args.process_index}.json").write_text(places, encoding="utf-8")
            if best and self.args.should_save:
                # The Trainer has looked for it beside the one being written.
                self.state.best_model_checkpoint = str(run_folder / f"checkpoint-{best}")
                self.state.save_to_json(str(staged / TRAINER_STATE_NAME))
        if self.args.should_save:
            kept = self.state.best_model_checkpoint
            forget_older(run_folder, step, self.args.save_total_limit, None if kept is None else Path(kept))

    def save_weights(self, folder: Path, state_dict: dict[str, Any] | None) -> None:
        """Writes low-rank additions, or a whole model as readable as the final one."""
        if is_adapted(self.model):
            # For a sharded model `state_dict` is gathered from the shards.
            self.model.save_pretrained(str(folder), state_dict=state_dict, save_embedding_layers=False)
            share_weights(folder)
        else:
            # Other processes put their random state beside it meanwhile, so the folder cannot appear all at once.
            folder.mkdir(parents=True, exist_ok=True)
            whole: Any = self.model
            save_model(whole, self._tokenizer, folder, state_dict=state_dict)

    def loads_weights(self) -> bool:
        """True for low-rank additions; a whole model has been loaded from the checkpoint already."""
        return is_adapted(self.model)

    def saves_optimizer(self, checkpoint: Path) -> bool:
        """False: it is whole in each process."""
        return False

    def loads_optimizer(self, checkpoint: Path) -> bool:
        """Reads what processes with shards have written."""
        folder = checkpoint / OPTIMIZER_SHARDS
        if found := folder.is_dir():
            model: Any = self.model
            wrapped: Any = self.optimizer
            load_optimizer(model, wrapped.optimizer, folder)
        return found


class ShardedTrainer(SkipwiseTrainer):
    """The same for a model that `skipwise.train.fsdp.shard` has split; all processes write each checkpoint together."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        # The library then neither wraps the model nor moves it.
        self.is_distributed_loading_by_transformers = True
        self._has_evaluated = False

    def evaluate(self, *arguments: Any, **keywords: Any) -> dict[str, float]:
        """As of any model, once the whole of it has been entered."""
        if not self._has_evaluated:
            # FSDP takes what is entered first for the root, and validation enters parts of the model.
            model: Any = self.model
            two = torch.zeros(1, 2, dtype=torch.int64, device=self.args.device)
            with torch.no_grad():
                model(input_ids=two, position_ids=torch.arange(2, device=two.device)[None], labels=two)
        self._has_evaluated = True
        try:
            return super().evaluate(*arguments, **keywords)
        finally:
            split_again(self.model)  # pyright: ignore[reportArgumentType]

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes low-rank additions, or the model layer by layer."""
        folder, model = Path(output_dir or str(self.args.output_dir)), self.model
        folder.mkdir(parents=True, exist_ok=True)
        if not is_adapted(model):
            full: Any = model
            save_in_parts(empty_twin(full), self._tokenizer, folder, parts(full))
            return
        additions = {name: whole(p) for name, p in model.named_parameters() if p.requires_grad}
        if self.args.should_save:
            self.save_weights(folder, additions)

    def loads_weights(self) -> bool:
        """False: the shards were made of the checkpoint's weights."""
        return False

    def saves_optimizer(self, checkpoint: Path) -> bool:
        """Writes each process's part."""
        model: Any = self.model
        wrapped: Any = self.optimizer
        save_optimizer(model, wrapped.optimizer, checkpoint / OPTIMIZER_SHARDS)
        return True


def is_validation_due(checkpoint: Path | None) -> bool:
    """Whether a run validates before its first step: from the beginning, or as it was stopped before it could."""
    if checkpoint is None:
        return True
    callbacks: Any = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)).stateful_callbacks
    control = callbacks.get("TrainerControl", {})
    return bool(control.get("args", {}).get("should_evaluate"))


def stream_places(checkpoint: Path) -> list[dict[str, list[int]]]:
    """Where the lanes of a stream stood at a checkpoint, as each process knew them."""
    return [json.loads(file.read_text(encoding="utf-8")) for file in sorted(checkpoint.glob(f"{_STREAM}-*.json"))]
