"""Every interpolation against the transformers library's own tables, frozen numbers, and planted faults."""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from skipwise.errors import ConfigError
from skipwise.rope import (
    INTERPOLATIONS,
    NTK,
    DynamicNTK,
    Interpolation,
    Linear,
    Llama3,
    LongRoPE,
    RopeSpec,
    RopeTable,
    YaRN,
    float32_angle_error,
    interpolation_from,
    interpolations,
)
from skipwise.rope.tables import unscaled_frequencies
from skipwise.window import Window

ALPHAS = (1.0, 1.5, 64.0, 512.0)
ROTARY_DIMS = (2, 8, 64, 128, 256)
THETAS = (1e4, 5e5, 1e6, 1e9)
ORIGINALS = (4, 64, 4096, 32768)

# Settings other than the defaults that change the table.
VARIANTS: list[Interpolation] = [
    NTK(theta=3.5e6),
    DynamicNTK(factor=4.0),
    YaRN(beta_fast=16.0, beta_slow=2.0),
    YaRN(truncate=False),
    YaRN(attention_factor=1.25, attention_factor_scale=1.1),
    YaRN(attention_factor_scale=1.2),
    YaRN(mscale=1.0, mscale_all_dim=0.7),
    YaRN(factor=3.0),
    Llama3(low_freq_factor=2.0, high_freq_factor=8.0),
    LongRoPE(attention_factor=1.3),
]
ALL = [INTERPOLATIONS[kind]() for kind in INTERPOLATIONS] + VARIANTS


def window_of(original: int, alpha: float) -> Window:
    return Window(train=min(original, 2048), original=original, target=int(original * alpha))


def regimes(interpolation: Interpolation) -> list[tuple[RopeSpec, Window]]:
    """Every combination of extremes; a base change is defined from 4 dimensions on."""
    dims = [d for d in ROTARY_DIMS if d > 2 or interpolation.kind not in ("ntk", "dynamic")]
    return [
        (RopeSpec(rotary_dim=dim, theta=theta), window_of(original, alpha))
        for dim, theta, original, alpha in itertools.product(dims, THETAS, ORIGINALS, ALPHAS)
    ]


def library_table(interpolation: Interpolation, spec: RopeSpec, window: Window, length: int | None = None) -> RopeTable:
    """What transformers makes of the exported parameters for an input of `length` tokens (the target)."""
    config = LlamaConfig(
        hidden_size=spec.rotary_dim,
        num_attention_heads=1,
        head_dim=spec.rotary_dim,
        max_position_embeddings=window.target,
        rope_parameters=interpolation.parameters(spec, window),  # pyright: ignore[reportArgumentType]
    )
    rope_type = interpolation.parameters(spec, window)["rope_type"]
    if rope_type == "default":
        inv_freq, attention_factor = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
    else:
        inv_freq, attention_factor = ROPE_INIT_FUNCTIONS[rope_type](config, seq_len=length or window.target)
    return RopeTable(inv_freq=inv_freq.double().numpy(), attention_factor=float(attention_factor))


def assert_same(ours: RopeTable, library: RopeTable, spec: RopeSpec) -> None:
    """Equal up to what float32 costs the library: 5e-6 in its powers, and a few units of its last place in a ramp."""
    assert ours.inv_freq.dtype == np.float64
    allowed = 5e-6 * library.inv_freq + 2**-22 * unscaled_frequencies(spec)
    assert (np.abs(ours.inv_freq - library.inv_freq) <= allowed).all(), (spec, ours, library)
    assert ours.attention_factor == pytest.approx(library.attention_factor, rel=1e-12)


@pytest.mark.parametrize("interpolation", ALL, ids=repr)
def test_tables_equal_those_of_transformers_in_every_regime(interpolation: Interpolation):
    for spec, window in regimes(interpolation):
        ours = interpolation.table(spec, window)
        assert_same(ours, library_table(interpolation, spec, window), spec)


