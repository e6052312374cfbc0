"""Checkpoints in fewer bits: their numbers, by plain loops, are what is loaded, and what is saved afterwards."""

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from quantized_checkpoints import set_config, write_bitsandbytes, write_compressed_tensors, write_fp8, write_mxfp4
from refusals import refused
from safetensors.torch import load_file, save_file
from tiny_models import FAMILIES, GEMMA4, save_tiny, tiny_config, tiny_model
from transformers import AutoModelForCausalLM
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from skipwise.errors import CheckpointError, ConfigError, UnsupportedModelError
from skipwise.model import check_saved, check_trainable, load_model, read_config, save_model, stored_weights
from skipwise.model.saved import first_layers, layers_to_reread, wrongly_saved


def check_plain(source: Path, meant: dict[str, torch.Tensor], saved: Path) -> None:
    """Loads, saves, and holds what any reader finds then against the numbers that are meant."""
    check_trainable(source, read_config(source))
    model, tokenizer = load_model(source)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    save_model(model, tokenizer, saved)
    assert "quantization_config" not in json.loads((saved / "config.json").read_text())
    written = load_file(saved / "model.safetensors")
    assert {name: tensor.dtype for name, tensor in written.items()} == dict.fromkeys(meant, torch.float32)
    for name, weight in meant.items():
        torch.testing.assert_close(written[name], weight, rtol=1e-6, atol=0, msg=name)
    again: Any = AutoModelForCausalLM.from_pretrained(saved)
    for name, parameter in model.named_parameters():
        assert torch.equal(again.get_parameter(name), parameter), name


# Of a mixture the library joins the experts while it loads, and saves them one by one. It takes 48 rows in blocks of 32
# for two of 24, and refuses them in blocks of 20.
@pytest.mark.parametrize("block", [16, 20, 32])
@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_fp8_is_saved_as_the_numbers_it_stands_for(family: str, block: int, checkpoint: Any, tmp_path: Path) -> None:
    meant = write_fp8(checkpoint(family), tmp_path / "fp8", block)
    check_plain(tmp_path / "fp8", meant, tmp_path / "saved")


def test_mxfp4_is_saved_as_the_numbers_it_stands_for(tmp_path: Path) -> None:
    config = tiny_config("gpt_oss", head_dim=16, num_hidden_layers=1, intermediate_size=32, num_local_experts=2)
    plain = save_tiny(tmp_path / "plain", config, dtype=torch.float32)
    meant = write_mxfp4(plain, tmp_path / "mxfp4")
    check_plain(tmp_path / "mxfp4", meant, tmp_path / "saved")


@pytest.mark.skipif(importlib.util.find_spec("compressed_tensors") is None, reason="the package is not installed")
def test_compressed_tensors_are_saved_as_the_numbers_they_stand_for(tiny_checkpoint: Path, tmp_path: Path) -> None:
    meant = write_compressed_tensors(tiny_checkpoint, tmp_path / "packed")
    check_plain(tmp_path / "packed", meant, tmp_path / "saved")


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_bitsandbytes_is_saved_as_the_numbers_it_stands_for(
    bits: int, checkpoint_of_blocks: Path, tmp_path: Path
) -> None:
    meant = write_bitsandbytes(checkpoint_of_blocks, tmp_path / "packed", bits)
    check_plain(tmp_path / "packed", meant, tmp_path / "saved")


@pytest.mark.parametrize("method", sorted({*AUTO_QUANTIZATION_CONFIG_MAPPING, "modelopt"} - {"gguf"}))
def test_every_format_of_the_library_is_trained_or_refused_in_one_line(
    method: str, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    name, _, bits = method.partition("_") if method.startswith("bits") else (method, "", "")
    set_config(folder, {"quant_method": name, **({f"load_in_{bits}": True} if bits else {})})
    config = read_config(folder)
    if method in ("fp8", "mxfp8", "mxfp4", "metal", "compressed-tensors", "bitsandbytes_4bit", "bitsandbytes_8bit"):
        check_trainable(folder, config)
        return
    with refused(ConfigError, method) as caught:
        check_trainable(folder, config)
    assert ("unpack_checkpoint" in str(caught.value)) == (method in ("gptq", "awq"))


def test_a_missing_package_is_said_before_weights_are_read(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    set_config(folder, {"quant_method": "compressed-tensors"})
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="compressed-tensors"):
        check_trainable(folder, read_config(folder))


def test_weights_are_counted_once_and_not_by_what_stands_for_them(tiny_checkpoint: Path, tmp_path: Path) -> None:
    write_fp8(tiny_checkpoint, tmp_path)
    config, file = read_config(tmp_path), tmp_path / "model.safetensors"
    real = sum(tensor.nbytes for tensor in load_file(file).values())
    shutil.copy(file, tmp_path / "consolidated.safetensors")
    assert stored_weights(tmp_path, config) == ("fp8", True, real)
    (tmp_path / "model-00001-of-00002.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4999819336\n"
    )
    assert stored_weights(tmp_path, config) == ("fp8", True, None)


def test_packed_weights_that_nobody_could_read_are_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    write_fp8(tiny_checkpoint, tmp_path / "fp8")
    set_config(tmp_path / "fp8", {"quant_method": "modelopt"})
    with pytest.raises(UnsupportedModelError, match="modelopt"):
        load_model(tmp_path / "fp8")
    shutil.copy(tiny_checkpoint / "config.json", tmp_path / "fp8")
    with pytest.raises(CheckpointError, match=r"weight_scale_inv.*quantization_config"):
        load_model(tmp_path / "fp8")


def test_what_is_saved_is_read_again(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model, tokenizer = load_model(tiny_checkpoint)
    save_model(model, tokenizer, tmp_path)
    check_saved(model, tmp_path)
    file, name = tmp_path / "model.safetensors", "model.layers.1.mlp.up_proj.weight"
    weights = load_file(file)
    weights[name][3, 5] += 1e-3
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match=f"{name} by 0.001"):
        check_saved(model, tmp_path)
    del weights[name]
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match=f"{name} by inf"):
        check_saved(model, tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_some_layers_of_every_family_can_be_read_again(family: str, checkpoint: Any, tmp_path: Path) -> None:
    model, _ = load_model(checkpoint(family))
    some = first_layers(model, layers_to_reread(model, limit_bytes=1))
    assert len(some) < len(model.state_dict())
    save_model(model, None, tmp_path, state_dict=dict(some))
    assert wrongly_saved(model, tmp_path, 1) == {}
    name = next(name for name in some if "layers.0." in name)
    with torch.no_grad():
        some[name].add_(1)
    assert set(wrongly_saved(model, tmp_path, 1)) == {name}


@pytest.mark.parametrize("family", ["gemma4_text", "gemma3n_text"])
def test_some_layers_of_a_model_whose_last_share_keys_can_be_read_again(family: str, tmp_path: Path) -> None:
    layers: dict[str, Any] = {"num_hidden_layers": 6, "layer_types": GEMMA4["layer_types"] * 3}
    config = tiny_config(family, **GEMMA4 | layers, num_kv_shared_layers=3)
    if family == "gemma3n_text":
        config.activation_sparsity_pattern, config.intermediate_size = [0.0] * 6, [48] * 6
    model = tiny_model(config, dtype=torch.float32)
    save_model(model, None, tmp_path)
    assert [wrongly_saved(model, tmp_path, num_layers) for num_layers in range(1, 7)] == [{}] * 6
