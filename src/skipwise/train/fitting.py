"""Memory that runs out on the first steps: half as many windows at a time, twice as often, and the same step."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from skipwise.config import RunConfig
from skipwise.errors import CheckpointError
from skipwise.train.arguments import training_settings
from skipwise.train.curriculum import Curriculum
from skipwise.train.process import ran_out_of_memory
from skipwise.train.recipe import NoRoomToGrowError

if TYPE_CHECKING:
    from skipwise.train.trainer import SkipwiseTrainer

# A later step that needs more than those before it has wider windows, or others have taken memory meanwhile.
_FIRST_STEPS = 3


class TooManyAtATimeError(CheckpointError):
    """There is no memory for as many windows at a time.

    Attributes:
        most: how many to go on with.
    """

    def __init__(self, tried: int, most: int, windows: int, processes: int, groups: int) -> None:
        self.most = most
        goes_on = "going on" if processes == 1 else "start it anew by --resume, as --max-restarts does, and it goes on"
        super().__init__(
            f"there is no memory for {tried} windows at a time: {goes_on} with {most}, {windows // most} times a step "
            f"in each process, and the {windows * groups} windows of a step stay the same"
        )


@contextlib.contextmanager
def fewer_at_a_time(trainer: "SkipwiseTrainer", first_step: int) -> Iterator[None]:
    """Within, memory that runs out within a step is told, on the first steps with what would fit.

    Args:
        trainer: that trains within.
        first_step: steps done before, in a run that goes on.

    Raises:
        TooManyAtATimeError: fewer windows at a time may fit.
        NoRoomToGrowError: not even one that has grown does.
        CheckpointError: not even one does, or a later step has none.
    """
    arguments = trainer.args
    try:
        yield
    except Exception as error:
        if not trainer.is_in_step or not ran_out_of_memory(error):
            raise
        tried, words = arguments.train_batch_size, " ".join(str(error).split())[:200]
        step = trainer.state.global_step + 1
    else:
        return
    curriculum: Curriculum = trainer.train_dataset  # type: ignore[assignment]
    if step <= _FIRST_STEPS and (tokens := curriculum.grown_tokens(step - 1, tried)):
        raise NoRoomToGrowError(
            f"there is no memory for a single window of {tokens} tokens, to which `growth` comes ({words}): give it "
            "less, split windows by parallel.context, or take the recipe diluted, whose windows stay short"
        )
    # Outside of the handler, so that what the error's frames hold is not kept by the one that follows.
    if step - first_step > _FIRST_STEPS:
        raise CheckpointError(
            f"there is no memory for step {step} ({words}), and for those before there was: where `growth` makes "
            "windows wider, give it less, split windows by parallel.context, or the model by --launch fsdp2; where "
            "others took it, go on by --resume"
        )
    if tried == 1:
        raise CheckpointError(
            f"there is no memory for a single window ({words}); train on a shorter --window, with --tuning lora, in "
            "bfloat16, split it by parallel.context, or the model by --launch fsdp2; `skipwise plan` tells what fits"
        )
    windows = tried * arguments.gradient_accumulation_steps
    most = max(fewer for fewer in range(1, tried // 2 + 1) if windows % fewer == 0)
    raise TooManyAtATimeError(tried, most, windows, arguments.world_size, trainer.num_groups)


def smaller_batches(config: RunConfig, most: int | None) -> RunConfig:
    """The run with at most so many windows at a time, and as many a step."""
    settings = training_settings(config)
    tried = settings["per_device_train_batch_size"]
    if most is None or tried <= most:
        return config
    windows = tried * settings["gradient_accumulation_steps"]
    fewer = max(each for each in range(1, most + 1) if windows % each == 0)
    spread = {"per_device_train_batch_size": fewer, "gradient_accumulation_steps": windows // fewer}
    return config.model_copy(update={"training": {**config.training, **spread}})
