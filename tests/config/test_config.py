import pytest

from skipwise.config import RunConfig
from skipwise.config.reading import parse_yaml, read_settings
from skipwise.config.recipes import RECIPES
from skipwise.errors import ConfigError, PositionError
from skipwise.positions import PoSE
from skipwise.rope import YaRN
from skipwise.window import Window

SMALL = {"model": "some/model", "target": "32k"}


def test_the_recipe_of_the_paper():
    run = RunConfig.from_mapping({**SMALL, "recipe": "paper"})
    assert run.target == 32768
    assert run.build_sampler() == PoSE(chunks=2, text="uniform", skips="sequential")
    assert run.build_interpolation() == YaRN()
    assert run.tuning.kind == "full"
    window = run.resolve_window(4096)
    assert (window.train, window.original, window.target) == (2048, 4096, 32768)
    assert run.resolve_window(256).train == 256
    assert run.output_folder.as_posix() == "runs/model-32k"


def test_yaml_round_trip(tmp_path):
    run = RunConfig.from_mapping(
        {
            **SMALL,
            "window": "1k",
            "interpolation": {"kind": "yarn", "beta_fast": 16},
            "sampler": {"kind": "pose", "skips": "flat"},
            "data": {"source": ["a.jsonl", "b"], "min_tokens": "2k", "retrieval": 0.25},
            "tuning": {"kind": "lora", "rank": 8, "train_norms": True},
            "growth": [{"window": "2k", "share": 0.2}, {"window": "4k", "share": 0.1}],
            "dilution": True,
            "training": {"learning_rate": 1e-4, "report_to": "none"},
        }
    )
    (tmp_path / "run.yaml").write_text(run.to_yaml())
    assert RunConfig.from_yaml(tmp_path / "run.yaml") == run


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({**SMALL, "recipe": ["growing"]}, ["'recipe' is ['growing']", "paper"]),
        ({**SMALL, "sampler": {"kind": ["pose"]}}, ["sampler.kind is ['pose']", "randpos"]),
        ({**SMALL, "interpolation": {"kind": {"yarn": 1}}}, ["interpolation kind is {'yarn': 1}", "linear"]),
        ({"model": "m", "taget": "32k"}, ["'taget' is unknown", "'target'"]),
        ({**SMALL, "windwo": 5}, ["'windwo' is unknown", "'window'"]),
        ({**SMALL, "data": {"min_token": 5}}, ["'data.min_token' is unknown", "'min_tokens'"]),
        ({**SMALL, "tuning": {"kind": "lora", "rnk": 5}}, ["'tuning.rnk' is unknown", "'rank'"]),
        ({**SMALL, "tuning": {"kind": "lora", "rank": 0}}, ["'tuning.rank' is 0", "give 1 or more"]),
        ({**SMALL, "tuning": {"kind": "lora", "target_modules": [5]}}, ["'tuning.target_modules.0' is 5", "give text"]),
        ({**SMALL, "tuning": {"kind": "lore"}}, ["'tuning.kind' is 'lore'", "'lora'"]),
        ({**SMALL, "sampler": {"kind": "poes"}}, ["poes", "'pose'"]),
        ({**SMALL, "sampler": {"kind": "pose", "skip": "flat"}}, ["skip", "'skips'"]),
        ({**SMALL, "interpolation": "yarm"}, ["yarm", "'yarn'"]),
        ({"target": "32k"}, ["'model' is missing"]),
        ({"model": "x", "target": "many"}, ["many", "32k"]),
        ({"model": "x", "target": True}, ["target", "True"]),
        ({**SMALL, "data": {"held_out": 1.5}}, ["data.held_out", "1.5", "give 1 or less"]),
        ({**SMALL, "data": {"source": 5}}, ["'data.source' is 5; give text or a list: a file, a folder"]),
        ({**SMALL, "data": {"source": ["a", 5]}}, ["'data.source.1' is 5; give text: a file, a folder"]),
        ({**SMALL, "data": "docs"}, ["'data' is 'docs'; give settings"]),
        (
            {**SMALL, "data": {"source": [{"path": "a"}]}, "dtype": "float33"},
            ["'data.source.0' is {'path': 'a'}; give text", "; setting 'dtype' is 'float33'; did you mean 'float32'?"],
        ),
        ({**SMALL, "tuning": "lorra"}, ["'tuning.kind' is 'lorra'; did you mean 'lora'? give 'full', 'lora', 'qlora'"]),
        ({**SMALL, "validation": {"lengths": [1, None]}}, ["'validation.lengths.1' is None"]),
        ({**SMALL, "interpolation": {"beta_fast": "abc"}}, ["interpolation.beta_fast is 'abc'", "a number"]),
        ({**SMALL, "growth": {"window": 9, "shar": 0.5}}, ["'growth.0.shar' is unknown", "'share'"]),
        (
            {**SMALL, "growth": {"share": 0.5}},
            ["begins with a stage that changes nothing", "window, target"],
        ),
        ({**SMALL, "growth": [{"window": 9, "share": 0.1}, {"window": 99, "share": 0.5}]}, ["[0.1, 0.5]", "falling"]),
        ({**SMALL, "seed": "zero"}, ["'seed'", "zero"]),
    ],
)
def test_bad_settings_are_one_line_with_the_cure(settings, words):
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_mapping(settings)
    message = str(caught.value)
    assert "\n" not in message
    # As pydantic has it.
    assert not any(jargon in message for jargon in ("nput should", "nput tag", "valid string", "dictionary"))
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "cannot be read"),
        (b"model: [\n", "at line 2"),
        (b"words\n", "no settings"),
        (b"\xff\xfe\x00", "not YAML"),
    ],
)
def test_files_that_are_no_config(content: bytes | None, told: str, tmp_path):
    if content is not None:
        (tmp_path / "run.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=told):
        read_settings(tmp_path / "run.yaml")


def test_lengths_are_checked_against_the_model():
    run = RunConfig.from_mapping(SMALL)
    for original in (65536, 32768):
        with pytest.raises(ConfigError, match=f"already handles {original}: give a target above that"):
            run.resolve_window(original)
    with pytest.raises(PositionError):
        RunConfig.from_mapping({**SMALL, "window": "64k"}).resolve_window(4096)


def test_a_recipe_lies_under_the_settings_of_the_run() -> None:
    paper = RunConfig.from_mapping({**SMALL, "recipe": "paper"})
    assert paper == RunConfig.from_mapping(SMALL).model_copy(update={"recipe": "paper"})
    grown = RunConfig.from_mapping({**SMALL, "recipe": "growing", "sampler": {"skips": "sequential"}})
    assert grown.dilution
    assert grown.sampler == {"kind": "pose", "skips": "sequential", "text": "aligned", "start": "mixed"}
    assert RunConfig.from_mapping({**SMALL, "recipe": "growing", "sampler": "randpos"}).sampler == {"kind": "randpos"}
    with pytest.raises(ConfigError, match=r"setting 'recipe' is 'growin'; did you mean 'growing'\?"):
        RunConfig.from_mapping({**SMALL, "recipe": "growin"})


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_makes_a_run_that_its_yaml_gives_back(name: str) -> None:
    config = RunConfig.from_mapping({**SMALL, "recipe": name})
    assert RunConfig.from_mapping(parse_yaml(config.to_yaml())) == config


@pytest.mark.parametrize(("given", "tokens"), [("4x", 1024), ("1.5x", 384), ("100x", 4096), ("2k", 2048), (300, 300)])
def test_a_grown_window_is_tokens_or_times_the_training_window(given: str | int, tokens: int) -> None:
    config = RunConfig.from_mapping({**SMALL, "growth": {"window": given}})
    window = Window(train=256, original=256, target=4096)
    assert config.growth[0].lengths(window) == Window(train=tokens, original=256, target=4096)
