"""What `skipwise.model._transformers` takes for granted of the library, asked of the library itself."""

import inspect
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from quantized_checkpoints import write_fp8
from safetensors.torch import load_file
from tiny_models import byte_tokenizer, family_config, tiny_model
from transformers import AttentionInterface, AutoModelForCausalLM, FineGrainedFP8Config, PreTrainedModel, Trainer
from transformers.distributed import DistributedConfig
from transformers.integrations import finegrained_fp8
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from skipwise.model import _transformers

IDS = torch.arange(8)[None]


def test_a_config_names_the_attention_of_its_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(family_config("gemma3"), attn_implementation="eager")
    parts = (model.config, model.config.text_config, model.config.vision_config)
    assert [_transformers.attention_of(config) for config in parts] == ["eager"] * 3
    calls: list[Any] = []

    def counted(*inputs: Any, **how: Any) -> Any:
        calls.append(how)
        return sdpa_attention_forward(*inputs, **how)

    monkeypatch.setitem(AttentionInterface._global_mapping, "counted", counted)
    _transformers.set_attention(model.config, "counted")
    assert [_transformers.attention_of(config) for config in parts] == ["counted"] * 3
    model(input_ids=IDS)
    assert len(calls) == model.config.text_config.num_hidden_layers, "a built model asks its config in each layer"


def test_kernels_are_copied_for_one_config_alone() -> None:
    model = tiny_model(family_config("gemma3"), attn_implementation="eager", experts_implementation="eager")
    copied = type(model.config).from_dict(model.config.to_dict())
    assert "eager" not in (copied._attn_implementation, copied._experts_implementation), "nothing to copy any more"
    _transformers.copy_kernels(model.config, copied)
    assert (copied._attn_implementation, copied._experts_implementation) == ("eager", "eager")
    assert copied.text_config._attn_implementation != "eager"


def test_modules_that_stay_in_float32_are_named_by_the_class(monkeypatch: pytest.MonkeyPatch) -> None:
    assert PreTrainedModel._keep_in_fp32_modules is None
    model = tiny_model(family_config("llama"))
    assert _transformers.kept_in_float32(model) == []
    monkeypatch.setattr(type(model), "_keep_in_fp32_modules", ["down_proj"])
    half = tiny_model(family_config("llama"), dtype=torch.float16)
    assert _transformers.kept_in_float32(half) == ["down_proj"]


def test_saving_runs_the_conversions_of_loading_in_reverse_unless_forgotten(checkpoint: Any, tmp_path: Path) -> None:
    write_fp8(checkpoint("llama"), tmp_path / "fp8")
    settings = FineGrainedFP8Config(weight_block_size=(16, 16), dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "fp8", quantization_config=settings, dtype=torch.float32)
    assert model._weight_conversions, "recorded under this name"
    _transformers.forget_conversions(model)
    model.save_pretrained(tmp_path / "saved")
    plain, saved = (load_file(folder / "model.safetensors") for folder in (checkpoint("llama"), tmp_path / "saved"))
    assert saved.keys() == plain.keys()


def test_the_library_reads_rows_and_asks_who_saves() -> None:
    """By the names that a split model depends on; `tests/train/test_fsdp.py` says what they do."""
    assert {"fsdp_size", "fsdp_plan"} <= set(inspect.signature(DistributedConfig).parameters)
    assert [*inspect.signature(PreTrainedModel.should_save_on_this_rank).parameters] == ["self", "is_main_process"]
    assert "self.is_distributed_loading_by_transformers = " in inspect.getsource(Trainer.__init__)


def test_partial_blocks_are_still_misread_by_the_library() -> None:
    """Where this fails, the library has mended it, and `uneven_blocks_dequantized` can go."""
    operation = finegrained_fp8.Fp8Dequantize(
        type("Quantizer", (), {"quantization_config": type("Settings", (), {"weight_block_size": (2, 2)})})
    )
    weight = torch.ones(3, 2, dtype=torch.float8_e4m3fn)
    scales = torch.tensor([[1.0], [2.0]])
    with pytest.raises(ValueError, match="not divisible"):
        operation._dequantize_one(weight, scales)
    with _transformers.uneven_blocks_dequantized():
        assert operation._dequantize_one(weight, scales).tolist() == [[1, 1], [1, 1], [2, 2]]
    with pytest.raises(ValueError, match="not divisible"):
        operation._dequantize_one(weight, scales)


def test_a_tokenizer_computes_with_the_engine_that_is_set() -> None:
    tokenizer, engine = byte_tokenizer(), byte_tokenizer(begin=True).backend_tokenizer
    _transformers.set_engine(tokenizer, engine)
    assert tokenizer.backend_tokenizer is engine
    assert tokenizer("a").input_ids[0] == tokenizer.bos_token_id


def test_a_missing_file_is_none(tiny_checkpoint: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_checkpoint / "config.json", tmp_path)
    assert _transformers.find_file(str(tmp_path), "config.json") == str(tmp_path / "config.json")
    assert _transformers.find_file(str(tmp_path), "tokenizer.json") is None
    assert _transformers.find_file("org/name", "tokenizer.json") is None, "offline, and never downloaded"
