"""Configs of both eras: what is written survives save and reload, gives the same tables, and is never scaled twice."""

import copy
import json
from typing import Any, cast

import numpy as np
import pytest
import torch
from tiny_models import GEMMA3, GEMMA4, LATENT, tiny_config
from transformers import AutoConfig, AutoModelForCausalLM, Gemma4TextConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from skipwise.errors import ConfigError
from skipwise.rope import (
    INTERPOLATIONS,
    NTK,
    LongRoPE,
    RopeTable,
    YaRN,
    interpolation_from,
    read_rope,
    with_both_eras,
    write_rope,
)
from skipwise.window import Window

ORIGINAL, TARGET = 256, 4096
WINDOW = Window(train=128, original=ORIGINAL, target=TARGET)
PLAIN = {"rope_type": "default", "rope_theta": 250_000.0}
HALF = {"rope_parameters": {**PLAIN, "partial_rotary_factor": 0.5}}
LAYERS = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 12_000.0},
    "full_attention": dict(PLAIN),
}
# Of each family its settings, and the rotary dimension: the head, a share of it, or the latent part.
FAMILIES: dict[str, tuple[dict[str, Any], int]] = {
    "llama": ({}, 16),
    "qwen3": ({"head_dim": 32}, 32),
    "gemma3_text": ({**GEMMA3, "rope_parameters": LAYERS}, 16),
    "phi3": ({"original_max_position_embeddings": ORIGINAL}, 16),
    "gpt_neox": (HALF, 8),
    "stablelm": (HALF, 8),
    "deepseek_v3": (LATENT | {"num_mtp_layers": 0}, 8),
}
CASES = [
    (family, kind)
    for family in FAMILIES
    for kind in INTERPOLATIONS
    if family != "phi3" or kind in ("none", "ntk", "longrope")
]


def family_config(family: str) -> dict[str, Any]:
    settings = {"max_position_embeddings": ORIGINAL, "rope_parameters": dict(PLAIN), **FAMILIES[family][0]}
    return tiny_config(family, **settings).to_dict()


def model_of(config: dict[str, Any]) -> Any:
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(**copy.deepcopy(config)))


def tables_in_use(model: torch.nn.Module, length: int = TARGET) -> dict[str, RopeTable]:
    """What the built model rotates with for an input of `length` tokens, by layer type ("" if all share it)."""
    rotary = next(module for module in model.modules() if hasattr(module, "rope_type"))
    positions = torch.tensor([[length - 1]])
    tables = {}
    for layer in rotary.rope_type if isinstance(rotary.rope_type, dict) else [""]:
        rotary(torch.zeros(1), positions, *([layer] if layer else []))
        prefix = f"{layer}_" if layer else ""
        tables[layer] = RopeTable(
            inv_freq=getattr(rotary, f"{prefix}inv_freq").double().numpy(),
            attention_factor=getattr(rotary, f"{prefix}attention_scaling"),
        )
    return tables


def global_table(model: torch.nn.Module, length: int = TARGET) -> RopeTable:
    tables = tables_in_use(model, length)
    return tables.get("full_attention") or tables[""]


def assert_same(ours: RopeTable, library: RopeTable) -> None:
    np.testing.assert_allclose(ours.inv_freq, library.inv_freq, rtol=2e-6)
    assert ours.attention_factor == pytest.approx(library.attention_factor, rel=1e-12)


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_the_built_model_has_the_table_whichever_era_its_config_is_read_in(family: str, kind: str):
    config = family_config(family)
    written = write_rope(config, interpolation_from(kind), WINDOW)
    expected = interpolation_from(kind).table(read_rope(config).spec, WINDOW)
    legacy_only = {name: value for name, value in written.items() if name != "rope_parameters"}
    today_only = {name: value for name, value in written.items() if name not in ("rope_scaling", "rope_theta")}
    for as_read in (written, legacy_only, today_only):
        assert_same(expected, global_table(model_of(json.loads(json.dumps(as_read)))))
        state = read_rope(as_read)
        assert (state.kind, state.original, state.maximum) == (kind, ORIGINAL, TARGET)
        assert (state.theta, state.rotary_dim) == (250_000.0, FAMILIES[family][1])
        assert_same(expected, state.interpolation.table(state.spec, state.window))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["ntk", "yarn", "longrope"])
def test_lengths_and_base_survive_save_and_reload(family: str, kind: str, tmp_path):
    if family == "phi3" and kind == "yarn":
        pytest.skip("Phi-3 takes no YaRN")
    written = write_rope(family_config(family), interpolation_from(kind), WINDOW)
    model_of(written).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(with_both_eras(saved)))

    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert_same(interpolation_from(kind).table(read_rope(written).spec, WINDOW), global_table(reloaded))
    for config in (saved, with_both_eras(saved), reloaded.config.to_dict()):
        assert type(config["max_position_embeddings"]) is int
        assert config["max_position_embeddings"] == TARGET
        assert config["original_max_position_embeddings"] == ORIGINAL
        assert config["original_rope_theta"] == 250_000.0
        state = read_rope(config)
        assert (state.kind, state.theta, state.original, state.maximum) == (kind, 250_000.0, ORIGINAL, TARGET)
        assert_same(state.interpolation.table(state.spec, state.window), global_table(reloaded))


