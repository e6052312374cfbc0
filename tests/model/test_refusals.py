"""Models that are refused, with the reason: nothing is guessed, nothing is unpickled, no code is run."""

import dataclasses
import importlib.util
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from refusals import Trap, refused
from tiny_models import WINDOW
from transformers import AutoConfig

from skipwise.errors import CheckpointError, ConfigError, UnsupportedModelError
from skipwise.model import (
    load_model,
    read_config,
    with_rope,
)
from skipwise.rope import YaRN


@pytest.mark.parametrize(
    ("attention", "unsupported", "said"),
    [
        ("spda", "", "'spda'; did you mean 'sdpa'.* eager, .*flash_attention_2, .*flex_attention, sdpa"),
        ("sdpa", "_supports_sdpa", "LlamaForCausalLM .*scaled_dot_product_attention"),
        ("flex_attention", "_supports_flex_attn", "flex_attention"),
        ("flash_attention_2", "_supports_flash_attn", "Flash Attention 2"),
    ],
)
def test_an_attention_that_is_not_there_is_refused(
    attention: str, unsupported: str, said: str, checkpoint: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformers.LlamaForCausalLM, unsupported or "_supports_sdpa", not unsupported)
    with refused(ConfigError, said) as caught:
        load_model(checkpoint("llama"), attention=attention)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize(
    ("family", "settings", "reason"),
    [
        ("gpt2", {"n_embd": 64, "n_head": 4, "n_layer": 1}, r"absolute position embeddings \(transformer.wpe\)"),
        ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 64}, "absolute position embeddings"),
        ("bert", {}, "absolute position embeddings"),
        ("bloom", {"n_head": 4, "n_layer": 1}, "ALiBi"),
        ("mpt", {"d_model": 64, "n_heads": 4, "n_layers": 1}, "ALiBi"),
        ("falcon", {"alibi": True}, "ALiBi"),
        ("mamba", {}, "no rotary table"),
        ("codegen", {"n_embd": 64, "n_head": 4, "n_layer": 1, "rotary_dim": 8}, "hard-coded"),
        ("bart", {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1}, "encoder-decoder"),
        ("t5", {"d_model": 32, "num_layers": 1}, "encoder-decoder"),
        ("vit", {}, "no decoder class"),
    ],
)
def test_models_without_rotary_positions_are_refused(
    family: str, settings: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    small = {"vocab_size": 96, "num_hidden_layers": 1, "hidden_size": 64, "num_attention_heads": 4}
    AutoConfig.for_model(family, **(small | settings)).save_pretrained(tmp_path)
    with refused(UnsupportedModelError, reason):
        read_config(tmp_path)
    if family == "falcon":
        AutoConfig.for_model(family, **small, alibi=False).save_pretrained(tmp_path)
        assert read_config(tmp_path).model_type == "falcon"


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickled_weights_are_refused_unopened(name: str, checkpoint: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint("llama"), tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    mark = tmp_path / "opened"
    torch.save(Trap(mark), folder / name)
    for source in (folder, folder / name):
        with refused(CheckpointError, "save_pretrained"):
            load_model(source)
    assert not mark.exists()
    assert read_config(folder).model_type == "llama"


def test_pickled_weights_of_the_hub_are_refused_and_nobody_is_told(
    checkpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = checkpoint("llama")

    def read_locally(own: Any) -> Any:
        return staticmethod(lambda _name, **how: own(local, **how))

    def tell(*_: Any, **__: Any) -> None:
        pytest.fail("the model's name was sent to the conversion service")

    for auto in (transformers.AutoConfig, transformers.AutoTokenizer):
        monkeypatch.setattr(auto, "from_pretrained", read_locally(auto.from_pretrained))
    # A hub that answers, with a repository that has none of the files that are looked for.
    monkeypatch.setattr(transformers.modeling_utils, "is_offline_mode", lambda: False)
    monkeypatch.setattr(transformers.modeling_utils, "cached_file", lambda *_, **__: None)
    monkeypatch.setattr(transformers.modeling_utils, "auto_conversion", tell)
    monkeypatch.delenv("DISABLE_SAFETENSORS_CONVERSION", raising=False)
    with refused(CheckpointError, r"'org/pickled' has no safetensors.*save_pretrained\('NEW'\)"):
        load_model("org/pickled")
    assert "DISABLE_SAFETENSORS_CONVERSION" not in os.environ


def test_remote_code_is_not_run_unless_asked(checkpoint: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint("llama"), tmp_path / "remote")
    mark = tmp_path / "ran"
    (folder / "configuration_own.py").write_text(f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "configuration_own.OwnConfig"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="set trust_remote_code"):
        load_model(folder)
    assert not mark.exists()


def cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def other_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def no_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "the config of"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no weights"),
        (cut_weights, "damaged"),
        (lambda folder: other_config(folder, num_hidden_layers=3), "lacks 9 of its weights"),
        (lambda folder: other_config(folder, vocab_size=300), "in another shape|could not be read"),
        (no_tokenizer, "has no tokenizer"),
        (lambda folder: other_config(folder, model_type="nosuch"), "no decoder class"),
    ],
)
def test_broken_checkpoints_are_one_line_errors(change: Any, said: str, checkpoint: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint("llama"), tmp_path / "broken")
    change(folder)
    with refused((CheckpointError, UnsupportedModelError), said):
        load_model(folder)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("/no/such/folder", "/no/such/folder"),
        ("./nothing", "./nothing"),
        ("org/name", "org/name"),
        ("missing.gguf", "missing.gguf"),
    ],
)
def test_missing_sources_are_one_line_errors(source: str, said: str) -> None:
    with refused(CheckpointError, said):
        load_model(source)


def test_gguf_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.gguf"
    path.touch()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with refused(ConfigError, "pip install"):
        load_model(path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"window": WINDOW}, "interpolation and window"),
        ({"interpolation": YaRN(), "window": dataclasses.replace(WINDOW, original=128)}, "original"),
        ({"dtype": "int8"}, "int8"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments: dict[str, Any], said: str, checkpoint: Any) -> None:
    with refused(ConfigError, said):
        load_model(checkpoint("llama"), **arguments)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_wrapped_models_are_refused(checkpoint: Any) -> None:
    from peft import LoraConfig, get_peft_model

    wrapped: Any = get_peft_model(load_model(checkpoint("llama")).model, LoraConfig(target_modules=["q_proj"]))  # pyright: ignore[reportArgumentType]
    for model in (wrapped, wrapped.base_model.model):
        with pytest.raises(ConfigError, match=r"adapter|other parameters"):
            with_rope(model, YaRN(), WINDOW)


def test_a_config_that_the_library_stumbles_over_is_one_line(tmp_path: Path) -> None:
    settings = {"model_type": "gemma4_text", "max_position_embeddings": 256, "per_layer_config": [{"head_dim": 32}]}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=r"config.*list"):
        read_config(tmp_path)
