"""What `resolve` needs to know about a run's model and machine. Loads little, since `doctor` needs no more."""

from accelerate import PartialState
from transformers import PreTrainedConfig

from skipwise.config import RunConfig
from skipwise.config.recipes import Facts
from skipwise.doctor.bench import local_span
from skipwise.model import original_window, scaled_by
from skipwise.positions import PositionSampler
from skipwise.train.arguments import training_settings


def model_facts(
    given: RunConfig, base: PreTrainedConfig, *, sampler: PositionSampler | None = None, processes: int | None = None
) -> Facts:
    """What `resolve` needs to know about a run's model and machine, from the model's config alone.

    Args:
        given: the run.
        base: config of the model.
        sampler: instead of the run's own.
        processes: of the run; by default the number in this process's group.

    Raises:
        ConfigError, PositionError: lengths that contradict each other, or settings of `training` that are unknown.
    """
    training, local = training_settings(given), local_span(base.get_text_config(decoder=True))
    groups = max(1, (processes or PartialState().num_processes) // given.parallel.context)
    windows = training["per_device_train_batch_size"] * training["gradient_accumulation_steps"]
    return Facts(
        window=given.resolve_window(original_window(base)),
        refuses_mask=None
        if local is None
        else f"layers that attend to the last {local} tokens only take no other mask",
        interpolation=scaled_by(base, given.target),
        own_sampler=sampler is not None,
        steps=training["max_steps"],
        step_windows=windows * groups,
    )