@pytest.mark.parametrize("family", ["llama", "phi3", "gemma3_text", "deepseek_v3"])
@pytest.mark.parametrize("target", [TARGET, 4 * TARGET])
def test_extending_twice_equals_extending_once(family: str, target: int):
    further = Window(train=128, original=ORIGINAL, target=target)
    for kind in INTERPOLATIONS if family != "phi3" else ("none", "ntk", "longrope"):
        first = write_rope(family_config(family), interpolation_from(kind), WINDOW)
        before = copy.deepcopy(first)
        once = write_rope(family_config(family), interpolation_from(kind), further)
        assert write_rope(first, interpolation_from(kind), further) == once
        assert first == before
        if family == "llama":  # Also where only the entries of one era are left.
            legacy = {name: value for name, value in first.items() if name != "rope_parameters"}
            again = write_rope(legacy, interpolation_from(kind), further)
            assert again["rope_parameters"] == once["rope_parameters"]


def test_a_reader_of_the_4_era_finds_theta_and_scaling():
    """All that code of that era looks at: rope_theta, rope_scaling's type or rope_type, and the lengths."""
    for kind, theta in {"linear": 250_000.0, "yarn": 250_000.0, "llama3": 250_000.0, "longrope": 250_000.0}.items():
        written = write_rope(family_config("llama"), interpolation_from(kind), WINDOW)
        scaling = written["rope_scaling"]
        assert written["rope_theta"] == scaling["rope_theta"] == theta
        assert scaling["type"] == scaling["rope_type"] == kind
        assert scaling["factor"] == 16.0
        assert scaling.get("original_max_position_embeddings", ORIGINAL) == ORIGINAL
        assert written["max_position_embeddings"] == TARGET
    changed = write_rope(family_config("llama"), NTK(), WINDOW)
    assert changed["rope_scaling"] is None
    assert changed["rope_theta"] == pytest.approx(250_000.0 * 16 ** (16 / 14))


def test_4_era_names_of_single_families():
    neox = write_rope(family_config("gpt_neox"), NTK(), WINDOW)
    assert neox["rotary_emb_base"] == neox["rope_theta"] > 250_000.0
    assert neox["rotary_pct"] == 0.5
    assert write_rope(family_config("stablelm"), YaRN(), WINDOW)["partial_rotary_factor"] == 0.5
    # Phi-3's code of that era refuses any other entry, and takes the factor from the two lengths.
    phi3 = write_rope(family_config("phi3"), LongRoPE(), WINDOW)
    assert set(phi3["rope_scaling"]) == {"type", "short_factor", "long_factor"}
    # ... so a factor of its own must not be dropped in silence.
    assert (
        "attention_factor" in write_rope(family_config("phi3"), LongRoPE(attention_factor=1.5), WINDOW)["rope_scaling"]
    )
    gemma3 = write_rope(family_config("gemma3_text"), YaRN(), WINDOW)
    assert (gemma3["rope_theta"], gemma3["rope_local_base_freq"]) == (250_000.0, 12_000.0)
    assert gemma3["rope_scaling"]["rope_type"] == "yarn"


def test_layers_with_a_sliding_window_keep_their_table():
    before = tables_in_use(model_of(family_config("gemma3_text")))
    for kind in INTERPOLATIONS:
        after = tables_in_use(model_of(write_rope(family_config("gemma3_text"), interpolation_from(kind), WINDOW)))
        np.testing.assert_array_equal(after["sliding_attention"].inv_freq, before["sliding_attention"].inv_freq)
        assert kind == "none" or (after["full_attention"].inv_freq < before["full_attention"].inv_freq).any()


def test_a_4_era_config_of_a_model_with_two_bases_is_read_and_written():
    legacy = family_config("gemma3_text")
    del legacy["rope_parameters"]
    legacy |= {"rope_theta": 250_000.0, "rope_local_base_freq": 12_000.0, "rope_scaling": None}
    assert (
        write_rope(legacy, YaRN(), WINDOW)["rope_parameters"]
        == (write_rope(family_config("gemma3_text"), YaRN(), WINDOW)["rope_parameters"])
    )


def test_the_text_part_of_a_composite_config_is_extended():
    whole = {"model_type": "gemma3", "text_config": family_config("gemma3_text"), "vision_config": {"hidden_size": 8}}
    written = write_rope(whole, YaRN(), WINDOW)
    assert written["text_config"] == write_rope(family_config("gemma3_text"), YaRN(), WINDOW)
    assert written["vision_config"] == whole["vision_config"]
    assert read_rope(written).scaled
    assert not read_rope(whole).scaled


def test_entries_that_no_interpolation_owns_stay():
    config = family_config("llama")
    config["rope_parameters"]["llama_4_scaling_beta"] = 0.1
    assert write_rope(config, YaRN(), WINDOW)["rope_parameters"]["llama_4_scaling_beta"] == 0.1


