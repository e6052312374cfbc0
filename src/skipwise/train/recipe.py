"""The recipe of a run that leaves it to skipwise."""

import logging
from collections.abc import Sequence

from transformers import PreTrainedConfig

from skipwise.config import RunConfig
from skipwise.doctor import Verdict, require_healthy
from skipwise.doctor.bench import local_span
from skipwise.errors import UnsupportedModelError
from skipwise.positions import PositionSampler
from skipwise.recipes import AUTO
from skipwise.train.folder import SETTINGS_FILE

logger = logging.getLogger(__name__)


class MaskRefusedError(UnsupportedModelError):
    """The preflight found nothing wrong but that the model was not seen to take the mask of diluted attention."""


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


def begun_recipe(config: RunConfig) -> RunConfig:
    """The run with the recipe that it was begun with, where its folder tells one and the run names none."""
    settings = config.output_folder / SETTINGS_FILE
    if config.recipe != AUTO or not settings.exists():
        return config
    begun = RunConfig.from_yaml(settings)
    # Runs of earlier versions that name none are the paper's.
    return config.with_recipe("paper" if begun.recipe == AUTO else begun.recipe)


def settle_recipe(config: RunConfig, base: PreTrainedConfig, sampler: PositionSampler | None = None) -> RunConfig:
    """The run with a recipe that goes with its model.

    Args:
        config: the run.
        base: config of the model.
        sampler: in place of the run's own; whoever brings one has chosen how positions are drawn.
    """
    if config.recipe != AUTO:
        return config
    local = local_span(base.get_text_config())
    settled = config.settled(takes_masks=local is None and sampler is None)
    why = "" if local is None else f", as layers that attend to the last {local} tokens only take no other mask"
    logger.info(f"recipe: {settled.recipe}{why}")
    return settled