# Worked out by scalar code written from the papers, at d=8, theta=1e4, original 2048, alpha 16.
FROZEN_SPEC, FROZEN_WINDOW = RopeSpec(rotary_dim=8, theta=1e4), Window(train=2048, original=2048, target=32768)
FROZEN = {
    "none": ([1.0, 0.1, 0.01, 0.001], 1.0),
    "linear": ([0.0625, 0.00625, 0.000625, 6.25e-05], 1.0),
    "ntk": ([1.0, 0.03968502629920499, 0.0015749013123685916, 6.25e-05], 1.0),
    "dynamic": ([1.0, 0.03968502629920499, 0.0015749013123685916, 6.25e-05], 1.0),
    "yarn": ([1.0, 0.1, 0.0053125, 6.25e-05], 1.2772588722239782),
    "llama3": ([1.0, 0.1, 0.007685916357881301, 6.25e-05], 1.0),
    "longrope": ([1.0, 0.1, 0.0053125, 6.25e-05], 1.1677484162422844),
}


@pytest.mark.parametrize("kind", INTERPOLATIONS)
def test_tables_equal_frozen_numbers(kind: str):
    table = INTERPOLATIONS[kind]().table(FROZEN_SPEC, FROZEN_WINDOW)
    np.testing.assert_allclose(table.inv_freq, FROZEN[kind][0], rtol=1e-12)
    assert table.attention_factor == pytest.approx(FROZEN[kind][1], rel=1e-12)


def test_yarn_of_a_7b_model_to_128k_equals_frozen_numbers():
    """d=128, theta=1e4, 4096 to 131072: bounds at pairs 20 and 46, worked out by hand from equations 17 to 23."""
    table = YaRN().table(RopeSpec(rotary_dim=128, theta=1e4), Window(train=4096, original=4096, target=131072))
    base = [10000.0 ** (-j / 64) for j in (0, 20, 21, 33, 45, 46, 63)]
    shares = [0, 0, 1 / 26, 13 / 26, 25 / 26, 1, 1]
    expected = [b * (1 - share) + b / 32 * share for b, share in zip(base, shares, strict=True)]
    np.testing.assert_allclose(table.inv_freq[[0, 20, 21, 33, 45, 46, 63]], expected, rtol=1e-12)
    assert table.attention_factor == pytest.approx(1.3465735902799727, rel=1e-12)


def inverted_ramp(low: float, high: float, num_pairs: int, ramp: Callable = interpolations._ramp) -> np.ndarray:
    return 1 - ramp(low, high, num_pairs)


def clamp_at_the_last_pair(low: float, high: float, spec: RopeSpec) -> tuple[float, float]:
    return max(low, 0), min(high, spec.rotary_dim / 2 - 1)


