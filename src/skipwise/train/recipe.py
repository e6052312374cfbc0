"""The recipe of a run that leaves it to skipwise."""

import logging
from collections.abc import Sequence
from typing import Any, ClassVar

from accelerate import PartialState
from transformers import PreTrainedConfig

from skipwise.config import RunConfig
from skipwise.config.recipes import AUTO
from skipwise.doctor import Verdict, require_healthy
from skipwise.doctor.bench import local_span
from skipwise.errors import CheckpointError, ConfigError, DataError, SkipwiseError, UnsupportedModelError
from skipwise.positions import PositionSampler
from skipwise.train.exercises import require_room
from skipwise.train.folder import SETTINGS_FILE, RunFolder, begun_settings
from skipwise.window import Window

logger = logging.getLogger(__name__)


class RecipeRefusedError(SkipwiseError):
    """A recipe that cannot be had here; a run that left the choice to skipwise has another in its place.

    Attributes:
        instead: which.
    """

    instead: ClassVar[str] = "diluted"


class MaskRefusedError(RecipeRefusedError, UnsupportedModelError):
    """The preflight found nothing wrong but that the model was not seen to take the mask of diluted attention."""

    instead: ClassVar[str] = "paper"


class ShortDocumentsError(RecipeRefusedError, DataError):
    """Too few documents are as long as windows that have grown, or none is."""


class NoRoomToGrowError(RecipeRefusedError, CheckpointError):
    """There is no memory for a single window that has grown."""


def refuses_mask(verdicts: Sequence[Verdict]) -> bool:
    """Whether the mask of diluted attention is all that a preflight has failed for.

    In 16 bits that may be rounding, under which the mask's effect on a small model cannot be seen.
    """
    return [verdict.name for verdict in verdicts if verdict.status == "fail"] == ["dilution"]


def require_healthy_run(verdicts: Sequence[Verdict]) -> None:
    """Refuses a model that the preflight has failed for.

    Raises:
        MaskRefusedError: for diluted attention alone.
        UnsupportedModelError: for anything else.
    """
    try:
        require_healthy(verdicts)
    except UnsupportedModelError as error:
        if refuses_mask(verdicts):
            raise MaskRefusedError(str(error)) from None
        raise


def as_begun(config: RunConfig) -> RunConfig:
    """The run with what its folder says that it was begun with, where that was left to skipwise.

    It is the recipe, and how a version that had no setting for it took control tokens in documents.
    """
    settings = config.output_folder / SETTINGS_FILE
    if not settings.exists():
        return config
    begun = begun_settings(settings)
    meant = begun.data.control_tokens
    if "control_tokens" not in config.data.model_fields_set and config.data.control_tokens != meant:
        config = config.with_data(control_tokens=meant)
    if config.recipe != AUTO:
        return config
    found = config.with_recipe(begun.recipe)
    return found if "retrieval" in config.data.model_fields_set else found.with_retrieval(begun.data.retrieval)


def exercises_as_fit(config: RunConfig, given: RunConfig, tokenizer: Any, window: Window) -> RunConfig:
    """The run without the exercises of its recipe, where the training window is too short for one.

    Args:
        config: the run.
        given: the same as it was asked for; who names a recipe or a share of exercises is not given another.
        tokenizer: the model's own.
        window: lengths of the run, in tokens.
    """
    if not config.data.retrieval or given.recipe != AUTO or "retrieval" in given.data.model_fields_set:
        return config
    try:
        require_room(tokenizer, window)
    except ConfigError:
        logger.info(f"recipe: without exercises, for which windows of {window.train} tokens are too short")
        return config.with_retrieval(0.0)
    logger.info(f"recipe: {config.data.retrieval:.0%} of its windows are generated exercises")
    return config


def settle_recipe(
    config: RunConfig, base: PreTrainedConfig, sampler: PositionSampler | None = None, processes: int | None = None
) -> RunConfig:
    """The run with a recipe that goes with its model.

    Args:
        config: the run.
        base: config of the model.
        sampler: in place of the run's own; whoever brings one has chosen how positions are drawn.
        processes: of the run; by default as many as this one is one of.
    """
    if config.recipe != AUTO:
        return config
    local = local_span(base.get_text_config())
    settled = config.settled(
        takes_masks=local is None and sampler is None, processes=processes or PartialState().num_processes
    )
    if settled.recipe != "paper" and (instead := RunFolder(config).recipe_instead()):
        logger.info(f"recipe: {instead}, as {settled.recipe} was found here not to fit")
        return config.with_recipe(instead)
    why = "" if local is None else f", as layers that attend to the last {local} tokens only take no other mask"
    logger.info(f"recipe: {settled.recipe}{why}")
    return settled
