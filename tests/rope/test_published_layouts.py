"""The three most downloaded layouts of long-context configs, as transformers 4 wrote them, from look to extension.

Widths, layers and heads are small; all that is about positions is as it is published. What the tables should be is what
the transformers library computes for a config written by hand.
"""

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from rope_forms import library_table, write
from tiny_models import SHAPE
from tiny_runs import write_documents
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig

from skipwise import cli
from skipwise.config import RunConfig
from skipwise.errors import ConfigError
from skipwise.model import load_model, read_config, rope_state, rotary_tables, scaled_by
from skipwise.model.extend import extended_config
from skipwise.model.library import library_tables
from skipwise.plan.shape import model_shape
from skipwise.rope import NTK, Interpolation, read_rope
from skipwise.window import Window

from .test_rope_forms import assert_same, table

SMALL: dict[str, Any] = SHAPE | {"tie_word_embeddings": True, "torch_dtype": "float32", "use_cache": True}
# Phi-3.5's own lists are of 48 divisors; these run over 8 pairs from the same first to the same last values.
SHORT, LONG = [1.0, 1.02, 1.03, 1.03, 1.05, 1.6, 2.1, 2.8], [1.08, 1.11, 1.14, 1.32, 3.8, 20.5, 54.6, 64.4]
LLAMA_31 = SMALL | {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256, "rms_norm_eps": 1e-05,
    "max_position_embeddings": 131072, "rope_theta": 500000.0, "transformers_version": "4.43.0.dev0",
    "rope_scaling": {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
}  # fmt: skip
QWEN_25 = SMALL | {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": 152064, "rms_norm_eps": 1e-06,
    "max_position_embeddings": 32768, "rope_theta": 1000000.0, "transformers_version": "4.43.1",
    "max_window_layers": 2, "sliding_window": 131072, "use_sliding_window": False,
    "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"},
}  # fmt: skip
PHI_35 = SMALL | {
    "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "vocab_size": 32064, "rms_norm_eps": 1e-05,
    "max_position_embeddings": 131072, "original_max_position_embeddings": 4096, "rope_theta": 10000.0,
    "sliding_window": 262144, "transformers_version": "4.43.3",
    "rope_scaling": {"long_factor": LONG, "short_factor": SHORT, "type": "longrope"},
}  # fmt: skip
LONGER = [2 * divisor for divisor in LONG]

# By name: the config; the tokenizer's limit as published, and one that is too low; what an extension to 262144 tokens
# is asked for; and by hand, what it is to write.
LAYOUTS: dict[str, tuple[dict[str, Any], int, dict[str, Any], dict[str, Any]]] = {
    "Llama-3.1": (LLAMA_31, 131072, {}, {"rope_scaling": {**LLAMA_31["rope_scaling"], "factor": 16.0}}),
    "Qwen2.5 with YaRN": (QWEN_25, 131072, {}, {"rope_scaling": {**QWEN_25["rope_scaling"], "factor": 8.0}}),
    "Phi-3.5": (
        PHI_35,
        131072,
        {"kind": "longrope", "long_factor": LONGER, "short_factor": SHORT},
        {"rope_scaling": {**PHI_35["rope_scaling"], "long_factor": LONGER}},
    ),
}
WINDOWS = {"Llama-3.1": (8192, 131072), "Qwen2.5 with YaRN": (32768, 131072), "Phi-3.5": (4096, 131072)}
TARGET = 262144


def checkpoint(folder: Path, tiny_checkpoint: Path, config: dict[str, Any], limit: int) -> Path:
    """A random model of this config, whose config.json is this text and not what the library makes of it."""
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**copy.deepcopy(config)))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_checkpoint).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": limit}))
    return folder


