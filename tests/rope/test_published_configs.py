"""Configs as published models have them, where one number is easily taken for another: none is judged wrongly.

All that is about positions is as it is published; widths, layers and heads are small. What the tables should be is what
the transformers library computes for the config as it is.
"""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from rope_forms import library_table, write
from tiny_models import SHAPE

from skipwise.doctor.checkup import check_up, write_fixed
from skipwise.errors import CheckpointError, UnsupportedModelError
from skipwise.model import read_config, rope_state
from skipwise.rope import read_rope

from .test_rope_forms import assert_same, table

SMALL: dict[str, Any] = SHAPE | {"head_dim": 16, "vocab_size": 32000}
LLAMA, MISTRAL = SMALL | {"model_type": "llama"}, SMALL | {"model_type": "mistral", "rope_theta": 10000.0}
KIMI = SMALL | {
    "model_type": "deepseek_v3", "kv_lora_rank": 16, "q_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16,
    "v_head_dim": 16, "rope_theta": 50000.0, "max_position_embeddings": 131072, "head_dim": 16,
    "rope_scaling": {
        "beta_fast": 1.0, "beta_slow": 1.0, "factor": 32.0, "mscale": 1.0, "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096, "type": "yarn",
    },
}  # fmt: skip
LLAMA_3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
LLAMA_4 = {"rope_type": "llama3", **LLAMA_3, "factor": 16.0, "high_freq_factor": 1.0}
# The window of 131072 tokens, the heads and the base are left out.
GEMMA_3 = {
    "model_type": "gemma3",
    "text_config": {
        "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 6,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
    },
}  # fmt: skip

YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
LISTS = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "original_max_position_embeddings": 4096}

# By name: the config, and the window that the model handles, in tokens.
HEALTHY: dict[str, tuple[dict[str, Any], int]] = {
    "Yarn-Mistral-7b-128k": (
        MISTRAL | {
            "max_position_embeddings": 32768, "max_sequence_length": 131072, "sliding_window": 131072,
            "rope_scaling": {
                "type": "yarn", "factor": 16.0, "original_max_position_embeddings": 8192, "finetuned": True,
            },
        },
        131072,
    ),
    "vicuna-7b-v1.5-16k": (
        LLAMA | {
            "max_position_embeddings": 4096, "max_sequence_length": 16384,
            "rope_scaling": {"factor": 4.0, "type": "linear"},
        },
        16384,
    ),
    "LLaMA-2-7B-32K": (
        LLAMA | {"max_position_embeddings": 32768, "rope_scaling": {"factor": 8.0, "type": "linear"}}, 32768,
    ),
    "deepseek-coder-6.7b": (
        LLAMA | {
            "vocab_size": 32256, "max_position_embeddings": 16384, "rope_theta": 100000,
            "rope_scaling": {"factor": 4.0, "type": "linear"},
        },
        16384,
    ),
    "gemma-3-4b": (GEMMA_3, 131072),
    "yarn with a null factor": (LLAMA | {
        "max_position_embeddings": 16384, "rope_theta": 1e6, "rope_scaling": YARN | {"factor": None},
    }, 16384),
    "Kimi-K2": (KIMI, 131072),
    "Llama-3.2": (LLAMA | {
        "vocab_size": 128256, "max_position_embeddings": 131072, "rope_theta": 500000.0,
        "rope_scaling": {"rope_type": "llama3", **LLAMA_3, "factor": 32.0},
    }, 131072),
    "factors as Llama 4's": (LLAMA | {
        "max_position_embeddings": 131072, "rope_theta": 500000.0, "rope_scaling": LLAMA_4,
    }, 131072),
}  # fmt: skip


@pytest.mark.parametrize("name", HEALTHY)
def test_a_published_config_is_healthy_and_keeps_its_tables(name: str, tmp_path: Path) -> None:
    config, window = HEALTHY[name]
    folder = write(tmp_path / "model", config)
    expected = library_table(folder, window)
    found = check_up(folder)
    assert [verdict for verdict in found.verdicts if verdict.status == "fail"] == []
    state = rope_state(read_config(folder))
    assert state.maximum == window
    assert_same(table(state), expected)
    if found.changed:
        fixed = write_fixed(folder, found, tmp_path / "fixed")
        assert_same(library_table(fixed, window), expected)
        assert rope_state(read_config(fixed)).maximum == window
        assert not check_up(fixed).changed


def test_a_null_beside_the_entry_is_taken_out(tmp_path: Path) -> None:
    """transformers takes the null for the original window, and cannot compute with it."""
    good = LLAMA | {"max_position_embeddings": 131072, "rope_theta": 500000.0}
    good["rope_scaling"] = {"rope_type": "llama3", **LLAMA_3}
    folder = write(tmp_path / "model", {**good, "original_max_position_embeddings": None})
    found = check_up(folder)
    assert found.unfixed == []
    fixed = write_fixed(folder, found, tmp_path / "fixed")
    assert_same(library_table(fixed, 131072), library_table(write(tmp_path / "good", good), 131072))
    assert "original_max_position_embeddings" not in json.loads((fixed / "config.json").read_text())


