"""Seconds of the Trainer's steps, without a run's documents, preflight, validation and files."""

import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from skipwise.config import FullTuning, RunConfig, Tuning
from skipwise.data.items import TrainingItem
from skipwise.loss import use_chunked_loss
from skipwise.positions import PoSE, PositionSampler
from skipwise.train.arguments import training_arguments
from skipwise.train.curriculum import collate, collate_diluted
from skipwise.train.trainer import SkipwiseTrainer
from skipwise.train.tuning import apply_tuning
from skipwise.window import Window


def step_seconds(model: Any, windows: Sequence[np.ndarray], **how: Any) -> list[float]:
    """Seconds of each step of the Trainer of `extend`; arguments as for `step_log`."""
    return [entry["step_seconds"] for entry in step_log(model, windows, **how)]


def step_log(
    model: Any,
    windows: Sequence[np.ndarray],
    *,
    sampler: PositionSampler = PoSE(),  # noqa: B008 - frozen
    tuning: Tuning = FullTuning(),  # noqa: B008 - frozen
    accumulation: int = 1,
    diluted: bool = False,
    **training: Any,
) -> list[dict[str, Any]]:
    """What the Trainer of `extend` logs of each step, with positions drawn and collated on the way.

    Args:
        model: a causal language model of the transformers library; it is trained.
        windows: token ids of each, all of the same length.
        sampler: of positions.
        tuning: what is trained.
        accumulation: micro-batches per step.
        diluted: with the mask of diluted attention.
        training: settings of a run's `training`, such as `gradient_checkpointing`.

    Returns:
        `step_seconds`, `loss` and more, by step.
    """
    length = len(windows[0])
    window = Window(train=length, original=length, target=4 * length)
    with tempfile.TemporaryDirectory() as folder:
        config = RunConfig.from_mapping(
            {
                "model": "-",
                "target": window.target,
                "output": folder,
                "training": {
                    "max_steps": len(windows) // (accumulation * training.get("per_device_train_batch_size", 1)),
                    "gradient_accumulation_steps": accumulation,
                    "save_strategy": "no",
                    "disable_tqdm": True,
                    **training,
                },
            }
        )
        tuned: Any = apply_tuning(model.train(), tuning)
        use_chunked_loss(model)
        trainer = SkipwiseTrainer(
            model=tuned,
            args=training_arguments(config),
            train_dataset=_Windows(windows, window, sampler),  # type: ignore[arg-type]
            data_collator=collate_diluted if diluted else collate,
        )
        trainer.train()
    return [entry for entry in trainer.state.log_history if "step_seconds" in entry]


class _Windows:
    def __init__(self, windows: Sequence[np.ndarray], window: Window, sampler: PositionSampler) -> None:
        self._windows, self._window, self._sampler = windows, window, sampler

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, place: int) -> TrainingItem:
        ids = self._windows[place]
        sample = self._sampler.sample(len(ids), self._window, np.random.default_rng(place))
        return TrainingItem(ids, sample.position_ids, ids)
