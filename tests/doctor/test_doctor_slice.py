"""The preflight on a slice: sound models pass, and faults of the slice and of the whole model's tables are found."""

import importlib
import importlib.util
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from doctor_models import WINDOW, failures, lines
from slices import LAYERED
from tiny_models import SHARP, save_tiny, tiny_config, tiny_model
from transformers.models.gemma3.modeling_gemma3 import Gemma3Attention
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.smollm3.modeling_smollm3 import SmolLM3Attention

from skipwise import cli
from skipwise.config import QloraTuning
from skipwise.doctor import Verdict, doctor, doctor_of_slice
from skipwise.model import four_bits
from skipwise.rope import Interpolation, YaRN

preflight = importlib.import_module("skipwise.doctor")


def examine(folder: Path, interpolation: Interpolation | None = None, **how: Any) -> dict[str, Verdict]:
    return {verdict.name: verdict for verdict in doctor_of_slice(folder, WINDOW, interpolation or YaRN(), **how)}


@pytest.mark.parametrize("name", LAYERED)
def test_a_sound_slice_passes_and_says_what_it_is(name: str, tmp_path: Path) -> None:
    case = LAYERED[name]
    save_tiny(tmp_path, case.config)
    # Layers that attend locally would attend to all under the mask of dilution.
    dilution = "sliding_attention" not in case.told
    verdicts = examine(tmp_path, case.interpolation, gradient_checkpointing=True, check_dilution=dilution)
    assert not failures(verdicts), lines(verdicts)
    assert verdicts["slice"].status == "note"
    count = case.config.get_text_config().num_hidden_layers
    assert verdicts["slice"].detail.startswith(f"{case.num_layers} of {count} layers were run ({case.told});")
    assert verdicts["whole"].status == "pass"
    assert verdicts["reload"].status == "pass"
    assert ("dilution" in verdicts) == dilution


def test_a_wrong_table_of_the_whole_is_found_though_the_slice_is_sound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = LlamaRotaryEmbedding.__init__

    def unscaled_when_deep(self: Any, config: Any, *more: Any, **how: Any) -> None:
        own(self, config, *more, **how)
        if config.num_hidden_layers > 2:
            self.inv_freq[-1] *= 1.01

    save_tiny(tmp_path, LAYERED["alike"].config)
    monkeypatch.setattr(LlamaRotaryEmbedding, "__init__", unscaled_when_deep)
    verdicts = examine(tmp_path)
    assert failures(verdicts) == {"whole"}, lines(verdicts)
    assert "model.rotary_emb is off by" in verdicts["whole"].detail


@pytest.mark.parametrize(
    ("name", "attention", "is_broken", "broken"),
    [
        ("sliding", Gemma3Attention, lambda module: not module.is_sliding, [5]),
        ("sliding", Gemma3Attention, lambda module: module.is_sliding, [0, 1, 2, 3, 4]),
        ("without positions", SmolLM3Attention, lambda module: not module.use_rope, [3]),
    ],
)
def test_a_kind_of_layer_that_hides_the_first_chunk_is_found(
    name: str, attention: Any, is_broken: Any, broken: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = attention.forward

    def forward(self: Any, hidden_states: torch.Tensor, *inputs: Any, **how: Any) -> Any:
        if is_broken(self):
            n = hidden_states.shape[1]
            seen = torch.ones(n, n, dtype=torch.bool).tril()
            seen[n // 2 :, : n // 2] = False
            how["attention_mask"] = torch.zeros(1, 1, n, n).masked_fill(~seen, torch.finfo(torch.float32).min)
        return own(self, hidden_states, *inputs, **how)

    forward.__signature__ = importlib.import_module("inspect").signature(own)  # pyright: ignore
    save_tiny(tmp_path, LAYERED[name].config)
    monkeypatch.setattr(attention, "forward", forward)
    verdicts = examine(tmp_path, check_reload=False)
    assert failures(verdicts) >= {"layers"}, lines(verdicts)
    named = ", ".join(f"model.layers.{layer}.self_attn" for layer in broken[:4])
    assert f"hide chunk one: {named}" in verdicts["layers"].detail


def test_a_model_without_a_slice_is_probed_whole(tiny_checkpoint: Path) -> None:
    verdicts = examine(tiny_checkpoint)
    assert not failures(verdicts), lines(verdicts)
    assert "whole" not in verdicts
    assert verdicts["slice"].detail.startswith("the whole model was run, since ")


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="the package is not installed")
def test_a_slice_in_four_bits_is_sound(tmp_path: Path) -> None:
    save_tiny(tmp_path, tiny_config("llama", **SHARP, num_hidden_layers=5, intermediate_size=64))
    quantization = four_bits(QloraTuning(), torch.device("cpu"), compute=torch.float32)
    verdicts = examine(tmp_path, quantization=quantization, gradient_checkpointing=True)
    assert not failures(verdicts), lines(verdicts)
    assert verdicts["slice"].detail.startswith("2 of 5 layers were run")


def test_the_slice_is_probed_as_the_whole_would_be_and_freed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[dict[str, Any]] = []
    models: list[Any] = []

    def probe(model: Any, window: Any, interpolation: Any, **how: Any) -> list[Verdict]:
        models.append(weakref.ref(model))
        config = model.config.to_dict()
        del config["num_hidden_layers"]
        settings = {"dtype": model.dtype, "attention": model.config._attn_implementation, "device": model.device}
        how |= {"tokenizer": type(how["tokenizer"]), "window": window, "interpolation": interpolation}
        calls.append(config | settings | how)
        return []

    save_tiny(tmp_path / "model", LAYERED["alike"].config)
    for place in ("skipwise.train.preflight", "skipwise.doctor"):
        monkeypatch.setattr(importlib.import_module(place), "doctor", probe)
    command = ["doctor", str(tmp_path / "model"), "--target", "512", "--set", "attention=eager", "--set", "seed=3"]
    command += ["--set", "dtype=bfloat16", "--set", "training.gradient_checkpointing=true", "--set", "dilution=true"]
    assert cli.main(command) == 0
    assert cli.main([*command, "--slice"]) == 0
    assert "note  slice      2 of 5 layers were run (2 of 5 alike)" in capsys.readouterr().out
    assert calls[0] == calls[1]
    assert (calls[0]["attention"], calls[0]["dtype"], calls[0]["seed"]) == ("eager", torch.bfloat16, 3)
    assert models[1]() is None


def test_a_missing_tokenizer_is_told_beside_the_slice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_model(LAYERED["alike"].config).save_pretrained(tmp_path)
    assert cli.main(["doctor", str(tmp_path), "--target", "512", "--slice"]) == 0
    out = capsys.readouterr().out
    assert "pass  whole" in out
    assert "note  tokenizer" in out


def test_a_slice_is_of_a_model_that_is_probed(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more, told in ([], "target"), (["--target", "256", "--data", "docs/"], "--slice is for probing a model"):
        assert cli.main(["doctor", str(tiny_checkpoint), "--slice", *more]) == 2
        assert told in capsys.readouterr().err


def test_the_verdicts_on_a_slice_are_those_on_that_model(tmp_path: Path) -> None:
    case = LAYERED["sliding"]
    save_tiny(tmp_path, case.config)
    sliced = preflight.load_slice(tmp_path, interpolation=YaRN(), window=WINDOW)
    expected = doctor(sliced.model, WINDOW, YaRN(), tokenizer=sliced.tokenizer)
    assert doctor_of_slice(tmp_path, WINDOW, YaRN())[: len(expected)] == expected
