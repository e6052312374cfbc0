"""Runs over checkpoints in fewer bits: what they leave is plain, and is the numbers that were trained over."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from quantized_checkpoints import set_config, write_fp8
from refusals import refused
from safetensors.torch import load_file, save_file
from tiny_runs import run
from transformers import AutoModelForCausalLM

from skipwise import cli
from skipwise.errors import CheckpointError, ConfigError
from skipwise.model import save_model


def test_what_is_left_of_fp8_is_the_dequantized_numbers_and_what_was_trained(
    settings: dict[str, Any], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    meant = write_fp8(tiny_checkpoint, tmp_path / "fp8")
    tuning = {"kind": "lora", "rank": 2, "target_modules": ["q_proj"], "train_norms": False, "train_embeddings": False}
    result = run(settings, model=str(tmp_path / "fp8"), tuning=tuning)
    left: Any = AutoModelForCausalLM.from_pretrained(result.folder)
    for name, weight in meant.items():
        difference = (left.get_parameter(name) - weight).abs().max()
        assert difference > 1e-4 if "q_proj" in name else difference < 1e-7, name
    (verdict,) = [verdict for verdict in result.verdicts if verdict.name == "reload"]
    assert verdict.status == "pass"
    assert "weights are the same" in verdict.detail


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_what_cannot_be_trained_is_refused_before_weights_are_read(
    method: str,
    settings: dict[str, Any],
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("weights were read"))
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "packed")
    set_config(folder, {"quant_method": method, "bits": 4, "group_size": 128})
    with refused(ConfigError, f"{method}.*unpack_checkpoint") as caught:
        run(settings, model=str(folder))
    assert not Path(settings["output"]).exists()
    assert cli.main(["doctor", str(folder), "--target", "256"]) == 2
    assert str(caught.value) in capsys.readouterr().err


@pytest.mark.usefixtures("sound_model")
def test_a_run_that_saves_other_weights_than_it_trained_says_so(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def save_other(model: Any, tokenizer: Any, folder: Path) -> None:
        save_model(model, tokenizer, folder)
        weights = load_file(folder / "model.safetensors")
        weights["model.norm.weight"] = weights["model.norm.weight"] + torch.eye(32)[0]
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    monkeypatch.setattr("skipwise.train.delivery.save_model", save_other)
    with pytest.raises(CheckpointError, match=r" model\.norm\.weight by 1;"):
        run(settings, training={"max_steps": 1})
