"""The inner parts of `transformers.Trainer` that training depends on, each behind a public name of ours.

`tests/train/test_contracts.py` checks them against the installed release.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader, Sampler
from transformers.trainer import SCHEDULER_NAME
from transformers.trainer_utils import seed_worker

# Settings of a run for its loader, each after `dataloader_`.
_LOADER = ("num_workers", "pin_memory", "persistent_workers", "multiprocessing_context", "prefetch_factor", "in_order")


class OpenTrainer(transformers.Trainer):
    """A Trainer with public hooks where the library has private methods."""

    _checkpoint_parent: Path | None = None
    _batches: Iterator[Any] | None = None

    def batch_places(self, begin: int) -> Sampler[list[int]]:
        """Places in the training items of the batches of this process, from the batch numbered `begin` on."""
        raise NotImplementedError

    def on_gradient_norm(self, norm: Any) -> None:
        """Called with the norm of a step's gradient (a number, 0-d tensor or None), which callbacks do not see."""
        raise NotImplementedError

    def saving(self) -> AbstractContextManager[Path]:
        """Context in which a checkpoint is written; yields the folder that gets `checkpoint-<step>`."""
        raise NotImplementedError

    def save_weights(self, folder: Path, state_dict: dict[str, Any] | None) -> None:
        """Writes the model's part of a checkpoint, in the process that writes."""
        raise NotImplementedError

    def loads_weights(self) -> bool:
        """Whether a resumed run takes the weights of its checkpoint from the library."""
        raise NotImplementedError

    def saves_optimizer(self, checkpoint: Path) -> bool:
        """Writes the optimizer's state, in all processes; False leaves that to the library."""
        raise NotImplementedError

    def loads_optimizer(self, checkpoint: Path) -> bool:
        """Reads the optimizer's state, in all processes; False leaves that to the library."""
        raise NotImplementedError

    def train(self, *arguments: Any, **keywords: Any) -> Any:
        """Trains, and ends the loader's workers."""
        try:
            return super().train(*arguments, **keywords)
        finally:
            self._batches = None

    def get_train_dataloader(self) -> DataLoader:
        """All batches of this process. The Trainer asks for their number; `get_batch_samples` takes those to train."""
        self._batches = None
        return self._loader(begin=0)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor | int | None]:
        """The next batches, from the present step on.

        The Trainer's own iterator of a resumed run would walk through all batches that are done. It is left as it is,
        and does nothing until it is first asked.
        """
        if self._batches is None:
            done = self.state.global_step * self.args.gradient_accumulation_steps
            self._batches = iter(self._loader(begin=done))
        return super().get_batch_samples(self._batches, num_batches, device)

    def _loader(self, begin: int) -> DataLoader:
        """A loader of this process's batches, which the library places on the device and does not share out again."""
        items: Any = self.train_dataset
        settings = {name: getattr(self.args, f"dataloader_{name}", None) for name in _LOADER}
        loader = DataLoader(
            items,
            batch_sampler=self.batch_places(begin),
            collate_fn=self.data_collator,
            worker_init_fn=partial(
                seed_worker, num_workers=self.args.dataloader_num_workers, rank=self.args.process_index
            ),
            **{name: value for name, value in settings.items() if value is not None},
        )
        return prepare_data_loader(
            loader,
            self.accelerator.device,
            num_processes=1,
            process_index=0,
            put_on_device=self.accelerator.device_placement,
            non_blocking=self.accelerator.non_blocking,
        )

    def _get_grad_norm(self, *arguments: Any, **keywords: Any) -> Any:
        norm = super()._get_grad_norm(*arguments, **keywords)
        self.on_gradient_norm(norm)
        return norm

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with self.saving() as parent:
            self._checkpoint_parent = parent
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._checkpoint_parent = None

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        folder = Path(output_dir)
        if not self.saves_optimizer(folder):
            super()._save_optimizer_and_scheduler(output_dir)
        elif self.args.should_save:
            scheduler: Any = self.lr_scheduler
            torch.save(scheduler.state_dict(), folder / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not self.loads_optimizer(Path(checkpoint)):
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        scheduler: Any = self.lr_scheduler
        scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))

    @contextmanager
    def _defer_fsdp_gradient_reduction(self) -> Iterator[None]:
        # Gradients that wait for the last micro-batch would be whole in each process meanwhile.
        yield

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._checkpoint_parent is None else str(self._checkpoint_parent)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if self.args.should_save:
            self.save_weights(Path(output_dir or str(self.args.output_dir)), state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.loads_weights():
            super()._load_from_checkpoint(resume_from_checkpoint, model)


def use_one_accelerator(arguments: transformers.TrainingArguments) -> None:
    """Keeps the Trainer of a single process from copying the model to every visible accelerator at each step."""
    arguments._n_gpu = 1
