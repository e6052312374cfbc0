"""How the processes of a run share its windows and its model."""

from collections.abc import Mapping
from typing import Any, NoReturn

from pydantic import Field

from skipwise.config.base import StrictModel
from skipwise.errors import ConfigError


class ParallelConfig(StrictModel):
    """What several processes share.

    Attributes:
        context: size of context parallelism: number of processes that split each window among them, for windows that do
            not fit one device.
        shard: splits parameters, gradients and optimizer state over all processes (FSDP2), for models that do not fit
            one device. `--launch fsdp2` sets it.
    """

    context: int = Field(default=1, ge=1)
    shard: bool = False

    def check(self, *, calibrate: bool, training: Mapping[str, Any]) -> None:
        """Refuses what needs the whole model of a run that splits it.

        Args:
            calibrate: whether the run chooses an attention factor at its end.
            training: its settings for the Trainer.

        Raises:
            ConfigError: one of these.
        """
        if self.shard and calibrate:
            refuse_to_calibrate()
        if self.shard and training.get("load_best_model_at_end"):
            raise ConfigError(
                "setting 'training.load_best_model_at_end' is true, and this run splits the model, into which no "
                "checkpoint can be loaded at the end: leave it out, and give the best checkpoint to `skipwise eval`",
                page="parallel-run",
            )


def refuse_to_calibrate() -> NoReturn:
    """Raises the ConfigError of a run that calibrates and splits its model, whatever splits it."""
    raise ConfigError(
        "setting 'calibrate' reads long documents with the whole model, and this run splits it over processes: leave "
        "it out, and call `skipwise calibrate` on what the run leaves",
        page="parallel-run",
    )
