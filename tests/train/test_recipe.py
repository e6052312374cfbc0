"""What a run leaves open is chosen once, for reasons that are said and kept."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import run
from transformers import LlamaConfig, MistralConfig, PreTrainedConfig, Qwen2Config

from skipwise import cli
from skipwise.config import LoraTuning, RunConfig, recipes
from skipwise.config.reading import parse_yaml
from skipwise.config.recipes import Facts, LongDocuments, as_begun, resolve
from skipwise.doctor import Verdict
from skipwise.errors import DataError, UnsupportedModelError
from skipwise.positions import PoSE, RandPos
from skipwise.records.runs import Run
from skipwise.train.facts import model_facts
from skipwise.window import Window

SMALL = {"model": "some/model", "target": "32k"}
SHORT: dict[str, Any] = {"max_position_embeddings": 2048}
FLAT = PoSE(skips="flat", text="aligned", start="mixed")
WINDOW = Window(train=2048, original=2048, target=32768)


def resolved(base: PreTrainedConfig | None = None, own: Any = None, **settings: Any) -> RunConfig:
    given = RunConfig.from_mapping(SMALL | settings)
    return resolve(given, model_facts(given, base or LlamaConfig(), sampler=own)).config


def told(settings: dict[str, Any], **facts: Any) -> str:
    """Reasons and warnings of a run, a line each."""
    found = resolve(RunConfig.from_mapping(SMALL | settings), Facts(window=WINDOW, steps=100, step_windows=64, **facts))
    return "\n".join([*found.reasons, *(f"warning: {warning}" for warning in found.warnings)])


@pytest.mark.parametrize("base", [LlamaConfig(), MistralConfig(**SHORT, sliding_window=None), Qwen2Config(**SHORT)])
def test_attention_is_diluted_where_every_layer_takes_a_mask(base: PreTrainedConfig) -> None:
    found = resolved(base)
    assert (found.recipe, found.dilution, found.data.retrieval) == ("growing", True, 0.25)
    assert [(stage.window, stage.share) for stage in found.growth] == [("4x", 0.7), ("8x", 0.3)]
    assert found.build_sampler() == FLAT
    assert found == resolved(base, recipe="growing")


def test_it_is_the_papers_where_layers_are_local_unless_another_is_named() -> None:
    given, local = RunConfig.from_mapping(SMALL), MistralConfig(**SHORT, sliding_window=512)
    found = resolve(given, model_facts(given, local))
    assert (found.config.recipe, found.config.dilution, found.config.build_sampler()) == ("paper", False, PoSE())
    assert found.reasons == (
        "recipe: paper, without diluted attention, growth of its own and exercises: layers that attend to the last 512 "
        "tokens only take no other mask",
        "interpolation: yarn, as the model is not scaled yet",
    )
    for name in ("paper", "growing", "diluted"):
        assert resolved(local, recipe=name) == RunConfig.from_mapping(SMALL | {"recipe": name})


def test_documents_that_nobody_named_are_told() -> None:
    given, named = (RunConfig.from_mapping({**SMALL, **data}) for data in ({}, {"data": {"source": "stdlib"}}))
    facts = dataclasses.replace(model_facts(given, LlamaConfig()), long_documents=lambda tokens: LongDocuments(10_000))
    told = [[line for line in resolve(run, facts).reasons if line.startswith("data:")] for run in (given, named)]
    assert told == [["data: stdlib (Python's own source files), because none is given"], []]


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"sampler": "randpos"}, "this run has randpos"),
        ({"attention": "flash_attention_2"}, "flash_attention_2 takes no additive mask"),
        ({"parallel": {"context": 2}}, "context parallelism takes no additive mask"),
        ({"growth": {"window": "32k"}}, "growth is given"),
    ],
)
def test_it_is_the_papers_for_a_reason_where_no_mask_goes(settings: dict[str, Any], why: str) -> None:
    found = resolved(**settings)
    assert (found.recipe, found.dilution, found.data.retrieval) == ("paper", False, 0)
    assert found.model_copy(update={"recipe": "auto"}) == RunConfig.from_mapping(SMALL | settings)
    assert resolved(own=RandPos()).recipe == "paper", "and for a sampler of one's own"
    line = told(settings).split("\n")[0]
    assert line.startswith("recipe: paper, without diluted attention, growth of its own and exercises: ")
    assert why in line


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        ({"chunks": 3}, PoSE(chunks=3, skips="flat", text="aligned", start="mixed")),
        ({"skips": "simplex"}, PoSE(skips="simplex", text="aligned", start="mixed")),
        ("pose", FLAT),
    ],
)
def test_what_is_not_named_keeps_the_recipes_values(sampler: Any, expected: PoSE) -> None:
    found = resolved(sampler=sampler)
    assert (found.recipe, found.dilution, found.data.retrieval) == ("growing", True, 0.25)
    assert len(found.growth) == 2
    assert found.build_sampler() == expected
    names = "" if sampler == "pose" else next(iter(sampler))
    assert (f"sampler: that of the recipe growing, with {names} as given" in told({"sampler": sampler})) == bool(names)


@pytest.mark.parametrize("processes", [1, 2, 8])
@pytest.mark.parametrize("streaming", [False, True])
def test_windows_grow_where_documents_are_known(streaming: bool, processes: int) -> None:
    given = RunConfig.from_mapping(SMALL | {"data": {"source": "documents", "streaming": streaming}})
    found = resolve(given, model_facts(given, LlamaConfig(), processes=processes))
    assert found.config.recipe == ("diluted" if streaming else "growing")
    assert found.config.data.streaming == streaming


@pytest.mark.parametrize(
    ("documents", "recipe"),
    # Of 100 steps of 64 windows 40 have windows of four times the tokens, 30 of eight: 640 and 240 of them.
    [({8192: 40, 16384: 15}, "growing"), ({8192: 39, 16384: 15}, "diluted"), ({8192: 40, 16384: 14}, "diluted")],
)
def test_windows_grow_where_no_document_is_learnt_by_heart(documents: dict[int, int], recipe: str) -> None:
    facts: dict[str, Any] = {"long_documents": lambda tokens: LongDocuments(documents[tokens])}
    assert told({}, **facts).startswith(f"recipe: {recipe}, ")
    assert ("whose windows stay short" in told({}, **facts)) == (recipe == "diluted")
    named = told({"recipe": "growing"}, **facts)
    assert named.startswith("recipe: growing, as asked for")
    assert ("warning: growth: " in named) == (recipe == "diluted")


def test_growth_that_is_given_is_warned_of_and_stays() -> None:
    growth = {"window": "8x", "share": 0.5}
    said = told({"growth": growth}, long_documents=lambda tokens: LongDocuments(2))
    assert "warning: growth: 2 documents have the 16384 tokens of a window that has grown, and each would be" in said
    assert resolved(growth=growth).growth[0].window == "8x"
    assert resolved(growth=growth, recipe="diluted").dilution
    none = resolved(growth=[])
    assert (none.recipe, none.growth, none.dilution) == ("diluted", [], True)


def test_exercises_are_left_out_where_windows_are_too_short() -> None:
    assert "exercises: 25% of" in told({}, shortest_exercise=2048)
    assert "exercises: none, as windows have 2048 tokens and the shortest exercise takes 2049" in told(
        {}, shortest_exercise=2049
    )
    assert "exercises" not in told({"data": {"retrieval": 0.5}}, shortest_exercise=2049).split("recipe:")[0]


def test_what_was_asked_for_and_is_no_more_is_seen_by_a_run_that_goes_on() -> None:
    begun = RunConfig.from_mapping(SMALL | {"recipe": "paper", "sampler": {"kind": "pose", "skips": "flat"}})
    asked = RunConfig.from_mapping(SMALL | {"recipe": "paper", "sampler": {"kind": "pose"}})
    assert as_begun(asked, begun).sampler == asked.sampler, "which is refused, as it was begun with another"


@pytest.mark.parametrize(
    ("kind", "kept"),
    [("llama3", {"low_freq_factor": 0.5, "high_freq_factor": 2.0}), ("yarn", {"truncate": False}), ("linear", {})],
)
def test_a_scaled_model_is_scaled_by_the_same_kind_again_and_keeps_its_settings(kind: str, kept: dict) -> None:
    scaling = {"rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 2048}
    base = LlamaConfig(max_position_embeddings=8192, rope_parameters={"rope_type": kind, **scaling, **kept})
    given = RunConfig.from_mapping(SMALL)
    found = resolve(given, model_facts(given, base))
    assert found.config.interpolation.items() >= {"kind": kind, **kept}.items()
    assert "factor" not in found.config.interpolation
    assert f"interpolation: {kind}, as the model is scaled by it already" in found.reasons
    assert resolved(base, interpolation="ntk").interpolation == {"kind": "ntk"}, "who names one is not given another"


def test_the_yaml_of_a_run_without_recipe_resolves_as_the_run_does() -> None:
    plain = RunConfig.from_mapping(SMALL | {"tuning": "lora", "data": {"join": True}})
    again = RunConfig.from_mapping(parse_yaml(plain.to_yaml()))
    found = resolve(again, model_facts(again, LlamaConfig())).config
    assert found == resolve(plain, model_facts(plain, LlamaConfig())).config
    # What a run says of its documents leaves what the recipe says of them.
    assert (found.dilution, found.data.join, found.data.retrieval) == (True, True, 0.25)


def test_the_runs_own_settings_lie_over_it() -> None:
    found = resolved(
        dilution=False, seed=3, data={"source": "docs", "join": True}, training={"max_steps": 7}, window="1k"
    )
    assert (found.recipe, found.dilution, found.seed, found.data.join) == ("growing", False, 3, True)
    assert (found.window, found.training) == (1024, {"max_steps": 7})
    assert found.build_sampler() == FLAT
    given = RunConfig(model="some/model", target=32768, tuning=LoraTuning())
    assert resolve(given, model_facts(given, LlamaConfig())).config.tuning == LoraTuning()


@pytest.mark.parametrize(("text", "recipe"), [("recipe: growing", "growing"), ("recipe: auto", "paper"), ("", "paper")])
def test_a_run_goes_on_with_the_recipe_that_it_was_begun_with(text: str, recipe: str, tmp_path: Path) -> None:
    plain = RunConfig.from_mapping(SMALL | {"output": str(tmp_path)})
    (tmp_path / "run.yaml").write_text(f"model: some/model\ntarget: 32k\n{text}\noutput: {tmp_path}\n")
    begun = Run.open(tmp_path).config()
    assert begun is not None
    assert as_begun(plain, begun).recipe == recipe
    assert as_begun(plain, begun).dilution == (recipe == "growing")
    named = RunConfig.from_mapping(SMALL | {"recipe": "diluted"})
    assert as_begun(named, begun).recipe == "diluted", "which is refused, as it was begun with another"


def test_a_mask_that_is_refused_is_done_without_unless_it_was_asked_for(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    probed: list[bool] = []

    def doctor(*_: Any, check_dilution: bool, **__: Any) -> list[Verdict]:
        probed.append(check_dilution)
        refused = Verdict(name="dilution", status="fail", detail="cannot be seen", cure="train without")
        return [Verdict(name="reach", status="pass", detail="seen"), *([refused] if check_dilution else [])]

    monkeypatch.setattr("skipwise.train.preparation.doctor", doctor)
    with pytest.raises(UnsupportedModelError, match="dilution"):
        run({**settings, "recipe": "diluted"})
    done = run(settings)
    assert probed == [True, True]
    assert done.finished
    assert RunConfig.from_yaml(done.folder / "run.yaml").recipe == "paper"
    (line,) = [message for message in caplog.messages if message.startswith("recipe: paper, ")]
    assert "cannot be seen" in line
    assert line in done.record["reasons"]
    assert json.loads((done.folder / "begun.json").read_text())["sampler"] == repr(PoSE())


@pytest.mark.usefixtures("sound_model")
@pytest.mark.parametrize(
    ("changes", "shown_at_most", "why"),
    [
        ({"data": {"retrieval": 0.0}, "window": 80, "target": 1024}, 16, "640"),
        ({"data": {"retrieval": 0.0}}, 0.01, "documents have the 128 tokens of a window that has grown"),
    ],
)
def test_windows_that_cannot_grow_stay_short_unless_growth_was_asked_for(
    changes: dict[str, Any], shown_at_most: float, why: str, settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path,
) -> None:  # fmt: skip
    caplog.set_level("INFO")
    monkeypatch.setattr(recipes, "SHOWN_AT_MOST", shown_at_most)
    done = run(settings, **changes)
    begun = RunConfig.from_yaml(done.folder / "run.yaml")
    assert (begun.recipe, begun.growth, begun.dilution) == ("diluted", [], True)
    (line,) = [message for message in caplog.messages if message.startswith("recipe: diluted, ")]
    assert why in line
    assert line in json.loads((done.folder / "begun.json").read_text())["reasons"]
    asked = {**changes, "recipe": "growing", "output": str(tmp_path / "asked")}
    if shown_at_most < 16:
        assert run(settings, **asked).finished, "few documents are the choice of who asks for it"
    else:
        with pytest.raises(DataError, match=why):
            run(settings, **asked)


@pytest.mark.usefixtures("sound_model")
def test_growth_of_ones_own_is_trained_on_few_documents_with_a_warning(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(recipes, "SHOWN_AT_MOST", 0.01)
    done = run(settings, growth={"window": 64, "share": 0.5})
    assert done.finished
    assert (done.record["config"]["recipe"], done.record["widest_tokens"]) == ("paper", 64)
    (warning,) = [message for message in caplog.messages if message.startswith("growth: ")]
    assert "documents have the 64 tokens of a window that has grown, and each would be shown" in warning
    assert warning in done.record["reasons"]


@pytest.mark.usefixtures("sound_model")
def test_windows_too_short_for_an_exercise_do_without(
    settings: dict[str, Any], caplog: pytest.LogCaptureFixture, stop_after: Callable[[int], None]
) -> None:
    caplog.set_level("INFO")
    stop_after(2)
    assert not run(settings).finished
    assert any(each.startswith("exercises: none, as windows have 32 tokens") for each in caplog.messages)
    done = run(settings, resume=True)
    assert done.finished
    begun = RunConfig.from_yaml(done.folder / "run.yaml")
    assert (begun.recipe, begun.data.retrieval, len(begun.growth)) == ("growing", 0.0, 2)
    assert done.record["config"]["data"]["retrieval"] == 0.0
    assert any(reason.startswith("exercises: none, ") for reason in done.record["reasons"])


@pytest.mark.usefixtures("sound_model")
def test_a_run_of_the_version_before_goes_on(settings: dict[str, Any], stop_after: Callable[[int], None]) -> None:
    """Its begun.json has no reasons; and in run.yaml nothing is left open."""
    stop_after(2)
    folder = run(settings).folder
    begun = json.loads((folder / "begun.json").read_text())
    (folder / "begun.json").write_text(json.dumps({name: begun[name] for name in begun if name != "reasons"}))
    done = run(settings, resume=True)
    assert (done.finished, done.record["reasons"], done.record["config"]["recipe"]) == (True, [], "growing")


def scaled_by_two(checkpoint: Path, folder: Path) -> Path:
    """The checkpoint as if it had been extended before by linear interpolation."""
    shutil.copytree(checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    original = config["max_position_embeddings"]
    rope = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": original}
    config |= {"rope_parameters": rope, "max_position_embeddings": 2 * original}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.usefixtures("sound_model")
def test_extend_and_doctor_stretch_a_scaled_model_by_its_own_kind(
    settings: dict[str, Any], tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(scaled_by_two(tiny_checkpoint, tmp_path / "scaled"))
    done = run(settings, model=model, data={"retrieval": 0.0})
    assert done.record["config"]["interpolation"] == {"kind": "linear"}
    assert cli.main(["doctor", model, "--target", "256", "--window", "32"]) == 0
    assert "interpolation: linear, as the model is scaled by it already" in capsys.readouterr().err
