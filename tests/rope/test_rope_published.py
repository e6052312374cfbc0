"""Configs as others publish them: read as transformers reads them, and extended only where that composes."""

import copy
import importlib
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from skipwise.errors import ConfigError, UnsupportedModelError
from skipwise.rope import (
    DynamicNTK,
    Interpolation,
    Linear,
    Llama3,
    LongRoPE,
    Unscaled,
    YaRN,
    read_rope,
    write_rope,
)
from skipwise.window import Window

from .test_published_layouts import LLAMA_31, PHI_35, QWEN_25
from .test_rope_config import ORIGINAL, PLAIN, TARGET, WINDOW, assert_same, family_config, global_table

HEADS = {"hidden_size": 4096, "num_attention_heads": 32}
LINEAR_4_ERA = HEADS | {
    "model_type": "llama",
    "max_position_embeddings": 16384,
    "rope_theta": 100000,
    "rope_scaling": {"factor": 4.0, "type": "linear"},
}
DYNAMIC_4_ERA = HEADS | {
    "model_type": "llama",
    "max_position_embeddings": 4096,
    "rope_theta": 10000.0,
    "rope_scaling": {"factor": 2.0, "type": "dynamic"},
}
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3",
    "hidden_size": 64,
    "num_attention_heads": 4,
    "qk_rope_head_dim": 64,
    "max_position_embeddings": 163840,
    "rope_theta": 10000,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
}
NEOX_4_ERA = {
    "model_type": "gpt_neox",
    "hidden_size": 64,
    "num_attention_heads": 4,
    "max_position_embeddings": 2048,
    "rotary_emb_base": 20000,
    "rotary_pct": 0.5,
}
# The config; kind, original window and factor that it says.
PUBLISHED = [
    (LLAMA_31, "llama3", 8192, 8.0),
    (QWEN_25, "yarn", 32768, 4.0),
    (LINEAR_4_ERA, "linear", 16384, 4.0),
    (DYNAMIC_4_ERA, "dynamic", 4096, 1.0),
    (PHI_35, "longrope", 4096, 32.0),
    (DEEPSEEK_V3, "yarn", 4096, 40.0),
    (NEOX_4_ERA, "none", 2048, 1.0),
]


@pytest.mark.parametrize(("published", "kind", "original", "factor"), PUBLISHED)
def test_published_configs_are_read_as_transformers_reads_them(
    published: dict[str, Any], kind: str, original: int, factor: float
):
    state = read_rope(published)
    assert (state.kind, state.original, state.factor) == (kind, original, factor)
    assert state.scaled == (kind != "none")
    settings: dict[str, Any] = copy.deepcopy(published) | {"vocab_size": 8, "intermediate_size": 8}
    small = AutoConfig.for_model(**settings)
    family = published["model_type"]
    code = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    rotary_class = next(value for name, value in vars(code).items() if name.endswith("RotaryEmbedding"))
    rotary = torch.nn.ModuleList([rotary_class(small)])
    length = published["max_position_embeddings"]
    assert_same(state.interpolation.table(state.spec, state.window), global_table(rotary, length))
    # The form that transformers writes is read alike.
    assert read_rope(small.to_dict()).interpolation == state.interpolation


def extended(published: dict[str, Any], interpolation: Interpolation, target: int) -> dict[str, Any]:
    window = Window(train=2048, original=read_rope(published).original, target=target)
    return write_rope(published, interpolation, window)


def test_a_factor_that_does_not_follow_from_the_lengths_must_be_given():
    with pytest.raises(ConfigError, match=r"scaled by 8 for 16 times .* factor: 16 "):
        extended(LLAMA_31, Llama3(), 262144)
    assert extended(LLAMA_31, Llama3(factor=16.0), 262144)["rope_parameters"]["factor"] == 16.0


def test_a_long_context_switch_is_not_undone_in_silence():
    with pytest.raises(ConfigError, match=r"target is 65536 .* handles 131072 already"):
        extended(QWEN_25, YaRN(), 65536)
    assert extended(QWEN_25, YaRN(), 131072)["rope_parameters"]["factor"] == 4.0
    assert extended(QWEN_25, YaRN(), 262144)["rope_parameters"]["factor"] == 8.0


