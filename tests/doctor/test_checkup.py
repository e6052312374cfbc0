"""Faults planted in a checkpoint's files are found, and fixed in a copy that has none left."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from refusals import lines_of
from safetensors.torch import load_file

from skipwise import cli
from skipwise.doctor.checkup import check_up, write_fixed
from skipwise.errors import CheckpointError, ConfigError
from skipwise.model import load_model, save_model
from skipwise.rope import INTERPOLATIONS, read_rope, with_attention_scale
from skipwise.window import Window

WINDOW = Window(train=64, original=64, target=512)


@pytest.fixture(scope="module")
def sound(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of ours, extended from 64 to 512 tokens by YaRN."""
    folder = tmp_path_factory.mktemp("sound") / "model"
    loaded = load_model(tiny_checkpoint, interpolation=INTERPOLATIONS["yarn"](), window=WINDOW)
    save_model(loaded.model, loaded.tokenizer, folder)
    return folder


@pytest.fixture
def changed(sound: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of it whose files a function has changed; the weights are the same file."""

    def make(change: Callable[[dict[str, Any], dict[str, Any]], None]) -> Path:
        folder = tmp_path / "checkpoint"
        folder.mkdir()
        for file in sound.iterdir():
            (folder / file.name).hardlink_to(file)
        content = {}
        for name in ("config.json", "tokenizer_config.json"):
            content[name] = json.loads((folder / name).read_text())
        change(content["config.json"], content["tokenizer_config.json"])
        for name, value in content.items():
            (folder / name).unlink()
            (folder / name).write_text(json.dumps(value))
        return folder

    return make


def both(config: dict[str, Any], **entries: Any) -> None:
    """Changes parameters in the entries of both eras."""
    for name in ("rope_parameters", "rope_scaling"):
        config[name] |= entries


def change(config: dict[str, Any] | None = None, *, limit: int | None = None, **entries: Any) -> Callable[..., None]:
    """Changes settings of the config, parameters in the entries of both eras, and the tokenizer's limit."""

    def apply(content: dict[str, Any], tokenizer: dict[str, Any]) -> None:
        both(content, **entries)
        content |= config or {}
        tokenizer |= {} if limit is None else {"model_max_length": limit}

    return apply


def failed(folder: Path, base: dict[str, Any] | None = None) -> list[str]:
    return [verdict.name for verdict in check_up(folder, base).verdicts if verdict.status == "fail"]


def lost_base(**family: Any) -> Callable[..., None]:
    """A checkpoint of a family whose published base is known."""
    lengths = {"max_position_embeddings": 65536, "original_max_position_embeddings": 8192}
    return change({**family, **lengths, "original_rope_theta": 10_000.0}, original_max_position_embeddings=8192)


def test_a_sound_checkpoint_has_no_fault(sound: Path, tiny_checkpoint: Path) -> None:
    assert failed(sound) == []
    base = json.loads((tiny_checkpoint / "config.json").read_text())
    assert failed(sound, base) == []
    assert cli.main(["doctor", str(sound), "--base", str(tiny_checkpoint)]) == 0


def disagreeing_eras(config: dict[str, Any], _tokenizer: dict[str, Any]) -> None:
    config["rope_scaling"]["factor"] = 4.0


APPLIED_TWICE = change(factor=64.0)
YARN_FACTOR = 0.1 * math.log(8) + 1
# A fault; the check that finds it; and what a reader finds in the fixed copy.
FAULTS: dict[str, tuple[Callable[..., None], str, dict[str, Any]]] = {
    "float maximum": (change({"max_position_embeddings": 512.0}), "lengths", {"maximum": 512}),
    "float original": (change(original_max_position_embeddings=64.0), "lengths", {"original": 64}),
    "two bases": (
        change({"rope_theta": 10_000.0, "original_rope_theta": 500_000.0}, rope_theta=500_000.0),
        "base",
        {"theta": 500_000.0},
    ),
    "base fallen back": (change({"original_rope_theta": 500_000.0}), "base", {"theta": 500_000.0}),
    "lost base of Llama 3": (lost_base(vocab_size=128256), "base", {"theta": 500_000.0}),
    "lost base of Qwen3": (lost_base(model_type="qwen3"), "base", {"theta": 1e6}),
    "disagreeing eras": (disagreeing_eras, "eras", {"factor": 8.0}),
    "applied twice": (APPLIED_TWICE, "doubled", {"factor": 8.0}),
    "base raised too": (
        change({"rope_theta": 80_000.0}, rope_theta=80_000.0),
        "doubled",
        {"theta": 10_000.0, "kind": "yarn"},
    ),
    "factor of another": (change(attention_factor=0.1 * math.log(4) + 1), "factor", {"attention_factor": YARN_FACTOR}),
    "two factors": (
        change({"original_attention_factor": YARN_FACTOR}, attention_factor=1.4, attn_factor=1.5),
        "factor",
        {"attention_factor": 1.4},
    ),
    "short tokenizer": (change(limit=64), "tokenizer", {}),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found_and_mended_in_a_copy(
    name: str, changed: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fault, check, right = FAULTS[name]
    folder = changed(fault)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert check in failed(folder)
    assert cli.main(["doctor", str(folder)]) == cli.NEGATIVE
    assert f"fail  {check}" in capsys.readouterr().out

    assert cli.main(["doctor", str(folder), "--fix", "--out", str(tmp_path / "fixed")]) == 0
    fixed = tmp_path / "fixed"
    assert f"a fixed copy is in {fixed}" in capsys.readouterr().out
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert failed(fixed) == []
    assert (fixed / "model.safetensors").samefile(folder / "model.safetensors")
    written = json.loads((fixed / "config.json").read_text())
    state = read_rope(written)
    assert {key: getattr(state, key) for key in right} == pytest.approx(right)
    old = {key: value for key, value in written.items() if key != "rope_parameters"}
    assert read_rope(old) == state
    if check == "tokenizer":
        assert json.loads((fixed / "tokenizer_config.json").read_text())["model_max_length"] == 512


def test_a_mended_copy_loads_as_the_model_it_was(changed: Callable[..., Path], sound: Path, tmp_path: Path) -> None:
    folder = changed(APPLIED_TWICE)
    write_fixed(folder, check_up(folder), tmp_path / "fixed")
    assert read_rope(load_model(tmp_path / "fixed").model.config.to_dict()) == read_rope(
        load_model(sound).model.config.to_dict()
    )
    assert load_file(tmp_path / "fixed" / "model.safetensors").keys() == load_file(sound / "model.safetensors").keys()


# The extended window taken for the original one: written over it, or by a second run, 64 to 128 and then 128 to 512.
WRITTEN_OVER, EXTENDED_AGAIN = (
    change({"original_max_position_embeddings": n}, original_max_position_embeddings=n, **factor)  # pyright: ignore
    for n, factor in ((512, {}), (128, {"factor": 4.0}))
)


@pytest.mark.parametrize("fault", [WRITTEN_OVER, EXTENDED_AGAIN])
def test_a_wrong_original_window_is_known_from_the_base(
    fault: Callable[..., None], changed: Callable[..., Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    folder, out = changed(fault), tmp_path / "fixed"
    arguments = ["doctor", str(folder), "--base", str(tiny_checkpoint), "--fix", "--out", str(out)]
    assert cli.main(arguments) == 0
    state = read_rope(json.loads((out / "config.json").read_text()))
    assert (state.original, state.maximum, state.factor) == (64, 512, 8.0)


def test_what_only_the_base_can_tell_is_not_guessed(
    changed: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = changed(WRITTEN_OVER)
    assert cli.main(["doctor", str(folder), "--fix", "--out", str(tmp_path / "fixed")]) == cli.BAD_INPUT
    assert "--base" in capsys.readouterr().err
    assert not (tmp_path / "fixed").exists()


def test_a_lost_base_without_a_trace_needs_the_base(changed: Callable[..., Path], tmp_path: Path) -> None:
    def lost(config: dict[str, Any], _tokenizer: dict[str, Any]) -> None:
        config["model_type"] = "olmo2"
        config.pop("original_rope_theta")
        for holder in (config, config["rope_parameters"], config["rope_scaling"]):
            holder.pop("rope_theta")

    folder = changed(lost)
    assert "base" in failed(folder)
    with pytest.raises(ConfigError, match="--base"):
        write_fixed(folder, check_up(folder), tmp_path / "fixed")
    base = {"model_type": "olmo2", "rope_theta": 5e5, "max_position_embeddings": 64}
    base |= {"hidden_size": 32, "num_attention_heads": 4}
    write_fixed(folder, check_up(folder, base), tmp_path / "fixed")
    assert read_rope(json.loads((tmp_path / "fixed" / "config.json").read_text())).theta == 5e5


@pytest.mark.parametrize("kind", sorted({*INTERPOLATIONS} - {"none"}))
def test_what_we_write_has_no_fault(kind: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    loaded = load_model(tiny_checkpoint, interpolation=INTERPOLATIONS[kind](), window=WINDOW)
    save_model(loaded.model, loaded.tokenizer, tmp_path / "model")
    assert failed(tmp_path / "model") == []


def test_a_calibrated_factor_is_no_fault(changed: Callable[..., Path]) -> None:
    def calibrate(config: dict[str, Any], _tokenizer: dict[str, Any]) -> None:
        scaled = with_attention_scale(config, 1.15)
        config.clear()
        config.update(scaled)

    assert failed(changed(calibrate)) == []


QWEN2 = {"model_type": "qwen2", "rope_theta": 10_000.0, "max_position_embeddings": 131072}
QWEN3 = {"model_type": "qwen3", "rope_theta": 10_000.0, "max_position_embeddings": 262144}
MISTRAL = {"model_type": "mistral", "vocab_size": 131072, "rope_theta": 10_000.0, "max_position_embeddings": 32768}


@pytest.mark.parametrize(("family", "status"), [(QWEN2, "note"), (QWEN3, "fail"), (MISTRAL, "fail")])
def test_a_base_that_the_family_does_not_tell_is_not_guessed(
    family: dict[str, Any], status: str, changed: Callable[..., Path], tmp_path: Path
) -> None:
    """Published models have 10,000 and 1e6, 1e6 and 5e6, 1e6 and 1e8 in such configs."""

    def publish(config: dict[str, Any], tokenizer: dict[str, Any]) -> None:
        for name in ("original_max_position_embeddings", "original_rope_theta", "rope_parameters", "rope_scaling"):
            config.pop(name)
        config |= family
        tokenizer.pop("model_max_length")

    folder = changed(publish)
    found = check_up(folder)
    assert {verdict.name: verdict.status for verdict in found.verdicts if verdict.status != "pass"} == {"base": status}
    assert json.loads((folder / "config.json").read_text()) == found.config
    if status == "fail":
        assert found.unfixed == ["base"]
        with pytest.raises(ConfigError, match="--base"):
            write_fixed(folder, found, tmp_path / "fixed")
    base = {"hidden_size": 32, "num_attention_heads": 4, **family, "rope_theta": 1e8}
    fixed = write_fixed(folder, check_up(folder, base), tmp_path / "fixed")
    assert read_rope(json.loads((fixed / "config.json").read_text())).theta == 1e8


def test_a_maximum_that_was_never_raised_needs_the_base_to_be_told_from_a_lost_original(
    changed: Callable[..., Path], tiny_checkpoint: Path
) -> None:
    def switched_on(config: dict[str, Any], tokenizer: dict[str, Any]) -> None:
        config["max_position_embeddings"] = tokenizer["model_max_length"] = 64

    folder = changed(switched_on)
    assert check_up(folder).unfixed == ["original"]
    found = check_up(folder, json.loads((tiny_checkpoint / "config.json").read_text()))
    assert [(each.name, each.status) for each in found.verdicts if each.status != "pass"] == [
        ("maximum", "note"),
        ("tokenizer", "note"),
    ]
    assert found.tokenizer is not None
    assert found.config["max_position_embeddings"] == found.tokenizer["model_max_length"] == 512


@pytest.mark.parametrize(
    ("odd", "check"),
    [(change(limit=131072), "tokenizer"), (change(attention_factor=100.0), "factor")],
    ids=["tokenizer takes more than the model", "attention factor beyond all measure"],
)
def test_what_may_be_meant_is_only_noted(odd: Callable[..., None], check: str, changed: Callable[..., Path]) -> None:
    found = check_up(changed(odd))
    assert [(each.name, each.status) for each in found.verdicts if each.status != "pass"] == [(check, "note")]


def test_eras_that_disagree_are_mended_without_the_local_layers(changed: Callable[..., Path], tmp_path: Path) -> None:
    local = {"rope_type": "default", "rope_theta": 12_000.0}

    def by_layer(config: dict[str, Any], tokenizer: dict[str, Any]) -> None:
        disagreeing_eras(config, tokenizer)
        config["model_type"], config["rope_local_base_freq"] = "gemma3_text", 12_000.0
        config["rope_parameters"] = {"full_attention": config["rope_parameters"], "sliding_attention": local}

    folder = changed(by_layer)
    base = {**json.loads((folder / "config.json").read_text()), "rope_scaling": None}
    assert failed(folder, base) == ["eras"]
    fixed = write_fixed(folder, check_up(folder, base), tmp_path / "fixed")
    written = json.loads((fixed / "config.json").read_text())
    assert written["rope_parameters"]["sliding_attention"] == local
    assert (read_rope(written).factor, written["rope_scaling"]["factor"]) == (8.0, 8.0)


def test_folders_of_a_checkpoint_are_in_its_copy(changed: Callable[..., Path], tmp_path: Path) -> None:
    folder = changed(APPLIED_TWICE)
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    for inside in (folder / "fixed", folder / "adapter" / "fixed"):
        with pytest.raises(ConfigError, match=str(inside)):
            write_fixed(folder, check_up(folder), inside)
    fixed = write_fixed(folder, check_up(folder), tmp_path / "fixed")
    assert (fixed / "adapter" / "adapter_config.json").samefile(folder / "adapter" / "adapter_config.json")


def test_a_sound_checkpoint_is_not_copied_and_one_here_gets_a_name(
    sound: Path,
    changed: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["doctor", str(sound), "--fix", "--out", str(tmp_path / "copy")]) == 0
    assert "nothing to fix" in capsys.readouterr().out
    assert not (tmp_path / "copy").exists()
    monkeypatch.chdir(changed(APPLIED_TWICE))
    assert cli.main(["doctor", ".", "--fix", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"fixed": str(tmp_path / "checkpoint-fixed")}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rope_scaling", "yarn"),
        ("rope_parameters", ["yarn"]),
        ("max_position_embeddings", "long"),
        ("max_position_embeddings", True),
        ("original_max_position_embeddings", 0),
        ("rope_theta", "1e6"),
        ("rope_scaling", {"type": "yarn", "factor": "8"}),
        ("rope_scaling", {"type": "yarn", "factor": -1}),
        ("rope_scaling", {"type": "yarn", "attention_factor": [1.2]}),
    ],
)
def test_what_is_no_number_gets_one_line(
    name: str, value: Any, changed: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = changed(lambda config, _tokenizer: config.update({name: value}))
    assert cli.main(["doctor", str(folder)]) == cli.BAD_INPUT
    message = capsys.readouterr().err
    assert len(lines_of(message)) == 1
    assert name in message or next(iter({*value} - {"type"})) in message


def test_files_that_are_none_get_one_line(
    changed: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = changed(lambda config, _tokenizer: config.pop("max_position_embeddings"))
    with pytest.raises(CheckpointError, match="max_position_embeddings"):
        check_up(folder)
    (folder / "config.json").write_text("no json")
    assert cli.main(["doctor", str(folder)]) == cli.BAD_INPUT
    assert cli.main(["doctor", str(tmp_path), "--fix"]) == cli.BAD_INPUT
    assert cli.main(["doctor", str(folder), "--out", "fixed"]) == cli.BAD_INPUT
    assert len(lines_of(capsys.readouterr().err)) == 3
