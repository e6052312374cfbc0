"""Which recipe a run has that names none."""

from typing import Any

import pytest
from transformers import LlamaConfig, MistralConfig, PreTrainedConfig, Qwen2Config

from skipwise.config import RunConfig
from skipwise.positions import PoSE, RandPos
from skipwise.train.recipe import settle_recipe

SMALL = {"model": "some/model", "target": "32k"}
FLAT = PoSE(skips="flat", text="aligned", start="anywhere")


def settled(base: PreTrainedConfig | None = None, own: Any = None, **settings: Any) -> RunConfig:
    return settle_recipe(RunConfig.from_mapping(SMALL | settings), base or LlamaConfig(), own)


@pytest.mark.parametrize("base", [LlamaConfig(), MistralConfig(sliding_window=None), Qwen2Config()])
def test_attention_is_diluted_where_every_layer_takes_a_mask(base: PreTrainedConfig) -> None:
    run = settled(base)
    assert (run.recipe, run.dilution, run.growth, run.data.retrieval) == ("diluted", True, [], 0)
    assert run.build_sampler() == FLAT
    assert run == settled(base, recipe="diluted")


def test_it_is_the_papers_where_layers_are_local(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    run = settled(MistralConfig(sliding_window=512))
    assert (run.recipe, run.dilution, run.build_sampler()) == ("paper", False, PoSE())
    assert caplog.messages == ["recipe: paper, as layers that attend to the last 512 tokens only take no other mask"]


@pytest.mark.parametrize(
    "settings",
    [
        {"sampler": "randpos"},
        {"sampler": {"chunks": 3}},
        {"attention": "flash_attention_2"},
        {"parallel": {"context": 2}},
    ],
)
def test_it_is_the_papers_where_positions_are_said_or_no_mask_goes(settings: dict[str, Any]) -> None:
    run = settled(**settings)
    assert (run.recipe, run.dilution, run.data.retrieval) == ("paper", False, 0)
    assert run.model_copy(update={"recipe": "auto"}) == RunConfig.from_mapping(SMALL | settings)


def test_it_is_the_papers_for_a_sampler_of_ones_own() -> None:
    assert settled(own=RandPos()).recipe == "paper"


@pytest.mark.parametrize("name", ["paper", "growing", "diluted"])
def test_a_recipe_that_is_named_stays(name: str) -> None:
    run = RunConfig.from_mapping({**SMALL, "recipe": name})
    assert settle_recipe(run, MistralConfig(sliding_window=512)) is run


def test_the_runs_own_settings_lie_over_it() -> None:
    run = settled(dilution=False, seed=3, data={"source": "docs", "join": True}, training={"max_steps": 7}, window="1k")
    assert (run.recipe, run.dilution, run.seed, run.data.join, run.window) == ("diluted", False, 3, True, 1024)
    assert run.training == {"max_steps": 7}
    assert run.build_sampler() == FLAT
