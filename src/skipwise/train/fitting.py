"""Memory that runs out on the first steps: half as many windows at a time, twice as often, and the same step."""

import contextlib
from collections.abc import Iterator

import transformers

from skipwise.config import RunConfig
from skipwise.errors import CheckpointError
from skipwise.train.arguments import training_settings
from skipwise.train.process import ran_out_of_memory

# A step that needs more than those before it is another matter: of memory that others take, or of wider windows.
_FIRST_STEPS = 3


class TooManyAtATimeError(CheckpointError):
    """There is no memory for as many windows at a time.

    Attributes:
        most: how many to go on with.
    """

    def __init__(self, tried: int, most: int, windows: int, processes: int) -> None:
        self.most = most
        anew = "" if processes == 1 else "; start the run anew with --resume, as --max-restarts does by itself"
        super().__init__(
            f"there is no memory for {tried} windows at a time: going on with {most}, {windows // most} times before "
            f"each process's part of a step, whose {windows * processes} windows stay the same{anew}"
        )


@contextlib.contextmanager
def fewer_at_a_time(trainer: transformers.Trainer, first_step: int) -> Iterator[None]:
    """Within, memory that runs out on the first steps is told with what would fit.

    Args:
        trainer: that trains within.
        first_step: steps done before, in a run that goes on.

    Raises:
        TooManyAtATimeError: fewer windows at a time may fit.
        CheckpointError: not even one does.
    """
    arguments = trainer.args
    try:
        yield
    except Exception as error:
        if not ran_out_of_memory(error) or trainer.state.global_step - first_step >= _FIRST_STEPS:
            raise
        tried, words = arguments.train_batch_size, " ".join(str(error).split())[:200]
    else:
        return
    # Outside of the handler, so that what the error's frames hold is not kept by the one that follows.
    if tried == 1:
        raise CheckpointError(
            f"there is no memory for a single window ({words}); train on a shorter --window, with --tuning lora, in "
            "bfloat16, or split the model by --launch fsdp2; `skipwise plan` tells what fits"
        )
    windows = tried * arguments.gradient_accumulation_steps
    most = max(fewer for fewer in range(1, tried // 2 + 1) if windows % fewer == 0)
    raise TooManyAtATimeError(tried, most, windows, arguments.world_size)


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
