"""Out-of-memory recovery on the first steps: smaller micro-batch, more accumulation, or narrower grown windows."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from skipwise.config import RunConfig
from skipwise.errors import CheckpointError
from skipwise.train.arguments import training_settings
from skipwise.train.curriculum import Curriculum
from skipwise.train.process import ran_out_of_memory

if TYPE_CHECKING:
    from skipwise.train.trainer import SkipwiseTrainer

# A later step runs out of memory only if its windows are wider, or if another program has taken memory.
_FIRST_STEPS = 3


class TooMuchAtATimeError(CheckpointError):
    """Memory ran out, and less at a time may fit.

    Attributes:
        less: what to continue with, for `RunFolder.remember`.
    """

    page = "out-of-memory"

    def __init__(self, message: str, less: Mapping[str, int]) -> None:
        self.less = less
        super().__init__(message)


@contextlib.contextmanager
def fewer_at_a_time(trainer: "SkipwiseTrainer", first_step: int) -> Iterator[None]:
    """Context that explains out-of-memory errors within a step, on the first steps with what would fit.

    Args:
        trainer: that trains within.
        first_step: steps done before, by a resumed run.

    Raises:
        TooMuchAtATimeError: fewer windows at a time may fit, or narrower ones if they have grown.
        CheckpointError: not even a single window fits, or it was a later step.
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
    # Outside of the handler, or the new error would keep alive what the frames of the old one hold.
    if step <= _FIRST_STEPS and (tokens := curriculum.grown_tokens(step - 1, tried)):
        raise _too_wide(tokens, curriculum.window_tokens, words, arguments.world_size)
    if step - first_step > _FIRST_STEPS:
        raise CheckpointError(
            f"there is no memory for step {step} ({words}), although the steps before it fitted; if `growth` makes its "
            "windows wider, choose narrower ones, split windows by parallel.context, or shard the model by --launch "
            "fsdp2; if other programs took the memory, continue with --resume",
            page="out-of-memory",
        )
    if tried == 1:
        raise CheckpointError(
            f"there is no memory for a single window ({words}); train on a shorter window, with --tuning lora, in "
            "bfloat16, split it by parallel.context, or shard the model by --launch fsdp2; `skipwise plan` says "
            "what fits",
            page="out-of-memory",
        )
    raise _too_many(tried, arguments.gradient_accumulation_steps, arguments.world_size, trainer.num_groups)


def _too_wide(tokens: int, window_tokens: int, words: str, processes: int) -> TooMuchAtATimeError:
    """Halves grown windows, down to the training window at most."""
    narrower = max(window_tokens, tokens // 2)
    return TooMuchAtATimeError(
        f"there is no memory for a single window of {tokens} tokens, the widest of `growth` ({words}): "
        f"{_continues(processes)} with windows of at most {narrower} tokens",
        {"widest_tokens": narrower},
    )


def _too_many(tried: int, times: int, processes: int, groups: int) -> TooMuchAtATimeError:
    """At most half as many windows at a time, with the same effective batch."""
    windows = tried * times
    most = max(fewer for fewer in range(1, tried // 2 + 1) if windows % fewer == 0)
    return TooMuchAtATimeError(
        f"there is no memory for {tried} windows at a time: {_continues(processes)} with {most}, "
        f"{windows // most} times per step in each process; a step still has {windows * groups} windows",
        {"most_at_a_time": most},
    )


def _continues(processes: int) -> str:
    return "continuing" if processes == 1 else "resume it with --resume, as --max-restarts does, and it continues"


def smaller_batches(config: RunConfig, most: int | None) -> RunConfig:
    """The run with at most this many windows at a time, and the same effective batch."""
    settings = training_settings(config)
    tried = settings["per_device_train_batch_size"]
    if most is None or tried <= most:
        return config
    windows = tried * settings["gradient_accumulation_steps"]
    fewer = max(each for each in range(1, most + 1) if windows % each == 0)
    spread = {"per_device_train_batch_size": fewer, "gradient_accumulation_steps": windows // fewer}
    return config.model_copy(update={"training": {**config.training, **spread}})
