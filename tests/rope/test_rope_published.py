"""Configs as others publish them: read as transformers reads them, and extended only where that composes."""

import copy
import importlib
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from skipwise.errors import ConfigError, UnsupportedModelError
from skipwise.rope import (
    NTK,
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
    (LINEAR_4_ERA | {"rope_scaling": {"factor": 1.0, "type": "linear"}}, "none", 16384, 1.0),
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


def without(config: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in names}


GROWN = family_config("llama") | {"max_position_embeddings": 1024, "original_max_position_embeddings": ORIGINAL}
GPTJ = {"model_type": "gptj", "n_positions": ORIGINAL, "rotary_dim": 8, "n_embd": 64, "n_head": 4}
TOLD = {"original_max_position_embeddings": 4096}
LONGER = LongRoPE(short_factor=(1.0,) * 8, long_factor=(1.1, 1.5, 2.5, 4, 8, 20, 40, 64))


@pytest.mark.parametrize(
    ("published", "interpolation", "target", "named"),
    [
        # A factor that does not follow from the lengths: the one that keeps the ratio is named.
        (LLAMA_31, Llama3(), 262144, "factor: 16 "),
        # A long-context switch that would be undone.
        (QWEN_25, YaRN(), 65536, "target is 65536"),
        (LINEAR_4_ERA, Linear(), 32768, "setting original"),
        (PHI_35, LongRoPE(), 262144, "long_factor"),
        (DEEPSEEK_V3, YaRN(), 2 * 163840, "mscale: 1.0"),
        (GROWN, YaRN(), TARGET, "original_rope_theta"),
        # Models whose code takes some kinds only.
        (family_config("phi3"), YaRN(), TARGET, "none, ntk, longrope"),
        (family_config("llama") | {"model_type": "phimoe"}, LongRoPE(), TARGET, "phimoe .* none, ntk"),
        (GPTJ | {"rope_theta": 1e4}, YaRN(), TARGET, "gptj .* none"),
        (family_config("gemma3_text"), YaRN(truncate=False), TARGET, "truncate"),
        (write_rope(family_config("llama"), YaRN(), WINDOW), YaRN(), TARGET // 2, f"target is {TARGET // 2}"),
        # A base that would be lowered.
        (write_rope(family_config("llama"), NTK(theta=1e8), WINDOW), NTK(), 2 * TARGET, "1e.08"),
    ],
)
def test_what_does_not_compose_is_refused_and_the_setting_named(
    published: dict[str, Any], interpolation: Interpolation, target: int, named: str
):
    with pytest.raises(ConfigError, match=named):
        extended(published, interpolation, target)


@pytest.mark.parametrize(
    ("published", "interpolation", "target", "entries"),
    [
        (LLAMA_31, Llama3(factor=16.0), 262144, {"factor": 16.0}),
        (QWEN_25, YaRN(), 131072, {"factor": 4.0}),
        (QWEN_25, YaRN(), 262144, {"factor": 8.0}),
        (LINEAR_4_ERA | TOLD, Linear(), 32768, {"factor": 8.0}),
        (PHI_35, LONGER, 262144, {"long_factor": [1.1, 1.5, 2.5, 4, 8, 20, 40, 64]}),
        (
            DEEPSEEK_V3,
            YaRN(mscale=1.0, mscale_all_dim=1.0),
            2 * 163840,
            {"factor": 80.0, "mscale": 1.0, "mscale_all_dim": 1.0},
        ),
        (GROWN | {"original_rope_theta": 250_000.0}, YaRN(), TARGET, {"factor": 16.0}),
        (write_rope(family_config("llama"), NTK(theta=1e8), WINDOW), NTK(theta=2e8), 2 * TARGET, {"rope_theta": 2e8}),
    ],
)
def test_a_scaling_goes_on_from_its_original_window(
    published: dict[str, Any], interpolation: Interpolation, target: int, entries: dict[str, Any]
):
    assert extended(published, interpolation, target)["rope_parameters"].items() >= entries.items()


def test_dynamic_scaling_of_others_continues_from_their_maximum():
    state = read_rope(extended(DYNAMIC_4_ERA, DynamicNTK(factor=2.0), 16384))
    assert state.theta == 10000.0
    assert isinstance(state.interpolation, DynamicNTK)
    assert state.interpolation.factor == pytest.approx(2.0)


def test_names_of_the_window_stay_those_of_the_family():
    assert write_rope(GPTJ, Unscaled(), WINDOW)["n_positions"] == TARGET


LOST = without(LLAMA_31, "rope_theta")


@pytest.mark.parametrize(
    "config",
    [
        without(LOST, "rope_scaling"),
        # LLaMA and Llama 2, which no published model of another base shares the vocabulary of, may be scaled as well.
        LOST | {"vocab_size": 32000},
    ],
)
def test_a_base_that_may_be_left_out_is_the_familys(config: dict[str, Any]):
    assert read_rope(config).theta == 10000.0


LAYERS_UNKNOWN = family_config("llama") | {"rope_parameters": {"main": dict(PLAIN), "compress": dict(PLAIN)}}


@pytest.mark.parametrize(
    ("config", "error", "named"),
    [
        (LOST, ConfigError, "rope_theta"),
        (without(LOST, "rope_scaling") | {"model_type": "gpt2"}, ConfigError, "rope_theta"),
        *((NEOX_4_ERA | {"max_position_embeddings": n}, ConfigError, str(n)) for n in (None, 4096.5, "4096", 1)),
        (family_config("llama") | {"rope_parameters": {**PLAIN, "rope_type": "axial"}}, UnsupportedModelError, "axial"),
        (LAYERS_UNKNOWN, UnsupportedModelError, "main, compress"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(config: dict[str, Any], error: type[Exception], named: str):
    with pytest.raises(error, match=named):
        read_rope(config)