def test_a_config_that_cannot_be_read_sends_to_the_doctor(tmp_path: Path) -> None:
    """The library's own words are the name of a type that is not there: None."""
    scaling = {"rope_type": None, "type": None}
    folder = write(tmp_path / "model", LLAMA | {"max_position_embeddings": 4096, "rope_scaling": scaling})
    with pytest.raises(CheckpointError, match="skipwise doctor"):
        read_config(folder)
    fixed = write_fixed(folder, check_up(folder), tmp_path / "fixed")
    assert rope_state(read_config(fixed)).kind == "none"


def test_a_guessed_original_window_does_not_become_a_record(tmp_path: Path) -> None:
    """transformers takes the maximum for an original window that is left out; whoever wrote this meant 32768."""
    scaling = {"type": "yarn", "factor": 4.0}
    config = LLAMA | {"max_position_embeddings": 131072.0, "rope_theta": 1000000.0, "rope_scaling": scaling}
    whole = write(tmp_path / "whole", {**config, "max_position_embeddings": 131072})
    folder = write(tmp_path / "model", config)
    fixed = write_fixed(folder, check_up(folder), tmp_path / "fixed")
    assert_same(library_table(fixed, 131072), library_table(whole, 131072))
    again = check_up(fixed)
    assert not again.changed
    assert any("no original window is recorded" in verdict.detail for verdict in again.verdicts)
    assert json.loads((fixed / "config.json").read_text())["max_position_embeddings"] == 131072


@pytest.mark.parametrize(
    ("config", "check", "status", "named"),
    [
        ({"rope_scaling": {"type": "linear", "factor": None}}, "readable", "fail", "factor"),
        ({"rope_scaling": {"rope_type": ["yarn"], "factor": 2.0}}, "readable", "fail", "['yarn']"),
        # Our own messages are not cut.
        ({"model_type": "qwen2", "rope_scaling": YARN}, "readable", "fail", "(one without rotary positions has none)"),
        ({"rope_theta": 1e4, "rope_scaling": {"type": "longrope", **LISTS}}, "maximum", "note", "4096"),
    ],
)
def test_a_finding_names_what_was_found(
    config: dict[str, Any], check: str, status: str, named: str, tmp_path: Path
) -> None:
    found = check_up(write(tmp_path / "model", LLAMA | {"max_position_embeddings": 4096} | config))
    (verdict,) = (each for each in found.verdicts if each.name == check)
    assert verdict.status == status
    assert named in verdict.detail


def test_hunyuans_alpha_is_refused_by_name() -> None:
    """Its code raises the base by alpha, and nothing follows the length; in other models alpha is passed over."""
    scaling = {"alpha": 1000.0, "factor": 1.0, "mscale": 1.0, "type": "dynamic"}
    config = SMALL | {"max_position_embeddings": 262144, "rope_theta": 10000.0, "rope_scaling": scaling}
    with pytest.raises(UnsupportedModelError, match="1000"):
        read_rope(config | {"model_type": "hunyuan_v1_dense"})
    assert read_rope(copy.deepcopy(config) | {"model_type": "llama"}).kind == "dynamic"


def test_a_lower_limit_of_a_tokenizer_is_a_fault_only_where_it_is_the_original_window(tmp_path: Path) -> None:
    """DeepSeek-V3 is published with 16384 beside a window of 163840."""
    scaling = {"type": "yarn", "factor": 40.0, "original_max_position_embeddings": 4096}
    config = LLAMA | {"max_position_embeddings": 163840, "rope_theta": 1e4, "rope_scaling": scaling}
    for limit, healthy in ((16384, True), (4096, False)):
        folder = write(tmp_path / str(limit), config)
        (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": limit}))
        found = check_up(folder)
        assert (found.healthy, found.changed) == (healthy, not healthy)


def test_a_lost_original_window_is_known_from_the_base(tmp_path: Path) -> None:
    """Qwen2.5 with YaRN, written over by what knew the extended window alone: transformers scales from there."""
    base = LLAMA | {"model_type": "qwen2", "max_position_embeddings": 32768, "rope_theta": 1e6}
    scaling = {"type": "yarn", "factor": 4.0}
    folder = write(tmp_path / "model", base | {"max_position_embeddings": 131072, "rope_scaling": scaling})
    assert check_up(folder).healthy
    fixed = write_fixed(folder, check_up(folder, base), tmp_path / "fixed")
    by_hand = {
        "max_position_embeddings": 131072,
        "rope_scaling": {**scaling, "original_max_position_embeddings": 32768},
    }
    assert_same(library_table(fixed, 131072), library_table(write(tmp_path / "by-hand", base | by_hand), 131072))
