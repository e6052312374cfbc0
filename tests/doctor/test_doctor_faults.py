"""The preflight goes red, with the right verdict, on every kind of fault."""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from doctor_models import (
    FAMILIES,
    FAR,
    FAULTS,
    WINDOW,
    build,
    change_decoder_inputs,
    checkpoint_probes,
    config_of,
    examine,
    extended,
    failures,
    layer_probe,
    lines,
)
from tiny_models import LATENT, SHARP, tiny_config
from transformers import AutoTokenizer, PreTrainedModel

from skipwise import cli
from skipwise.doctor import Verdict, require_healthy
from skipwise.doctor.bench import Bench, undisturbed
from skipwise.errors import CheckpointError, UnsupportedModelError
from skipwise.model import load_model, rotary_tables, save_model, with_rope
from skipwise.model.extend import extended_config
from skipwise.rope import NTK, Interpolation, Linear, YaRN
from skipwise.window import Window


def test_a_fault_that_only_mixed_precision_has_is_red() -> None:
    def isolating_in_16_bits(_: dict[str, Any]) -> dict[str, Any]:
        return {"attention_mask": None} if torch.is_autocast_enabled("cpu") else {}

    model = change_decoder_inputs(extended(), isolating_in_16_bits)
    assert not failures(examine(model, check_reload=False))
    verdicts = examine(model, mixed_precision=torch.bfloat16, check_reload=False)
    assert failures(verdicts) >= {"reach", "layers"}, lines(verdicts)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "mixtral"])
def test_isolated_chunks_are_red(family: str, attention: str) -> None:
    model = change_decoder_inputs(extended(family, attention=attention), lambda _: {"attention_mask": None})
    verdicts = examine(model, check_reload=False)
    assert failures(verdicts) == {"reach", "layers", "positions"}, lines(verdicts)
    assert "do not see each other" in verdicts["reach"].cure
    assert "would isolate the chunks" in verdicts["mask"].detail


