"""GPTQ and AWQ checkpoints: the command that a refusal names leaves the numbers that plain loops read."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from quantized_checkpoints import set_config, write_awq, write_fp8, write_gptq
from refusals import run_cure
from safetensors.torch import load_file, save_file

from skipwise.errors import CheckpointError, ConfigError
from skipwise.model import check_trainable, load_model, read_config, unpack, unpack_checkpoint

FORMATS: dict[str, Callable[[Path, Path], dict[str, torch.Tensor]]] = {
    "awq": write_awq,
    **{
        f"{version} of {bits} bits": partial(write_gptq, bits=bits, version=version)
        for version in ("gptq", "gptq_v2")
        for bits in (2, 4, 8)
    },
}


@pytest.mark.parametrize("packing", FORMATS)
def test_what_a_refusal_says_to_run_leaves_the_numbers_that_are_meant(
    packing: str, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meant = FORMATS[packing](tiny_checkpoint, tmp_path / "packed")
    with pytest.raises(ConfigError) as refused:
        check_trainable(tmp_path / "packed", read_config(tmp_path / "packed"))
    monkeypatch.setattr(unpack, "_SHARD_BYTES", 50_000)
    plain = run_cure(refused.value, tmp_path, monkeypatch)
    assert len(list(plain.glob("*.safetensors"))) > 1
    check_trainable(plain, read_config(plain))
    model, tokenizer = load_model(plain)
    assert tokenizer.encode("a") == load_model(tiny_checkpoint).tokenizer.encode("a")
    for name, weight in meant.items():
        torch.testing.assert_close(model.get_parameter(name).data, weight, rtol=1e-6, atol=0, msg=name)


def test_what_cannot_be_unpacked_is_refused_in_one_line(tiny_checkpoint: Path, tmp_path: Path) -> None:
    write_fp8(tiny_checkpoint, tmp_path / "fp8")
    with pytest.raises(ConfigError, match="fp8"):
        unpack_checkpoint(tmp_path / "fp8", tmp_path / "new")
    write_gptq(tiny_checkpoint, tmp_path / "gptq")
    with pytest.raises(ConfigError, match=str(tmp_path / "fp8")):
        unpack_checkpoint(tmp_path / "gptq", tmp_path / "fp8")
    set_config(tmp_path / "gptq", {"quant_method": "awq"})
    with pytest.raises(CheckpointError, match=r"_proj.*AWQ"):
        unpack_checkpoint(tmp_path / "gptq", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    file = tmp_path / "gptq" / "model.safetensors"
    save_file({name: tensor[:0] if "qzeros" in name else tensor for name, tensor in load_file(file).items()}, file)
    set_config(tmp_path / "gptq", {"quant_method": "gptq"})
    with pytest.raises(CheckpointError, match="_proj"):
        unpack_checkpoint(tmp_path / "gptq", tmp_path / "new")
