"""An attention factor chosen after training: in the config of both eras, in the tables, and gone when extended anew."""

import json
import logging
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from skipwise.errors import CheckpointError, ConfigError
from skipwise.model import (
    load_model,
    read_config,
    rope_state,
    rotary_tables,
    save_attention_scale,
    save_model,
    with_rope,
    with_scaled_attention,
)
from skipwise.rope import INTERPOLATIONS, LongRoPE, YaRN, with_attention_scale, write_rope
from skipwise.window import Window

WINDOW = Window(train=64, original=64, target=256)
# The formulas of the papers, at 4 times 64 tokens.
FORMULA = {"yarn": 0.1 * math.log(4) + 1, "longrope": math.sqrt(1 + math.log(4) / math.log(64))}


@pytest.mark.parametrize("kind", ["yarn", "longrope"])
@pytest.mark.parametrize(
    "family", ["llama", "qwen3", "gptj", "gpt_neox", "stablelm", "gemma3", "mixtral", "deepseek_v3"]
)
def test_what_is_saved_is_what_transformers_rotates_by(
    family: str, kind: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    loaded = load_model(checkpoint(family), interpolation=INTERPOLATIONS[kind](), window=WINDOW)
    scaled = with_scaled_attention(loaded.model, 1.2)
    save_model(scaled, loaded.tokenizer, tmp_path / "scaled")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "scaled")
    tables, before = rotary_tables(plain), rotary_tables(loaded.model)
    changed = {
        path for path, table in tables.items() if table.attention_factor != pytest.approx(before[path].attention_factor)
    }
    assert changed == {path for path in tables if "sliding" not in path}
    for path, table in tables.items():
        assert (table.inv_freq == before[path].inv_freq).all()
        if path in changed:
            assert table.attention_factor == pytest.approx(1.2 * FORMULA[kind])
    ids = torch.arange(100)[None] % 90
    with torch.no_grad():
        ours, theirs, old = (model.eval()(input_ids=ids).logits for model in (scaled, plain, loaded.model))
    assert torch.equal(ours, theirs)
    assert not torch.allclose(ours, old, atol=1e-6)