def isolate(module: torch.nn.Module) -> None:
    """Hides chunk one from chunk two in one attention module, whatever mask the others get."""

    def change(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], Any]:
        n = kwargs["hidden_states"].shape[1]
        seen = torch.ones(n, n, dtype=torch.bool).tril()
        seen[n // 2 :, : n // 2] = False
        mask = torch.zeros(1, 1, n, n).masked_fill(~seen, torch.finfo(torch.float32).min)
        return args, kwargs | {"attention_mask": mask}

    module.register_forward_pre_hook(change, with_kwargs=True)


@pytest.mark.parametrize(
    ("isolated", "attention", "checkpointing"),
    [((2,), "eager", False), ((2,), "sdpa", True), ((1, 2, 3), "eager", True), ((1, 2, 3), "sdpa", False)],
)
def test_isolated_layers_among_others_are_red(isolated: tuple[int, ...], attention: str, checkpointing: bool) -> None:
    model = with_rope(build(config_of(num_hidden_layers=4), attention), YaRN(), WINDOW)
    modules = [f"model.layers.{layer}.self_attn" for layer in isolated]
    for path in modules:
        isolate(model.get_submodule(path))
    verdicts = examine(model, check_reload=False, gradient_checkpointing=checkpointing)
    assert failures(verdicts) == {"layers"}, lines(verdicts)
    assert f"{len(isolated)} of 4" in verdicts["layers"].detail
    assert verdicts["layers"].detail.endswith(", ".join(modules))


# Families whose layers differ in what the probe of layers looks at: other parts beside attention, other ways to make
# keys and values, other names.
MIXING: dict[str, tuple[str, dict[str, Any]]] = {
    "recurrence in parallel": (
        "falcon_h1",
        {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_state": 8, "mamba_expand": 1},
    ),
    "convolution below": ("lfm2", {"layer_types": ["conv", "full_attention"]}),
    "latent": ("deepseek_v3", LATENT | {"first_k_dense_replace": 2}),
    "keys of an earlier layer": (
        "gemma3n_text",
        {
            "head_dim": 16,
            "layer_types": ["full_attention", "full_attention"],
            "num_kv_shared_layers": 1,
            "vocab_size_per_layer_input": 257,
            "hidden_size_per_layer_input": 8,
            "laurel_rank": 4,
            "altup_num_inputs": 2,
            "activation_sparsity_pattern": [0.0, 0.0],
        },
    ),
}


def probe_layers(model: PreTrainedModel, *, checkpointing: bool = False) -> Verdict:
    with undisturbed(model, gradient_checkpointing=checkpointing):
        return layer_probe.layers(Bench(model, WINDOW, YaRN(), None, seed=0))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", MIXING)
def test_each_layer_is_found_in_other_architectures(family: str, checkpointing: bool) -> None:
    model_type, settings = MIXING[family]
    model = build(tiny_config(model_type, **SHARP | settings))
    verdict = probe_layers(model, checkpointing=checkpointing)
    assert verdict.status == "pass", verdict.line
    assert "was found in" not in verdict.detail
    isolate(model.get_submodule("model.layers.1.self_attn"))
    verdict = probe_layers(model, checkpointing=checkpointing)
    assert verdict.status == "fail", verdict.line
    assert verdict.detail.endswith("hide chunk one: model.layers.1.self_attn")


def test_what_cannot_be_told_apart_is_probed_as_a_whole_or_said(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(config_of())
    takes_mask, without = layer_probe._takes_mask, set[torch.nn.Module]()
    monkeypatch.setattr(layer_probe, "_takes_mask", lambda module: module not in without and takes_mask(module))

    without.add(model.get_submodule("model.layers.1.self_attn"))
    assert "was found in" not in probe_layers(model).detail
    isolate(model.get_submodule("model.layers.1.self_attn"))
    assert probe_layers(model).detail.endswith("hide chunk one: model.layers.1")

    without.add(model.get_submodule("model.layers.1"))
    verdict = probe_layers(model)
    assert verdict.status == "pass"
    assert verdict.detail.endswith("was found in model.layers.1")

    without.update(model.modules())
    verdict = probe_layers(model)
    assert verdict.status == "note"
    assert "reach" in verdict.detail


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_the_model_is_red(name: str) -> None:
    make, failing, said = FAULTS[name]
    verdicts = examine(make(), window=FAR if name == "positions in 16 bits" else WINDOW)
    assert failures(verdicts) == {*failing}, lines(verdicts)
    assert said in verdicts[failing[0]].line


@pytest.mark.parametrize("interpolation", [YaRN(), NTK(), Linear()])
@pytest.mark.parametrize(
    ("too_late", "failing", "said"),
    [
        (True, {"tables", "reload"}, "did not reach"),
        (False, {"tables"}, "max_position_embeddings 64 instead of 512"),
    ],
)
def test_scaling_set_too_late_or_never_is_red(
    too_late: bool, failing: set[str], said: str, interpolation: Interpolation
) -> None:
    model = build(config_of())
    if too_late:
        model.config = model.model.config = extended_config(model.config, interpolation, WINDOW)
    verdicts = examine(model, interpolation)
    assert failures(verdicts) == failing, lines(verdicts)
    assert said in verdicts["tables"].line


def test_checkpointing_that_loses_the_gradient_is_red(monkeypatch: pytest.MonkeyPatch) -> None:
    model = extended()
    monkeypatch.setattr(
        model,
        "gradient_checkpointing_enable",
        lambda _: model._set_gradient_checkpointing(
            gradient_checkpointing_func=lambda layer, *inputs: torch.no_grad()(layer)(*inputs)
        ),
    )
    assert not failures(examine(model))
    assert failures(examine(model, gradient_checkpointing=True)) == {"reach", "layers"}


def test_a_checkpoint_that_loses_its_base_is_red(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = extended()

    def save_without_theta(model: Any, tokenizer: Any, folder: str, **how: Any) -> None:
        save_model(model, tokenizer, folder, **how)
        path = Path(folder) / "config.json"
        saved = json.loads(path.read_text())
        for place in (saved, saved["rope_parameters"], saved["rope_scaling"]):
            place.pop("rope_theta")
        path.write_text(json.dumps(saved))

    monkeypatch.setattr(checkpoint_probes, "save_model", save_without_theta)
    verdicts = examine(model, tokenizer=AutoTokenizer.from_pretrained(tiny_checkpoint))
    assert failures(verdicts) == {"reload"}, lines(verdicts)
    assert "rope_theta" in verdicts["reload"].cure


@pytest.mark.parametrize("limit_bytes", [10**9, 1000])
def test_legacy_keys_that_say_otherwise_are_red(
    limit_bytes: int, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_model(tiny_checkpoint, interpolation=YaRN(), window=WINDOW)
    saving = importlib.import_module("skipwise.model.save")
    own = saving.with_both_eras

    def with_another_factor(config: dict[str, Any]) -> dict[str, Any]:
        written = own(config)
        return {**written, "rope_scaling": {**written["rope_scaling"], "factor": 2.0}}

    monkeypatch.setattr(saving, "with_both_eras", with_another_factor)
    monkeypatch.setattr(checkpoint_probes, "_RELOAD_LIMIT_BYTES", limit_bytes)
    verdicts = examine(loaded.model, tokenizer=loaded.tokenizer)
    assert failures(verdicts) == {"reload"}, lines(verdicts)
    assert ("1 of 2 layers" in verdicts["reload"].detail) == (limit_bytes == 1000)


@pytest.mark.parametrize(("original", "worrying"), [(64, False), (2**21, True)])
def test_the_float32_angle_error_is_stated(original: int, worrying: bool) -> None:
    # A factor of 1.5, so that the fastest pair does not turn by one radian exactly.
    window = Window(train=64, original=original, target=3 * original // 2)
    model = with_rope(build(config_of(max_position_embeddings=original)), Linear(), window)
    verdict = examine(model, Linear(), window)["precision"]
    table = rotary_tables(model)["model.rotary_emb"].inv_freq
    last = np.arange(max(0, window.target - 256), window.target)[:, None]
    rounded = last.astype(np.float32) * table.astype(np.float32)
    error = np.abs(rounded.astype(np.float64) - last * table).max()
    assert f"off by up to {error:.2g} rad up to position {window.target - 1}" in verdict.detail
    assert (error > 0.05) == worrying == bool(verdict.cure)
    assert verdict.status == "note"


def test_require_healthy_lists_what_failed_in_one_line() -> None:
    good = Verdict(name="reach", status="pass", detail="sees")
    note = Verdict(name="precision", status="note", detail="fine")
    require_healthy([good, note])
    bad = [
        Verdict(name=name, status="fail", detail=f"{name} broke", cure=f"mend {name}") for name in ("tables", "loss")
    ]
    with pytest.raises(UnsupportedModelError, match=r"2 of 4.*tables broke.*mend tables.*loss broke") as error:
        require_healthy([good, note, *bad])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_without_a_tokenizer_is_probed(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Gemma 2 caps its attention scores, which sdpa cannot.
    attention = "eager" if family == "gemma2" else "sdpa"
    build(config_of(family), attention).save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*token*"))
    how = ["--target", str(WINDOW.target), "--window", str(WINDOW.train), "--interpolation", "ntk"]
    how += ["--attention", attention]
    assert cli.main(["doctor", str(tmp_path), *how]) == 0
    printed = capsys.readouterr().out
    assert "note  tokenizer" in printed
    assert "fail" not in printed
    assert cli.main(["doctor", str(tmp_path)]) == 0
    assert "note  tokenizer" in capsys.readouterr().out
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        load_model(tmp_path)