def dropped_factor(scale: float, mscale: float = 1.0) -> float:
    return 1.0


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("_ramp", inverted_ramp),
        ("_ramp_bounds", clamp_at_the_last_pair),
        ("_yarn_attention_factor", dropped_factor),
    ],
)
def test_the_comparison_catches_the_faults_of_other_projects(
    name: str, fault: Callable, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(interpolations, name, fault)
    with pytest.raises(AssertionError):
        test_tables_equal_those_of_transformers_in_every_regime(YaRN())


@pytest.mark.parametrize(("name", "fault"), [("_ramp", inverted_ramp), ("_yarn_attention_factor", dropped_factor)])
def test_the_frozen_numbers_catch_faults(name: str, fault: Callable, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(interpolations, name, fault)
    with pytest.raises(AssertionError):
        test_tables_equal_frozen_numbers("yarn")


def test_the_wrong_clamp_matters_only_where_the_slowest_pair_still_turns(monkeypatch: pytest.MonkeyPatch):
    """Small bases and long originals; this is why ordinary models never showed that fault."""
    usual = RopeSpec(rotary_dim=128, theta=1e4), window_of(4096, 8)
    unusual = RopeSpec(rotary_dim=128, theta=1e4), window_of(131072, 8)
    right = [YaRN().table(*case).inv_freq for case in (usual, unusual)]
    monkeypatch.setattr(interpolations, "_ramp_bounds", clamp_at_the_last_pair)
    wrong = [YaRN().table(*case).inv_freq for case in (usual, unusual)]
    np.testing.assert_array_equal(right[0], wrong[0])
    assert not np.allclose(right[1], wrong[1], rtol=1e-3)


@given(
    kind=st.sampled_from(sorted(INTERPOLATIONS)),
    dim=st.integers(2, 128).map(lambda half: 2 * half),
    theta=st.floats(1e3, 1e9),
    original=st.integers(8, 10**6),
    alpha=st.floats(1, 1000),
)
def test_no_pair_turns_faster_than_unscaled_or_slower_than_the_target_needs(kind, dim, theta, original, alpha):
    spec, window = RopeSpec(rotary_dim=dim, theta=theta), window_of(original, alpha)
    table = INTERPOLATIONS[kind]().table(spec, window)
    base = INTERPOLATIONS["none"]().table(spec, window).inv_freq
    assert table.inv_freq.shape == (dim // 2,)
    assert (table.inv_freq <= base * (1 + 1e-9)).all()
    assert (table.inv_freq >= base / window.factor * (1 - 1e-9)).all()
    assert table.attention_factor >= 1


@pytest.mark.parametrize("kind", INTERPOLATIONS)
def test_nothing_changes_where_the_target_is_the_original_window(kind: str):
    spec, window = RopeSpec(rotary_dim=64, theta=1e4), window_of(4096, 1)
    table = INTERPOLATIONS[kind]().table(spec, window)
    np.testing.assert_allclose(table.inv_freq, INTERPOLATIONS["none"]().table(spec, window).inv_freq, rtol=1e-12)
    assert table.attention_factor == 1


def test_dynamic_follows_the_length_beyond_the_target_by_the_same_law():
    """The export, anchored at the target, keeps the law: at twice the target it is the table of twice the target."""
    spec = RopeSpec(rotary_dim=64, theta=1e4)
    for factor in (1.0, 4.0):
        exported = library_table(DynamicNTK(factor=factor), spec, window_of(4096, 8), length=2 * 32768)
        assert_same(DynamicNTK(factor=factor).table(spec, window_of(4096, 16)), exported, spec)


def test_longrope_keeps_the_short_list_within_the_original_window():
    spec, window = RopeSpec(rotary_dim=64, theta=1e4), window_of(4096, 8)
    short = library_table(LongRoPE(), spec, window, length=4096)
    np.testing.assert_allclose(short.inv_freq, INTERPOLATIONS["none"]().table(spec, window).inv_freq, rtol=5e-6)


def test_longrope_takes_given_lists():
    spec, window = RopeSpec(rotary_dim=4, theta=1e4), window_of(4096, 8)
    given_lists = LongRoPE(short_factor=(1, 1.5), long_factor=(2, 7))
    np.testing.assert_allclose(given_lists.table(spec, window).inv_freq, [1 / 2, 0.01 / 7])
    assert_same(given_lists.table(spec, window), library_table(given_lists, spec, window), spec)
    with pytest.raises(ConfigError, match="long_factor"):
        LongRoPE(long_factor=(1, 2, 3)).table(spec, window)


def test_calibration_scales_the_attention_factor_for_every_engine():
    spec, window = RopeSpec(rotary_dim=64, theta=1e4), window_of(4096, 8)
    parameters = YaRN(attention_factor_scale=1.1).parameters(spec, window)
    assert parameters["attention_factor"] == pytest.approx(1.1 * (0.1 * math.log(8) + 1))
    # vLLM and SGLang multiply the formula by attn_factor and know no attention_factor.
    assert parameters["attn_factor"] == pytest.approx(1.1)
    assert {"attention_factor", "attn_factor"}.isdisjoint(YaRN().parameters(spec, window))


@pytest.mark.parametrize("kind", ["ntk", "dynamic"])
def test_a_base_change_of_two_dimensions_is_refused(kind: str):
    with pytest.raises(ConfigError, match="rotary_dim is 2"):
        INTERPOLATIONS[kind]().table(RopeSpec(rotary_dim=2, theta=1e4), window_of(64, 2))


@pytest.mark.parametrize(
    "make",
    [
        lambda: RopeSpec(rotary_dim=7, theta=1e4),
        lambda: RopeSpec(rotary_dim=8, theta=1.0),
        lambda: Linear(factor=0.5),
        lambda: NTK(theta=0.0),
        lambda: DynamicNTK(factor=0.0),
        lambda: YaRN(beta_fast=1.0, beta_slow=2.0),
        lambda: YaRN(attention_factor=0.0),
        lambda: YaRN(attention_factor_scale=-1.0),
        lambda: Llama3(low_freq_factor=4.5),
        lambda: LongRoPE(long_factor=()),
        lambda: LongRoPE(attention_factor=-1.0),
    ],
)
def test_values_out_of_range_are_refused(make: Callable):
    with pytest.raises(ConfigError):
        make()


@pytest.mark.parametrize("kind", INTERPOLATIONS)
def test_every_default_may_be_said_out_loud(kind: str):
    default: Any = INTERPOLATIONS[kind]()
    assert interpolation_from({"kind": kind, **dataclasses.asdict(default)}) == default


def test_interpolations_are_built_from_settings():
    assert interpolation_from("yarn") == YaRN()
    assert interpolation_from({"kind": "yarn", "beta_fast": 16}) == YaRN(beta_fast=16)
    assert interpolation_from({"kind": "longrope", "long_factor": [1, 2]}) == LongRoPE(long_factor=(1.0, 2.0))
    assert [interpolation_from(kind).kind for kind in INTERPOLATIONS] == list(INTERPOLATIONS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("yran", "'yran'.*did you mean 'yarn'"),
        ({"beta_fast": 16}, "kind is None"),
        ({"kind": "yarn", "beta_fats": 16}, "no field 'beta_fats'.*did you mean 'beta_fast'"),
        ({"kind": "none", "factor": 2}, "'none' has no field 'factor'; it takes none"),
        ({"kind": "yarn", "beta_fast": "abc"}, "^interpolation.beta_fast is 'abc'; it must be a number$"),
        ({"kind": "yarn", "beta_fast": True}, "beta_fast is True; it must be a number$"),
        ({"kind": "linear", "factor": "8"}, "^interpolation.factor is '8'; it must be a number or null$"),
        ({"kind": "ntk", "theta": float("nan")}, "theta is nan; it must be a number or null$"),
        ({"kind": "yarn", "truncate": "maybe"}, "truncate is 'maybe'; it must be true or false$"),
        ({"kind": "longrope", "long_factor": 3.0}, "long_factor is 3.0; it must be a list of numbers or null$"),
        ({"kind": "longrope", "long_factor": ["x"]}, "long_factor is .'x'.; it must be a list of numbers or null$"),
    ],
)
def test_wrong_settings_are_refused_with_what_is_right(settings, message: str):
    with pytest.raises(ConfigError, match=message):
        interpolation_from(settings)


def test_float32_angles_lose_precision_as_positions_grow():
    """About 0.03 rad at a million, and what is measured on the angles is what cos and sin suffer."""
    table = INTERPOLATIONS["none"]().table(RopeSpec(rotary_dim=128, theta=1e4), window_of(4096, 256))
    errors = [float32_angle_error(table, position) for position in (0, 1000, 10**6)]
    assert errors[0] == 0
    assert errors[1] < 1e-4
    assert 0.01 < errors[2] < 0.1
    angles = torch.tensor(10.0**6) * torch.from_numpy(table.inv_freq).float()
    truth = np.exp(1j * 10**6 * table.inv_freq)
    seen = angles.cos().double().numpy() + 1j * angles.sin().double().numpy()
    assert np.abs(np.angle(seen / truth)).max() == pytest.approx(errors[2], rel=1e-3)