# --- extending a model that is scaled already ---------------------------------------------------------------------


@pytest.mark.parametrize("before", INTERPOLATIONS)
@pytest.mark.parametrize("after", INTERPOLATIONS)
def test_another_kind_on_top_is_refused(before: str, after: str):
    scaled = write_rope(family_config("llama"), interpolation_from(before), WINDOW)
    further = Window(train=128, original=ORIGINAL, target=2 * TARGET)
    if before in ("none", after):
        write_rope(scaled, interpolation_from(after), further)
        return
    with pytest.raises(ConfigError, match=repr(before)):
        write_rope(scaled, interpolation_from(after), further)


@pytest.mark.parametrize("kind", INTERPOLATIONS)
def test_taking_the_extended_window_for_the_original_is_refused(kind: str):
    scaled = write_rope(family_config("llama"), interpolation_from(kind), WINDOW)
    doubled = Window(train=128, original=TARGET, target=2 * TARGET)
    with pytest.raises(ConfigError, match=str(ORIGINAL)):
        write_rope(scaled, interpolation_from(kind), doubled)


def test_calibration_at_the_same_target_does_not_add_up():
    scaled = write_rope(family_config("llama"), YaRN(), WINDOW)
    calibrated = YaRN(attention_factor_scale=1.1)
    for _ in range(3):
        scaled = write_rope(scaled, calibrated, WINDOW)
    assert scaled["rope_parameters"]["factor"] == 16.0
    assert scaled["rope_parameters"]["attention_factor"] == pytest.approx(1.1 * (0.1 * np.log(16) + 1))


# Proportional RoPE: the fast pairs of a head turn, the others stand still


def gemma4_config() -> Gemma4TextConfig:
    return cast(Gemma4TextConfig, tiny_config("gemma4_text", **GEMMA4, max_position_embeddings=ORIGINAL))


@pytest.mark.parametrize("kind", ["none", "linear", "ntk"])
def test_proportional_tables_are_the_librarys(kind: str) -> None:
    config = gemma4_config()
    state = read_rope(config.to_dict())
    assert (state.kind, state.rotary_dim, state.span_dim, state.theta) == ("none", 8, 32, 1e6)
    interpolation = INTERPOLATIONS[kind]()
    written = Gemma4TextConfig.from_dict(write_rope(config.to_dict(), interpolation, WINDOW))
    assert written.rope_parameters is not None
    assert written.rope_parameters["full_attention"]["rope_type"] == "proportional"
    assert written.rope_parameters["sliding_attention"] == {"rope_type": "default", "rope_theta": 10_000.0}

    theirs, factor = ROPE_INIT_FUNCTIONS["proportional"](written, layer_type="full_attention")
    table = interpolation.table(state.spec, WINDOW)
    np.testing.assert_allclose(theirs.numpy(), table.inv_freq, rtol=1e-6, atol=0)
    assert (table.attention_factor, factor) == (1.0, 1.0)
    assert table.inv_freq.shape == (16,)
    assert np.count_nonzero(table.inv_freq) == 4
    again = read_rope(written.to_dict())
    assert (again.kind, again.theta, again.original, again.maximum) == (kind, 1e6, ORIGINAL, TARGET)
    assert_same(again.interpolation.table(again.spec, again.window), table)


@pytest.mark.parametrize("heads", [{"global_head_dim": 32}, {"per_layer_config": {"full_attention": {"head_dim": 32}}}])
def test_wider_heads_are_found_however_they_are_written(heads: dict[str, Any]) -> None:
    config = {name: value for name, value in gemma4_config().to_dict().items() if name != "per_layer_config"}
    assert read_rope(config | heads).span_dim == 32
    assert read_rope(config | {"per_layer_config": {"9": {"head_dim": 64}, "other": {}}}).span_dim == 16


@pytest.mark.parametrize("given", [[{"head_dim": 32}], {"1": 32}])
def test_settings_by_layer_of_another_form_are_named(given: Any) -> None:
    with pytest.raises(ConfigError, match=r"per_layer_config.*32"):
        read_rope(gemma4_config().to_dict() | {"per_layer_config": given})


def test_a_base_change_slows_the_slowest_pair_that_turns() -> None:
    spec = read_rope(gemma4_config().to_dict()).spec
    before, after = (INTERPOLATIONS[kind]().table(spec, WINDOW).inv_freq for kind in ("none", "ntk"))
    assert after[0] == before[0] == 1.0
    assert before[3] / after[3] == pytest.approx(WINDOW.factor)


@pytest.mark.parametrize("kind", ["dynamic", "yarn", "llama3", "longrope"])
def test_proportional_rope_is_refused_what_the_library_has_not(kind: str) -> None:
    with pytest.raises(ConfigError, match=f"'{kind}'.* none, linear, ntk"):
        write_rope(gemma4_config().to_dict(), INTERPOLATIONS[kind](), WINDOW)
