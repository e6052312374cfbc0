"""The private parts of `transformers.Trainer` that training depends on, each behind a public name of ours.

`tests/train/test_contracts.py` checks them against the installed release.
"""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.utils.data import Sampler
from transformers.trainer import SCHEDULER_NAME


class OpenTrainer(transformers.Trainer):
    """A Trainer with public hooks where the library has private methods."""

    _checkpoint_parent: Path | None = None

    def train_sampler(self) -> Sampler:
        """The order of the training items."""
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

    def _get_train_sampler(self, *_: Any, **__: Any) -> Sampler:
        return self.train_sampler()

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
            assert self.lr_scheduler is not None
            torch.save(self.lr_scheduler.state_dict(), folder / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not self.loads_optimizer(Path(checkpoint)):
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        assert self.lr_scheduler is not None
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))

    def _defer_fsdp_gradient_reduction(self) -> AbstractContextManager[None]:
        # Gradients that wait for the last micro-batch would be whole in each process meanwhile.
        return nullcontext()

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
