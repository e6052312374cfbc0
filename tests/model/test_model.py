"""Models of every family: the table that was asked for is the one they compute with, before and after saving."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tiny_models import FAMILIES, PROPORTIONAL, WINDOW, far_logits, kinds_of
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from skipwise.errors import CheckpointError
from skipwise.model import (
    load_model,
    original_window,
    portability_note,
    read_config,
    rotary_tables,
    save_model,
    with_rope,
)
from skipwise.rope import INTERPOLATIONS, Interpolation, RopeTable, YaRN, read_rope

KINDS = [(family, kind) for family in FAMILIES for kind in kinds_of(family)]


def global_table(model: PreTrainedModel) -> RopeTable:
    """The table of the layers that see the whole context."""
    tables = rotary_tables(model)
    return next(table for path, table in tables.items() if not path.endswith("sliding_attention"))


def assert_same_table(found: RopeTable, expected: RopeTable) -> None:
    np.testing.assert_allclose(found.inv_freq, expected.inv_freq, rtol=1e-6, atol=0)
    assert found.attention_factor == pytest.approx(expected.attention_factor, rel=1e-6)


@pytest.mark.parametrize(("family", "kind"), KINDS)
def test_table_survives_load_save_and_plain_reload(family: str, kind: str, checkpoint: Any, tmp_path: Path) -> None:
    interpolation = INTERPOLATIONS[kind]()
    source = checkpoint(family)
    base = load_model(source)
    expected = interpolation.table(read_rope(read_config(source).to_dict()).spec, WINDOW)

    extended = load_model(source, interpolation=interpolation, window=WINDOW)
    wanted = far_logits(extended.model)  # before the tables: longrope chooses its list by the positions it sees
    assert_same_table(global_table(extended.model), expected)
    assert not torch.equal(wanted, far_logits(base.model))

    save_model(extended.model, extended.tokenizer, tmp_path / "saved")
    reloaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(far_logits(reloaded), wanted)
    assert_same_table(global_table(reloaded), expected)

    rebuilt = with_rope(base.model, interpolation, WINDOW)
    assert torch.equal(far_logits(rebuilt), wanted)


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_config_is_readable_in_both_eras(family: str, checkpoint: Any, tmp_path: Path) -> None:
    kind = kinds_of(family)[0]
    source = checkpoint(family)
    extended = load_model(source, interpolation=INTERPOLATIONS[kind](), window=WINDOW)
    save_model(extended.model, extended.tokenizer, tmp_path / "saved")
    written = json.loads((tmp_path / "saved" / "config.json").read_text())
    written = written.get("text_config", written)

    theta = read_rope(read_config(source).to_dict()).theta
    assert (written["max_position_embeddings"], type(written["max_position_embeddings"])) == (WINDOW.target, int)
    assert written["original_max_position_embeddings"] == WINDOW.original
    if family not in PROPORTIONAL:  # of which there is no 4-era code, and whose layers do not share one entry
        assert written["rope_scaling"]["type"] == kind
    assert written["rope_theta"] == theta
    parameters = written["rope_parameters"].get("full_attention", written["rope_parameters"])
    assert parameters["rope_type"] == ("proportional" if family in PROPORTIONAL else kind)
    assert parameters["rope_theta"] == theta
    if "sliding_attention" in written["rope_parameters"]:
        own = read_config(source).get_text_config().rope_parameters["sliding_attention"]
        assert written["rope_parameters"]["sliding_attention"] == own
    # What transformers 5 makes of it says the same again, and the original window is still known.
    again = AutoConfig.from_pretrained(tmp_path / "saved").get_text_config()
    assert again.max_position_embeddings == WINDOW.target
    assert original_window(again) == WINDOW.original
    assert read_rope(again.to_dict()).theta == theta


@pytest.mark.parametrize("family", FAMILIES)
def test_with_rope_shares_every_parameter(family: str, checkpoint: Any) -> None:
    kind = kinds_of(family)[0]
    base = load_model(checkpoint(family)).model
    before, tables, config = far_logits(base), rotary_tables(base), base.config.to_dict()
    rebuilt = with_rope(base, INTERPOLATIONS[kind](), WINDOW)

    assert type(rebuilt) is type(base)
    ours = dict(rebuilt.named_parameters(remove_duplicate=False))
    theirs = dict(base.named_parameters(remove_duplicate=False))
    assert ours.keys() == theirs.keys()
    assert all(ours[name] is theirs[name] for name in ours)
    assert not any(buffer.is_meta for buffer in rebuilt.buffers())
    # The old model is as it was.
    assert torch.equal(far_logits(base), before)
    assert all(np.array_equal(table.inv_freq, tables[path].inv_freq) for path, table in rotary_tables(base).items())
    assert base.config.to_dict() == config


def test_none_leaves_the_model_alone(checkpoint: Any) -> None:
    folder = checkpoint("llama")
    plain: Any = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(far_logits(load_model(folder).model), far_logits(plain))


@pytest.mark.parametrize("kind", INTERPOLATIONS)
def test_every_interpolation_reaches_the_model(kind: str, checkpoint: Any) -> None:
    interpolation: Interpolation = INTERPOLATIONS[kind]()
    model = load_model(checkpoint("llama"), interpolation=interpolation, window=WINDOW).model
    far_logits(model)
    spec = read_rope(read_config(checkpoint("llama")).to_dict()).spec
    assert_same_table(global_table(model), interpolation.table(spec, WINDOW))


def test_gemma3_scales_global_layers_only(checkpoint: Any) -> None:
    base = rotary_tables(load_model(checkpoint("gemma3_text")).model)
    extended = rotary_tables(load_model(checkpoint("gemma3_text"), interpolation=YaRN(), window=WINDOW).model)
    local, whole = "model.rotary_emb.sliding_attention", "model.rotary_emb.full_attention"
    assert set(base) == set(extended) == {local, whole}
    assert np.array_equal(base[local].inv_freq, extended[local].inv_freq)
    assert extended[local].attention_factor == 1
    assert not np.allclose(base[whole].inv_freq, extended[whole].inv_freq)


def test_latent_attention_scale_follows_the_config_not_the_old_model(checkpoint: Any) -> None:
    """DeepSeek's attention takes its softmax scale from the rope's config when it is built."""
    interpolation = YaRN(mscale=1.0, mscale_all_dim=0.8)
    base = load_model(checkpoint("deepseek_v3"))
    loaded = load_model(checkpoint("deepseek_v3"), interpolation=interpolation, window=WINDOW)
    rebuilt: Any = with_rope(base.model, interpolation, WINDOW)
    wanted = 16**-0.5 * (0.1 * 0.8 * np.log(WINDOW.factor) + 1) ** 2
    assert rebuilt.model.layers[0].self_attn.scaling == pytest.approx(wanted)
    assert torch.equal(far_logits(rebuilt), far_logits(loaded.model))


def test_gptj_becomes_a_phi_of_the_same_function(checkpoint: Any) -> None:
    """GPT-J's own class, with its own hard-coded table, is the reference within its window."""
    original: Any = transformers.GPTJForCausalLM.from_pretrained(checkpoint("gptj"))
    converted = load_model(checkpoint("gptj")).model
    assert converted.config.model_type == "phi"
    torch.testing.assert_close(
        far_logits(converted, WINDOW.original), far_logits(original, WINDOW.original), rtol=1e-5, atol=1e-5
    )
    note = portability_note(converted.config)
    assert note is not None
    assert "Phi" in note
    assert portability_note(load_model(checkpoint("llama")).model.config) is None