@pytest.mark.parametrize("kind", ["yarn", "longrope"])
def test_readers_of_the_4_era_find_it_in_rope_scaling(
    kind: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    loaded = load_model(checkpoint("llama"), interpolation=INTERPOLATIONS[kind](), window=WINDOW)
    save_model(with_scaled_attention(loaded.model, 0.9), loaded.tokenizer, tmp_path / "scaled")
    config = json.loads((tmp_path / "scaled" / "config.json").read_text())
    del config["rope_parameters"]
    assert config["rope_scaling"]["attention_factor"] == pytest.approx(0.9 * FORMULA[kind])
    old: Any = AutoModelForCausalLM.from_config(LlamaConfig(**config))
    assert old.model.rotary_emb.attention_scaling == pytest.approx(0.9 * FORMULA[kind])


def test_a_scale_counts_from_the_trained_factor_however_often_it_is_written(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    trained = YaRN(attention_factor=1.5)
    loaded = load_model(checkpoint("llama"), interpolation=trained, window=WINDOW)
    twice = with_scaled_attention(with_scaled_attention(loaded.model, 1.2), 1.1)
    save_model(twice, loaded.tokenizer, tmp_path / "twice")
    again = load_model(tmp_path / "twice").model
    state = rope_state(again.config)
    assert (state.trained_factor, state.attention_factor) == (1.5, pytest.approx(1.65))
    assert state.attention_scale == pytest.approx(1.1)
    back = rope_state(with_scaled_attention(again, 1.0).config)
    assert (back.attention_factor, back.attention_scale) == (1.5, 1.0)


@pytest.mark.parametrize("interpolation", [YaRN(), YaRN(attention_factor=1.3), LongRoPE()])
def test_a_scale_of_one_changes_nothing_but_the_record(
    interpolation: Any, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    loaded = load_model(checkpoint("llama"), interpolation=interpolation, window=WINDOW)
    config = loaded.model.config.to_dict()
    with_attention_scale(config, 1.3)
    assert config == loaded.model.config.to_dict(), "the given one is left alone"
    scaled = with_scaled_attention(loaded.model, 1.0).config.to_dict()
    assert scaled.pop("original_attention_factor") == pytest.approx(rope_state(loaded.model.config).attention_factor)
    assert scaled == config


def test_extending_anew_begins_from_the_interpolations_own_factor_and_says_so(
    checkpoint: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loaded = load_model(checkpoint("llama"), interpolation=YaRN(), window=WINDOW)
    save_model(with_scaled_attention(loaded.model, 1.2), loaded.tokenizer, tmp_path / "scaled")
    longer = Window(train=64, original=64, target=512)
    with caplog.at_level(logging.WARNING, logger="skipwise"):
        model = load_model(tmp_path / "scaled", interpolation=YaRN(), window=longer).model
    own = 0.1 * math.log(8) + 1
    assert rotary_tables(model)["model.rotary_emb"].attention_factor == pytest.approx(own)
    assert rope_state(model.config).trained_factor is None
    assert "was calibrated to 1.366 for 256 tokens" in caplog.text
    assert "the interpolation's own, 1.208; calibrate again" in caplog.text
    caplog.clear()
    load_model(tmp_path / "scaled")
    load_model(checkpoint("llama"), interpolation=YaRN(), window=longer)
    assert not caplog.text
    # A factor that was asked for is written, once.
    kept = with_rope(load_model(tmp_path / "scaled").model, YaRN(attention_factor_scale=1.1), longer)
    assert rope_state(kept.config).attention_factor == pytest.approx(1.1 * own)


def test_a_folders_config_is_changed_in_place_and_nothing_else(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    save_model(*load_model(checkpoint("llama"), interpolation=YaRN(), window=WINDOW), folder)
    config_file = folder / "config.json"
    written = json.loads(config_file.read_text())
    config_file.write_text(json.dumps({**written, "our_own_entry": [1, 2], "dtype": "bfloat16"}))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    save_attention_scale(folder, read_config(folder), 1.2, keep=True)
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert after.pop("config.before-calibration.json") == before["config.json"]
    new, old = (json.loads(files.pop("config.json")) for files in (after, before))
    assert after == before
    differing = {name for name in {*new, *old} if new.get(name) != old.get(name)}
    assert differing == {"rope_parameters", "rope_scaling", "original_attention_factor"}
    assert new["original_attention_factor"] == pytest.approx(FORMULA["yarn"])
    for entry in (new["rope_parameters"], new["rope_scaling"]):
        assert entry["attention_factor"] == pytest.approx(1.2 * FORMULA["yarn"])
        # What vLLM and SGLang read: over the formula.
        assert entry["attn_factor"] == pytest.approx(1.2)

    save_attention_scale(folder, read_config(folder), 1.1, keep=True)
    kept = json.loads((folder / "config.before-calibration.json").read_text())
    assert "attention_factor" not in kept["rope_parameters"], "of before the first calibration"
    assert rope_state(AutoConfig.from_pretrained(folder)).attention_scale == pytest.approx(1.1)


def test_a_4_era_yarn_checkpoint_takes_one(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tmp_path / "old"
    shutil.copytree(checkpoint("llama"), folder)
    config = json.loads((folder / "config.json").read_text())
    del config["rope_parameters"]
    config |= {"rope_theta": 1e4, "max_position_embeddings": 256}
    config["rope_scaling"] = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    (folder / "config.json").write_text(json.dumps(config))
    save_attention_scale(folder, read_config(folder), 1.25)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    assert model.model.rotary_emb.attention_scaling == pytest.approx(1.25 * FORMULA["yarn"])


def test_refusals_are_one_line(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    base = load_model(checkpoint("llama")).model
    with pytest.raises(ConfigError, match=r"'none'.*yarn, longrope"):
        with_scaled_attention(base, 1.1)
    config = write_rope(base.config.to_dict(), YaRN(), WINDOW)
    for scale in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=str(scale)):
            with_attention_scale(config, scale)
    stretched = load_model(checkpoint("llama"), interpolation=YaRN(), window=WINDOW).model
    with pytest.raises(CheckpointError, match="nowhere"):
        save_attention_scale(tmp_path / "nowhere", stretched.config, 1.1)
