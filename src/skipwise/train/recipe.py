"""The recipe of a run that leaves it to skipwise."""

import logging

from transformers import PreTrainedConfig

from skipwise.config import RunConfig
from skipwise.doctor.bench import local_span
from skipwise.positions import PositionSampler
from skipwise.recipes import AUTO

logger = logging.getLogger(__name__)


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
