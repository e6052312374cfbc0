"""Which recipe a run has that names none."""

from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, MistralConfig, PreTrainedConfig, Qwen2Config

from skipwise.config import LoraTuning, RunConfig, parse_yaml
from skipwise.positions import PoSE, RandPos
from skipwise.train.recipe import begun_recipe, settle_recipe

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


def test_growth_that_a_run_asks_for_is_not_given_masks_of_its_square() -> None:
    run = settled(growth={"window": "32k", "share": 0.1})
    assert (run.recipe, run.dilution, run.growth[0].share) == ("paper", False, 0.1)
    assert settled(growth={"window": "32k", "share": 0.1}, recipe="diluted").dilution


def test_what_is_tuned_stays_as_it_is_told_by_an_object() -> None:
    run = settle_recipe(RunConfig(model="some/model", target=32768, tuning=LoraTuning()), LlamaConfig())
    assert (run.recipe, run.tuning) == ("diluted", LoraTuning())


def test_the_yaml_of_a_run_without_recipe_settles_as_the_run_does() -> None:
    run = RunConfig.from_mapping(SMALL | {"tuning": "lora", "data": {"join": True}})
    again = RunConfig.from_mapping(parse_yaml(run.to_yaml()))
    assert settle_recipe(again, LlamaConfig()) == settle_recipe(run, LlamaConfig())
    assert settle_recipe(again, LlamaConfig()).dilution


@pytest.mark.parametrize(("text", "recipe"), [("recipe: growing", "growing"), ("recipe: auto", "paper"), ("", "paper")])
def test_a_run_goes_on_with_the_recipe_that_it_was_begun_with(text: str, recipe: str, tmp_path: Path) -> None:
    run = RunConfig.from_mapping(SMALL | {"output": str(tmp_path)})
    assert begun_recipe(run) is run, "nothing has begun"
    (tmp_path / "run.yaml").write_text(f"model: some/model\ntarget: 32k\n{text}\n")
    assert begun_recipe(run).recipe == recipe
    named = run.with_recipe("diluted")
    assert begun_recipe(named) is named


@pytest.mark.parametrize("name", ["paper", "growing", "diluted"])
def test_a_recipe_that_is_named_stays(name: str) -> None:
    run = RunConfig.from_mapping({**SMALL, "recipe": name})
    assert settle_recipe(run, MistralConfig(sliding_window=512)) is run


def test_the_runs_own_settings_lie_over_it() -> None:
    run = settled(dilution=False, seed=3, data={"source": "docs", "join": True}, training={"max_steps": 7}, window="1k")
    assert (run.recipe, run.dilution, run.seed, run.data.join, run.window) == ("diluted", False, 3, True, 1024)
    assert run.training == {"max_steps": 7}
    assert run.build_sampler() == FLAT
