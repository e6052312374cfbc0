"""The paper's recipe under a run's own settings."""

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from skipwise.config import RunConfig
from skipwise.config.reading import parse_yaml
from skipwise.errors import ConfigError
from skipwise.launch import deepspeed_settings
from skipwise.train.arguments import CHECKPOINTING, GLOBAL_BATCH, mixed_precision, training_arguments, training_settings
from skipwise.train.sharding import is_zero3

SMALL = {"model": "some/model", "target": "32k"}


def test_the_recipe_is_the_papers() -> None:
    config = RunConfig.from_mapping({**SMALL, "training": {}})
    arguments = training_arguments(config)
    assert arguments.max_steps == 1000
    assert arguments.learning_rate == 2e-5
    assert arguments.warmup_steps == 10
    assert arguments.lr_scheduler_type == "linear"
    assert arguments.optim == "adamw_torch_fused"
    assert (arguments.adam_beta1, arguments.adam_beta2, arguments.weight_decay) == (0.9, 0.999, 0.0)
    assert arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps == GLOBAL_BATCH == 64
    assert training_settings(config)[CHECKPOINTING] is True
    assert arguments.report_to == []


@pytest.mark.parametrize(("max_steps", "warmup"), [(1000, 10), (100, 10), (24, 2), (3, 0)])
def test_few_steps_are_not_all_spent_on_warming_up(max_steps: int, warmup: int) -> None:
    settings = {"max_steps": max_steps}
    assert training_settings(RunConfig.from_mapping({**SMALL, "training": settings}))["warmup_steps"] == warmup
    said = RunConfig.from_mapping({**SMALL, "training": {**settings, "warmup_steps": 7}})
    assert training_settings(said)["warmup_steps"] == 7


@pytest.mark.parametrize(
    ("processes", "context", "at_a_time", "accumulation"),
    [(1, 1, 4, 16), (8, 1, 4, 2), (8, 1, 1, 8), (8, 2, 1, 16), (8, 8, 1, 64)],
)
def test_64_windows_a_step_whatever_the_batch_the_processes_and_their_groups(
    processes: int, context: int, at_a_time: int, accumulation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    settings = {"parallel": {"context": context}, "training": {"per_device_train_batch_size": at_a_time}}
    found = training_settings(RunConfig.from_mapping(SMALL | settings))
    assert found["gradient_accumulation_steps"] == accumulation


@pytest.mark.parametrize(("every", "strategy", "steps"), [(None, "steps", 250), (0, "no", None), (7, "steps", 7)])
def test_validation_is_after_each_quarter_unless_a_run_says_otherwise(
    every: int | None, strategy: str, steps: int | None
) -> None:
    arguments = training_arguments(RunConfig.from_mapping({**SMALL, "validation": {"every_steps": every}}))
    assert (arguments.eval_strategy, arguments.eval_steps) == (strategy, steps)


def test_the_older_name_of_gradient_checkpointing_is_understood() -> None:
    config = RunConfig.from_mapping({**SMALL, "training": {"gradient_checkpointing": False}})
    assert training_settings(config)[CHECKPOINTING] is False


@pytest.mark.parametrize(
    ("training", "launched", "dtype"),
    [
        ({}, "no", None),
        ({"bf16": True}, "no", torch.bfloat16),
        ({"fp16": True}, "no", torch.float16),
        ({}, "bf16", torch.bfloat16),
        ({}, "fp16", torch.float16),
        ({"bf16": True}, "fp16", torch.bfloat16),
    ],
)
def test_mixed_precision_is_the_trainers(
    training: dict[str, bool], launched: str, dtype: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    config = RunConfig.from_mapping({**SMALL, "training": {**training, "use_cpu": True}})
    arguments = training_arguments(config)
    assert mixed_precision(arguments) == dtype
    assert arguments.mixed_precision == {None: "no", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]


NUMBERS = itertools.product(
    ("learning_rate", "weight_decay", "max_grad_norm"), (-1.0, math.nan, math.inf, "fast", True)
)
SWITCHES = itertools.product(("bf16", "gradient_checkpointing", "tf32", "disable_tqdm"), ("maybe", "false", 1))


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        *((*each, "a number of 0 or more") for each in NUMBERS),
        *((*each, "true or false") for each in SWITCHES),
        ("max_steps", 0, "1 or more"),
        ("gradient_accumulation_steps", 1.5, "1 or more"),
    ],
)
def test_values_of_another_kind_are_refused_before_any_work(name: str, value: object, wanted: str) -> None:
    config = RunConfig.from_mapping({**SMALL, "training": {name: value}})
    with pytest.raises(ConfigError) as refused:
        training_settings(config)
    assert f"'training.{name}' is {value!r}" in str(refused.value)
    assert wanted in str(refused.value)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """As `accelerate launch` tells its processes."""

    def launched(**told: str) -> None:
        for name, value in told.items():
            monkeypatch.setenv(f"ACCELERATE_{name}", value)

    return launched


@pytest.mark.parametrize(
    ("training", "told", "named"),
    [
        ({"bf16": True, "use_cpu": torch.accelerator.is_available()}, {}, "training.bf16"),
        ({"use_cpu": True, "report_to": "nosuch"}, {}, "nosuch"),
        ({"use_cpu": True, "fsdp": True}, {}, "training.fsdp"),
        # It would split once more what the run has split.
        ({"use_cpu": True}, {"USE_FSDP": "true"}, "--launch fsdp2"),
    ],
)
def test_what_this_machine_cannot_do_is_refused_by_name(
    training: dict[str, Any], told: dict[str, str], named: str, launched: Callable[..., None]
) -> None:
    launched(**told)
    if named == "training.bf16" and training["use_cpu"]:
        pytest.skip("16 bits are there for the asking")
    with pytest.raises(ConfigError, match=named):
        training_arguments(RunConfig.from_mapping({**SMALL, "training": training}))


@pytest.mark.parametrize("stage", ["2", "3"])
def test_deepspeed_of_accelerate_launch_is_as_if_it_were_set(
    stage: str, launched: Callable[..., None], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    pytest.importorskip("deepspeed")
    launched(USE_DEEPSPEED="true", DEEPSPEED_ZERO_STAGE=stage, DEEPSPEED_OFFLOAD_PARAM_DEVICE="cpu")
    arguments = training_arguments(RunConfig.from_mapping(SMALL))
    assert arguments.deepspeed == deepspeed_settings(int(stage))
    assert is_zero3(arguments) == (stage == "3")
    assert "offload_param_device is left out" in caplog.text
    file = tmp_path / "zero.json"
    file.write_text(json.dumps(deepspeed_settings(int(stage))))
    launched(DEEPSPEED_CONFIG_FILE=str(file))
    assert training_arguments(RunConfig.from_mapping(SMALL)).deepspeed == str(file)
    # What a run says of engines comes first.
    config = RunConfig.from_mapping({**SMALL, "training": {"deepspeed": deepspeed_settings(2)}})
    assert training_arguments(config).deepspeed == deepspeed_settings(2)


def test_no_strategy_is_written_as_a_word_that_yaml_takes_for_false() -> None:
    settings = parse_yaml("{model: m, target: 32k, training: {save_strategy: no, logging_strategy: no, max_steps: 3}}")
    arguments = training_arguments(RunConfig.from_mapping(settings))
    assert (arguments.save_strategy, arguments.logging_strategy) == ("no", "no")