def test_with_rope_keeps_dtype_mode_and_frequencies_in_float32(checkpoint: Any) -> None:
    base = load_model(checkpoint("gemma2"), dtype="bfloat16").model.train()
    rebuilt: Any = with_rope(base, YaRN(), WINDOW)
    assert rebuilt.training
    assert rebuilt.dtype == torch.bfloat16
    assert rebuilt.model.rotary_emb.inv_freq.dtype == torch.float32
    loaded = load_model(checkpoint("gemma2"), dtype="bfloat16", interpolation=YaRN(), window=WINDOW).model
    assert torch.equal(far_logits(rebuilt.eval()), far_logits(loaded))
    assert torch.get_default_dtype() == torch.float32


def test_dtype_and_attention(checkpoint: Any) -> None:
    folder = checkpoint("qwen2")
    assert load_model(folder, dtype=torch.float16).model.dtype == torch.float16
    assert load_model(folder, dtype="auto").model.dtype == torch.float32
    eager = load_model(folder, attention="eager").model
    assert eager.config._attn_implementation == "eager"
    assert with_rope(eager, YaRN(), WINDOW).config._attn_implementation == "eager"


def test_tokenizer_reads_up_to_the_new_window(checkpoint: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint("llama"), tmp_path / "short")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.model_max_length = WINDOW.original
    tokenizer.save_pretrained(folder)
    extended = load_model(folder, interpolation=YaRN(), window=WINDOW)
    save_model(extended.model, extended.tokenizer, tmp_path / "saved")
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").model_max_length == WINDOW.target


def test_loading_and_saving_print_nothing(checkpoint: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    level = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    loaded = load_model(checkpoint("gptj"), interpolation=YaRN(), window=WINDOW)
    save_model(loaded.model, loaded.tokenizer, tmp_path / "saved")
    assert capfd.readouterr() == ("", "")
    assert transformers.logging.get_verbosity() == level
    assert transformers.logging.is_progress_bar_enabled() == bars


def test_save_into_an_existing_folder_keeps_other_files(checkpoint: Any, tmp_path: Path) -> None:
    loaded = load_model(checkpoint("llama"))
    (tmp_path / "skipwise.json").write_text("{}")
    save_model(loaded.model, loaded.tokenizer, tmp_path)
    assert (tmp_path / "skipwise.json").exists()
    assert torch.equal(far_logits(load_model(tmp_path).model), far_logits(loaded.model))


def test_an_interrupted_save_leaves_no_folder(checkpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_model(checkpoint("llama"))

    def full_disk(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(type(loaded.tokenizer), "save_pretrained", full_disk)
    with pytest.raises(CheckpointError, match="No space left"):
        save_model(loaded.model, loaded.tokenizer, tmp_path / "deep" / "saved")
    assert list((tmp_path / "deep").iterdir()) == []