def test_a_linear_scaling_of_unknown_origin_is_refused_until_the_config_tells():
    with pytest.raises(ConfigError, match="setting original"):
        extended(LINEAR_4_ERA, Linear(), 32768)
    told = LINEAR_4_ERA | {"original_max_position_embeddings": 4096}
    assert extended(told, Linear(), 32768)["rope_parameters"]["factor"] == 8.0


def test_dynamic_scaling_of_others_continues_from_their_maximum():
    written = extended(DYNAMIC_4_ERA, DynamicNTK(factor=2.0), 16384)
    state = read_rope(written)
    assert state.theta == 10000.0
    assert isinstance(state.interpolation, DynamicNTK)
    assert state.interpolation.factor == pytest.approx(2.0)


def test_searched_divisors_are_not_replaced_in_silence():
    with pytest.raises(ConfigError, match="searched for it"):
        extended(PHI_35, LongRoPE(), 262144)
    longer = LongRoPE(short_factor=(1.0,) * 8, long_factor=(1.1, 1.5, 2.5, 4, 8, 20, 40, 64))
    assert extended(PHI_35, longer, 262144)["rope_scaling"]["long_factor"][-1] == 64


def test_the_weights_of_deepseeks_logarithm_must_go_on():
    with pytest.raises(ConfigError, match=r"mscale is None, .* scaled with 1.0"):
        extended(DEEPSEEK_V3, YaRN(), 2 * 163840)
    parameters = extended(DEEPSEEK_V3, YaRN(mscale=1.0, mscale_all_dim=1.0), 2 * 163840)["rope_parameters"]
    assert (parameters["factor"], parameters["mscale"], parameters["mscale_all_dim"]) == (80.0, 1.0, 1.0)


def test_a_window_that_grew_from_an_unknown_base_is_refused():
    grown = family_config("llama") | {"max_position_embeddings": 1024, "original_max_position_embeddings": ORIGINAL}
    with pytest.raises(ConfigError, match='add "original_rope_theta"'):
        write_rope(grown, YaRN(), WINDOW)
    write_rope(grown | {"original_rope_theta": 250_000.0}, YaRN(), WINDOW)


def test_a_lost_base_is_refused():
    lost = {name: value for name, value in LLAMA_31.items() if name != "rope_theta"}
    with pytest.raises(ConfigError, match="has no rope_theta"):
        read_rope(lost)
    llama_2 = {name: value for name, value in lost.items() if name != "rope_scaling"}
    assert read_rope(llama_2).theta == 10000.0
    # LLaMA and Llama 2, which no published model of another base shares the vocabulary of, may be scaled as well.
    assert read_rope(lost | {"vocab_size": 32000}).theta == 10000.0
    with pytest.raises(ConfigError, match="has no rope_theta"):
        read_rope(llama_2 | {"model_type": "gpt2"})


@pytest.mark.parametrize("maximum", [None, 4096.5, "4096", 1])
def test_a_maximum_that_is_no_number_of_tokens_is_refused(maximum: Any):
    with pytest.raises(ConfigError, match="whole number of tokens"):
        read_rope(NEOX_4_ERA | {"max_position_embeddings": maximum})


def test_models_that_cannot_take_a_kind_are_refused():
    with pytest.raises(ConfigError, match=r"phi3 .* none, ntk, longrope"):
        write_rope(family_config("phi3"), YaRN(), WINDOW)
    gptj = {"model_type": "gptj", "n_positions": ORIGINAL, "rotary_dim": 8, "n_embd": 64, "n_head": 4}
    with pytest.raises(ConfigError, match=r"phimoe .* only none, ntk"):
        write_rope(family_config("llama") | {"model_type": "phimoe"}, LongRoPE(), WINDOW)
    with pytest.raises(ConfigError, match=r"gptj .* only none"):
        write_rope(gptj, YaRN(), WINDOW)
    assert write_rope(gptj, Unscaled(), WINDOW)["n_positions"] == TARGET


def test_rotary_embeddings_of_unknown_form_are_refused():
    axial = family_config("llama")
    axial["rope_parameters"]["rope_type"] = "axial"
    with pytest.raises(UnsupportedModelError, match="axial"):
        read_rope(axial)
    unknown_layers = family_config("llama") | {"rope_parameters": {"main": dict(PLAIN), "compress": dict(PLAIN)}}
    with pytest.raises(UnsupportedModelError, match="main, compress"):
        read_rope(unknown_layers)