@pytest.mark.parametrize("name", LAYOUTS)
def test_doctor_and_plan_take_a_published_layout_as_it_is(
    name: str, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, limit, _, _ = LAYOUTS[name]
    folder = checkpoint(tmp_path / "model", tiny_checkpoint, config, limit)
    expected = library_table(folder, 131072)
    assert cli.main(["doctor", str(folder)]) == 0
    assert "fail" not in capsys.readouterr().out
    for state in (read_rope(config), rope_state(read_config(folder)), rope_state(model_shape(str(folder)).config)):
        assert (state.original, state.maximum) == WINDOWS[name]
        assert_same(table(state), expected)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_mended_layout_has_the_tables_it_had(name: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model", tiny_checkpoint, LAYOUTS[name][0], WINDOWS[name][0])
    expected = library_table(folder, 131072)
    assert cli.main(["doctor", str(folder), "--fix", "--out", str(tmp_path / "fixed")]) == 0
    assert_same(library_table(tmp_path / "fixed", 131072), expected)
    assert json.loads((tmp_path / "fixed" / "tokenizer_config.json").read_text())["model_max_length"] == 131072
    written = json.loads((tmp_path / "fixed" / "config.json").read_text())
    assert written["rope_scaling"] is not None
    assert written["max_position_embeddings"] == 131072
    before, after = (AutoModelForCausalLM.from_pretrained(where) for where in (folder, tmp_path / "fixed"))
    ids = torch.arange(8)[None]
    assert torch.equal(before(ids).logits, after(ids).logits)


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_published_layout_is_planned_and_extended(name: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    config, limit, asked, by_hand = LAYOUTS[name]
    folder, output = checkpoint(tmp_path / "model", tiny_checkpoint, config, limit), tmp_path / "extended"
    by_hand = {**config, **by_hand, "max_position_embeddings": TARGET}
    expected = library_table(write(tmp_path / "by-hand", by_hand), TARGET)
    (tmp_path / "texts").mkdir()
    settings = RunConfig.from_mapping(
        {
            "model": str(folder), "target": TARGET, "window": 64, "output": str(output), "recipe": "paper",
            "data": {"source": str(write_documents(tmp_path / "texts")), "held_out": 0},
            "training": {"max_steps": 2, "use_cpu": True, "gradient_accumulation_steps": 1, "disable_tqdm": True},
            "interpolation": asked or scaled_by(model_shape(str(folder)).config, TARGET) or {"kind": "yarn"},
        }
    )  # fmt: skip
    (tmp_path / "run.yaml").write_text(settings.to_yaml())
    if name.startswith("Qwen"):  # Half a minute each.
        planned = tmp_path / "planned.yaml"
        assert cli.main(["plan", str(folder), "--target", str(TARGET), "--write-config", str(planned)]) == 0
        assert yaml.safe_load(planned.read_text())["interpolation"] == settings.interpolation
    assert cli.main(["doctor", "--config", str(tmp_path / "run.yaml")]) == 0
    assert cli.main(["extend", "--config", str(tmp_path / "run.yaml")]) == 0
    assert_same(library_table(output, TARGET), expected)
    assert cli.main(["doctor", str(output), "--base", str(folder)]) == 0
    assert rope_state(read_config(output)).original == WINDOWS[name][0]


def again(config: PreTrainedConfig, target: int) -> dict[str, Any]:
    found = scaled_by(config, target)
    assert found is not None
    return found


def test_searched_divisors_are_stretched_where_a_plan_needs_some(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", PHI_35)
    settings = again(model_shape(str(folder)).config, TARGET)
    assert settings["short_factor"] == SHORT
    # YaRN by hand, twice the window: pairs of 16 dimensions that turn 32 times and once over the original 4096 tokens.
    turns = np.array([16 * math.log(4096 / (each * 2 * math.pi)) / (2 * math.log(10_000.0)) for each in (32, 1)])
    ramp = np.clip((np.arange(8) - math.floor(turns[0])) / (math.ceil(turns[1]) - math.floor(turns[0])), 0, 1)
    np.testing.assert_allclose(settings["long_factor"], np.array(LONG) / ((1 - ramp) + ramp / 2))
    assert again(model_shape(str(folder)).config, 131072)["long_factor"] == pytest.approx(LONG)


def test_a_window_beyond_the_maximum_that_was_left_is_measured(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Qwen's own advice for long inputs leaves the maximum at 32768; here at 64, with four times that to be had."""
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    small = {**QWEN_25, "vocab_size": 256, "max_position_embeddings": 64, "rope_scaling": scaling}
    folder = checkpoint(tmp_path / "model", tiny_checkpoint, small, 64)
    texts = write_documents(tmp_path)
    measure = ["eval", str(folder), "--task", "perplexity", "--documents", str(texts), "--held-out-share", "1"]
    assert cli.main([*measure, "--length", "256"]) == 0
    assert cli.main([*measure, "--length", "512"]) == cli.BAD_INPUT
    assert cli.main(["doctor", str(folder), "--fix", "--out", str(tmp_path / "fixed")]) == 0
    written = json.loads((tmp_path / "fixed" / "config.json").read_text())
    assert written["max_position_embeddings"] == 256
    assert_same(library_table(tmp_path / "fixed", 256), library_table(folder, 256))


# Qwen3's maximum is the window of pre-training and 8192 for the answer.
QWEN_3 = {**QWEN_25, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": 151936, "head_dim": 16}
QWEN_3 |= {"max_position_embeddings": 40960, "rope_scaling": None}


def test_the_original_window_can_be_told(tmp_path: Path) -> None:
    folder = str(write(tmp_path / "model", QWEN_3))
    assert rope_state(read_config(folder)).original == 40960
    told = rope_state(read_config(folder, original=32768))
    assert (told.original, told.maximum, told.kind, told.ambiguity) == (32768, 40960, "none", None)
    shape = model_shape(folder, original=32768)
    assert (shape.original_tokens, shape.told_original) == (32768, 32768)
    for wrong in (1, 65536):
        with pytest.raises(ConfigError, match=str(wrong)):
            read_config(folder, original=wrong)


def test_a_told_original_window_is_recorded_and_stretched_from(tiny_checkpoint: Path, tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", tiny_checkpoint, {**QWEN_3, "vocab_size": 256}, 40960)
    settings = RunConfig.from_mapping({"model": str(base), "target": "128k", "original": "32k"})
    assert "original: 32768" in settings.to_yaml()
    assert cli.main(["doctor", str(base), "--target", "128k", "--original", "32k", "--window", "64"]) == 0
    window = settings.resolve_window(rope_state(read_config(base, original=settings.original)).original)
    how = {"interpolation": settings.build_interpolation(), "window": window, "original": settings.original}
    extended = load_model(base, **how).model
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    by_hand = {**QWEN_3, "max_position_embeddings": 131072, "rope_scaling": scaling}
    expected = library_table(write(tmp_path / "by-hand", by_hand), 131072)
    (found,) = rotary_tables(extended).values()
    assert_same(found, expected)


def test_a_switch_that_kept_qwen3s_maximum_goes_on_by_its_own_factor(tmp_path: Path) -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    folder = str(write(tmp_path / "model", {**QWEN_3, "rope_scaling": scaling}))
    assert rope_state(read_config(folder)).maximum == 131072
    assert again(model_shape(folder).config, 131072).get("factor", 4.0) == 4.0
    assert again(model_shape(folder).config, 262144).get("factor", 8.0) == 8.0


def test_a_linear_scaling_is_told_its_original_window(tmp_path: Path) -> None:
    """As Vicuna's 16k models are published: 4096 is the base's window and 16384 what was made of it."""
    vicuna = {**SMALL, "model_type": "llama", "vocab_size": 32000, "max_position_embeddings": 4096}
    folder = str(write(tmp_path / "model", vicuna | {"rope_scaling": {"type": "linear", "factor": 4.0}}))
    assert "original" in str(rope_state(read_config(folder)).ambiguity)
    told = rope_state(read_config(folder, original=4096))
    assert (told.original, told.maximum, told.ambiguity) == (4096, 16384, None)
    assert_same(table(told), library_table(Path(folder), 4096))


def stretched(folder: Path, interpolation: Interpolation) -> PreTrainedConfig:
    return extended_config(read_config(folder), interpolation, Window(train=64, original=256, target=1024))


def test_bases_of_single_layers_are_stretched_alike_or_refused(tmp_path: Path) -> None:
    granite = {
        **SMALL,
        "model_type": "granite_swa",
        "vocab_size": 32,
        "max_position_embeddings": 256,
        "bos_token_id": 1,
    }
    granite |= {"num_hidden_layers": 4, "rope_theta": 10_000.0}
    shared = write(tmp_path / "shared", granite | {"layer_rope_theta": [0, 500_000, 0, 500_000]})
    tables = library_tables(stretched(shared, NTK()), 1024)
    assert len(tables) > 1
    # Bloc97's formula by hand: 16 dimensions, four times the window.
    base = 500_000.0 * 4 ** (16 / 14)
    for found in tables.values():
        np.testing.assert_allclose(found.inv_freq, base ** (-np.arange(8) / 8), rtol=2e-6)
    several = write(tmp_path / "several", granite | {"layer_rope_theta": [0, 10_000, 0, 500_000]})
    with pytest.raises(ConfigError, match="layer_rope_theta"):
        stretched(several, NTK())


def test_what_the_library_does_not_apply_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dual = {"chunk_size": 262144, "local_size": 8192, "original_max_position_embeddings": 262144}
    folder = write(tmp_path / "model", {**QWEN_25, "rope_scaling": None, "dual_chunk_attention_config": dual})
    assert cli.main(["doctor", str(folder)]) == 0
    assert "dual_chunk_attention_config" in capsys.readouterr().out


def test_a_lost_extension_is_suspected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lost = {**LLAMA_31, "vocab_size": 32000, "rope_theta": 10_000.0, "rope_scaling": None}
    folder = write(tmp_path / "model", lost | {"max_position_embeddings": 4096})
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 32768}')
    assert cli.main(["doctor", str(folder)]) == 0
    assert "scaling was lost" in capsys.readouterr().out
