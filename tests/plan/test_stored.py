"""What a plan says of checkpoints in fewer bits."""

import shutil
from pathlib import Path

import pytest
from quantized_checkpoints import set_config, write_fp8
from safetensors.torch import load_file

from skipwise.plan import plan
from skipwise.plan.as_json import plan_json
from skipwise.report.quantities import bytes_text


def test_figures_are_of_dequantized_weights_and_the_real_bytes_are_said(tiny_checkpoint: Path, tmp_path: Path) -> None:
    write_fp8(tiny_checkpoint, tmp_path / "fp8")
    real = sum(tensor.nbytes for tensor in load_file(tmp_path / "fp8" / "model.safetensors").values())
    plain, packed = (plan(str(folder), target=256) for folder in (tiny_checkpoint, tmp_path / "fp8"))
    assert packed.training == plain.training
    assert [one.weight_bytes for one in packed.serving] == [one.weight_bytes for one in plain.serving]
    said = plan_json(packed)["stored"]
    assert said == {"method": "fp8", "is_trainable": True, "weight_bytes": real}
    assert plan_json(plain)["stored"] is None
    (words,) = [words for words in packed.advice.words if "stored as fp8" in words]
    assert bytes_text(real) in words
    assert "dequantized" in words


@pytest.mark.parametrize("method", ["gptq", "mxfp4"])
def test_a_config_alone_says_no_bytes(method: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_checkpoint / "config.json", tmp_path)
    set_config(tmp_path, {"quant_method": method})
    made = plan(str(tmp_path), target=256)
    stored = made.shape.stored
    assert stored is not None
    assert (stored.method, stored.is_trainable, stored.weight_bytes) == (method, method == "mxfp4", None)
    (words,) = [words for words in made.advice.words if f"stored as {method}. No figure" in words]
    assert ("cannot be trained" in words) == (method == "gptq")
