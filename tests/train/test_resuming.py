"""A resumed run takes up its batches where they are left: nothing before them is asked for, or walked through."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard
from tiny_models import tiny_config, tiny_model
from torch.utils.data import BatchSampler, Dataset, SequentialSampler

from skipwise.config import RunConfig
from skipwise.data.items import TrainingItem
from skipwise.train.arguments import training_arguments
from skipwise.train.curriculum import BatchPlaces, collate
from skipwise.train.trainer import SkipwiseTrainer


@pytest.mark.parametrize(("processes", "batch"), [(1, 1), (1, 3), (2, 2), (3, 1), (4, 2)])
@pytest.mark.parametrize("rest", [0, 1])
def test_a_process_has_the_batches_that_accelerate_deals_to_it(processes: int, batch: int, rest: int) -> None:
    places = 4 * processes * batch + rest
    for process in range(processes):
        batches = BatchSampler(SequentialSampler(range(places)), batch, drop_last=True)
        dealt = [*BatchSamplerShard(batches, processes, process)]
        for begin in range(5):
            own = BatchPlaces(places, batch, num_groups=processes, group=process, begin=begin)
            assert [*own] == dealt[begin:]
            assert len(own) == len(dealt[begin:])


class Endless(Dataset):
    """A thousand million items; notes which are asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __len__(self) -> int:
        return 10**9

    def __getitem__(self, place: int) -> TrainingItem:
        self.asked.append(place)
        return TrainingItem(np.arange(4), np.arange(4), np.arange(4), place=place)


def test_the_first_batches_after_a_hundred_million_steps_are_there_at_once(tmp_path: Path) -> None:
    training = {"max_steps": 125_000_000, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    settings = {"model": "-", "target": 64, "output": str(tmp_path), "training": {**training, "use_cpu": True}}
    arguments, items = training_arguments(RunConfig.from_mapping(settings)), Endless()
    model = tiny_model(tiny_config("llama"))
    trainer = SkipwiseTrainer(model=model, args=arguments, train_dataset=items, data_collator=collate)
    trainer.state.global_step = 100_000_000

    def walked() -> Iterator[Any]:
        raise AssertionError("the Trainer's own batches, from the first one on, were asked for")
        yield

    batches, _ = trainer.get_batch_samples(walked(), 4, arguments.device)
    assert [batch["places"].tolist() for batch in batches] == [
        [8 * 10**8 + 2 * n, 8 * 10**8 + 2 * n + 1] for n in range(4)
    ]
    # One batch is taken ahead.
    assert items.asked == [*range(8 * 10**8, 8 * 10**8 + 10)]
