"""Which recipe a run has that names none."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import run
from transformers import LlamaConfig, MistralConfig, PreTrainedConfig, Qwen2Config

import skipwise.train
from skipwise.config import LoraTuning, RunConfig
from skipwise.config.reading import parse_yaml
from skipwise.doctor import Verdict
from skipwise.errors import ConfigError
from skipwise.positions import PoSE, RandPos
from skipwise.train import data
from skipwise.train.recipe import MaskRefusedError, RecipeRefusedError, as_begun, settle_recipe

SMALL = {"model": "some/model", "target": "32k"}
FLAT = PoSE(skips="flat", text="aligned", start="mixed")


def settled(base: PreTrainedConfig | None = None, own: Any = None, **settings: Any) -> RunConfig:
    return settle_recipe(RunConfig.from_mapping(SMALL | settings), base or LlamaConfig(), own)


@pytest.mark.parametrize("base", [LlamaConfig(), MistralConfig(sliding_window=None), Qwen2Config()])
def test_attention_is_diluted_where_every_layer_takes_a_mask(base: PreTrainedConfig) -> None:
    found = settled(base)
    assert (found.recipe, found.dilution, found.data.retrieval) == ("growing", True, 0.25)
    assert [(stage.window, stage.share) for stage in found.growth] == [("4x", 0.7), ("8x", 0.3)]
    assert found.build_sampler() == FLAT
    assert found == settled(base, recipe="growing")


def test_it_is_the_papers_where_layers_are_local(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    found = settled(MistralConfig(sliding_window=512))
    assert (found.recipe, found.dilution, found.build_sampler()) == ("paper", False, PoSE())
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
    found = settled(**settings)
    assert (found.recipe, found.dilution, found.data.retrieval) == ("paper", False, 0)
    assert found.model_copy(update={"recipe": "auto"}) == RunConfig.from_mapping(SMALL | settings)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("processes", [1, 2])
def test_windows_grow_where_documents_are_known_and_in_one_process(streaming: bool, processes: int) -> None:
    config = RunConfig.from_mapping(SMALL | {"data": {"source": "documents", "streaming": streaming}})
    found = settle_recipe(config, LlamaConfig(), processes=processes)
    assert found.recipe == ("diluted" if streaming or processes > 1 else "growing")
    assert found.data.streaming == streaming


def test_it_is_the_papers_for_a_sampler_of_ones_own() -> None:
    assert settled(own=RandPos()).recipe == "paper"


def test_growth_that_a_run_asks_for_is_not_given_masks_of_its_square() -> None:
    found = settled(growth={"window": "32k", "share": 0.1})
    assert (found.recipe, found.dilution, found.growth[0].share) == ("paper", False, 0.1)
    assert settled(growth={"window": "32k", "share": 0.1}, recipe="diluted").dilution


def test_what_is_tuned_stays_as_it_is_told_by_an_object() -> None:
    found = settle_recipe(RunConfig(model="some/model", target=32768, tuning=LoraTuning()), LlamaConfig())
    assert (found.recipe, found.tuning) == ("growing", LoraTuning())


def test_the_yaml_of_a_run_without_recipe_settles_as_the_run_does() -> None:
    plain = RunConfig.from_mapping(SMALL | {"tuning": "lora", "data": {"join": True}})
    again = RunConfig.from_mapping(parse_yaml(plain.to_yaml()))
    assert settle_recipe(again, LlamaConfig()) == settle_recipe(plain, LlamaConfig())
    found = settle_recipe(again, LlamaConfig())
    assert found.dilution
    # What a run says of its documents leaves what the recipe says of them.
    assert (found.data.join, found.data.retrieval) == (True, 0.25)


def test_a_mask_that_is_refused_is_done_without_unless_it_was_asked_for(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    probed: list[bool] = []

    def doctor(*_: Any, check_dilution: bool, **__: Any) -> list[Verdict]:
        probed.append(check_dilution)
        refused = Verdict(name="dilution", status="fail", detail="cannot be seen", cure="train without")
        return [Verdict(name="reach", status="pass", detail="seen"), *([refused] if check_dilution else [])]

    monkeypatch.setattr(skipwise.train, "doctor", doctor)
    with pytest.raises(MaskRefusedError, match="dilution: cannot be seen; train without"):
        run({**settings, "recipe": "diluted"})
    assert probed == [True]
    done = run(settings)
    assert probed == [True, True, False]
    assert done.finished
    assert RunConfig.from_yaml(done.folder / "run.yaml").recipe == "paper"
    assert any(message.startswith("recipe: paper, and not growing, as ") for message in caplog.messages)


@pytest.mark.usefixtures("sound_model")
@pytest.mark.parametrize(
    ("changes", "shown_at_most", "why"),
    [
        ({"data": {"retrieval": 0.0}, "window": 80, "target": 1024}, 16, "640"),
        (
            {"data": {"retrieval": 0.0}},
            0.01,
            "documents have the 128 tokens of a window that has grown",
        ),
    ],
)
def test_windows_that_cannot_grow_stay_short_unless_growth_was_asked_for(
    changes: dict[str, Any], shown_at_most: float, why: str, settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.setattr(data, "_SHOWN_AT_MOST", shown_at_most)
    done = run(settings, **changes)
    begun = RunConfig.from_yaml(done.folder / "run.yaml")
    assert (begun.recipe, begun.growth, begun.dilution) == ("diluted", [], True)
    (told,) = [message for message in caplog.messages if message.startswith("recipe: diluted, and not growing, as ")]
    assert why in told
    asked = {**changes, "recipe": "growing", "output": str(tmp_path / "asked")}
    if shown_at_most < 16:
        assert run(settings, **asked).finished, "few documents are the choice of who asks for it"
    else:
        with pytest.raises(RecipeRefusedError, match=why):
            run(settings, **asked)


@pytest.mark.usefixtures("sound_model")
def test_windows_too_short_for_an_exercise_do_without(
    settings: dict[str, Any], caplog: pytest.LogCaptureFixture, stop_after: Callable[[int], None]
) -> None:
    caplog.set_level("INFO")
    stop_after(2)
    assert not run(settings).finished
    assert any("without exercises, for which windows of 32 tokens are too" in each for each in caplog.messages)
    done = run(settings, resume=True)
    assert done.finished
    begun = RunConfig.from_yaml(done.folder / "run.yaml")
    assert (begun.recipe, begun.data.retrieval, len(begun.growth)) == ("growing", 0.0, 2)
    assert done.record["config"]["data"]["retrieval"] == 0.0


def test_exercises_that_were_asked_for_are_not_left_out(
    settings: dict[str, Any], caplog: pytest.LogCaptureFixture, sound_model: None
) -> None:
    with pytest.raises(ConfigError, match=r"'data\.retrieval' asks for exercises"):
        run(settings, data={"retrieval": 0.5})


@pytest.mark.parametrize(("text", "recipe"), [("recipe: growing", "growing"), ("recipe: auto", "paper"), ("", "paper")])
def test_a_run_goes_on_with_the_recipe_that_it_was_begun_with(text: str, recipe: str, tmp_path: Path) -> None:
    plain = RunConfig.from_mapping(SMALL | {"output": str(tmp_path)})
    assert as_begun(plain) is plain, "nothing has begun"
    (tmp_path / "run.yaml").write_text(f"model: some/model\ntarget: 32k\n{text}\n")
    assert as_begun(plain).recipe == recipe
    named = plain.with_recipe("diluted")
    assert as_begun(named).recipe == "diluted"


@pytest.mark.parametrize("name", ["paper", "growing", "diluted"])
def test_a_recipe_that_is_named_stays(name: str) -> None:
    plain = RunConfig.from_mapping({**SMALL, "recipe": name})
    assert settle_recipe(plain, MistralConfig(sliding_window=512)) is plain


def test_the_runs_own_settings_lie_over_it() -> None:
    found = settled(
        dilution=False, seed=3, data={"source": "docs", "join": True}, training={"max_steps": 7}, window="1k"
    )
    assert (found.recipe, found.dilution, found.seed, found.data.join, found.window) == (
        "growing",
        False,
        3,
        True,
        1024,
    )
    assert found.training == {"max_steps": 7}
    assert found.build_sampler() == FLAT
