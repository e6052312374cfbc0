"""The first layers of a model: as few as have every kind, with the weights of the whole, and nothing else is read."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from baichuan_reference import baichuan, save_baichuan
from quantized_checkpoints import write_fp8
from slices import GEMMA3, LAYERED, LOCAL, WHOLE
from tiny_models import EXPERTS, GEMMA4, LATENT, WINDOW, far_logits, save_tiny, tiny_config, tiny_model
from torch import nn
from transformers import modeling_utils
from transformers.models.llama import modeling_llama

from skipwise.model import Slice, load_model, load_slice, rotary_tables, with_rope
from skipwise.model.slice import extent_of_slice
from skipwise.rope import Linear, YaRN

HOW: dict[str, Any] = {"interpolation": YaRN(), "window": WINDOW}


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of the stored tensors whose numbers were read."""
    names: set[str] = set()
    opened = modeling_utils.safe_open

    class Part:
        def __init__(self, file: Any, name: str) -> None:
            self._slice, self._name = file.get_slice(name), name

        def __getitem__(self, index: Any) -> Any:
            names.add(self._name)
            return self._slice[index]

        def __getattr__(self, name: str) -> Any:
            return getattr(self._slice, name)

    class File:
        def __init__(self, *arguments: Any, **how: Any) -> None:
            self._file = opened(*arguments, **how)

        def get_slice(self, name: str) -> Part:
            return Part(self._file, name)

        def get_tensor(self, name: str) -> Any:
            names.add(name)
            return self._file.get_tensor(name)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

        def __exit__(self, *_: object) -> None:
            self._file.__exit__(None, None, None)

        def __enter__(self) -> "File":
            self._file.__enter__()
            return self

    monkeypatch.setattr(modeling_utils, "safe_open", File)
    return names


@pytest.mark.parametrize("name", LAYERED)
def test_a_slice_is_the_models_first_layers_and_reads_no_others(name: str, tmp_path: Path, read: set[str]) -> None:
    case = LAYERED[name]
    save_tiny(tmp_path, case.config, noise=0.1)
    whole = tiny_model(case.config, noise=0.1)
    expected = tiny_model(case.config_of_slice, attn_implementation="eager")
    own = expected.state_dict()
    expected.load_state_dict({name: tensor for name, tensor in whole.state_dict().items() if name in own}, strict=True)
    read.clear()

    how: dict[str, Any] = HOW | {"interpolation": case.interpolation}
    sliced = load_slice(tmp_path, **how, attention="eager")

    assert sliced.extent.num_layers == case.num_layers, sliced.extent
    assert type(sliced.model) is type(whole)
    found = sliced.model.state_dict()
    assert found.keys() == own.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.state_dict().items())
    assert torch.equal(far_logits(sliced.model), far_logits(with_rope(expected, **how)))
    assert read
    later = [each for each in read if any(f".layers.{i}." in each for i in range(case.num_layers, 20))]
    assert [each for each in later if "vision" not in each] == []


@pytest.mark.parametrize("seed", range(8))
def test_every_kind_of_any_pattern_is_among_the_first_layers(seed: int) -> None:
    rng = random.Random(seed)
    kinds = [rng.choice([LOCAL, LOCAL, WHOLE]) for _ in range(9)]
    kinds[rng.randrange(9)] = WHOLE  # Others cannot be extended.
    config = tiny_config("gemma3_text", **GEMMA3, num_hidden_layers=9, layer_types=kinds)
    fewest = next(k for k in range(2, 10) if {*kinds[:k]} == {*kinds})
    assert extent_of_slice(config).num_layers == (fewest if fewest < 9 else None)


def test_what_lists_name_otherwise_is_a_kind_too() -> None:
    """Llama 4: experts in every second layer, and no positions in every fourth."""
    settings: dict[str, Any] = {**EXPERTS, "head_dim": 16, "num_hidden_layers": 12, "intermediate_size_mlp": 48}
    config = tiny_config("llama4_text", **settings, interleave_moe_layer_step=2)
    extent = extent_of_slice(config)
    assert extent.num_layers == 4
    assert len({*extent.kinds}) == 3
    assert extent.kinds == extent.kinds[:4] * 3
    every = extent_of_slice(tiny_config("llama4_text", **settings, interleave_moe_layer_step=1))
    assert (every.num_layers, len({*every.kinds})) == (4, 2)


def test_a_base_by_layer_is_a_kind_where_only_the_config_has_it() -> None:
    """Granite's decoder looks up the tables of each layer in its config, and gives those with 0 none."""
    bases = [0.0, *[1e4] * 3, *[1e6] * 4]
    config = tiny_config("granite_swa", num_hidden_layers=8, layer_types=[WHOLE] * 8, layer_rope_theta=bases)
    extent = extent_of_slice(config)
    assert extent.num_layers == 5
    assert extent.kinds == tuple(f"layer_rope_theta {base}" for base in bases)


@pytest.mark.parametrize("family", ["minicpm3", "minimax"])
def test_a_number_of_a_layer_may_depend_on_how_many_there_are(family: str) -> None:
    """MiniCPM3 divides what a layer adds by the root of their number; MiniMax's linear attention derives a slope."""
    settings = LATENT if family == "minicpm3" else EXPERTS
    extent = extent_of_slice(tiny_config(family, **{**settings, "num_hidden_layers": 6}))
    assert (extent.num_layers, extent.reason) == (2, "")


def test_layers_that_would_be_others_in_fewer_are_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    def last_is_wide(self: Any, config: Any, layer_idx: int) -> None:
        own(self, config, layer_idx)
        self.is_wide = layer_idx >= config.num_hidden_layers - 4

    own = modeling_llama.LlamaDecoderLayer.__init__
    monkeypatch.setattr(modeling_llama.LlamaDecoderLayer, "__init__", last_is_wide)
    extent = extent_of_slice(tiny_config("llama", num_hidden_layers=6))
    assert extent.num_layers is None
    assert extent.kinds == (*["is_wide False"] * 2, *["is_wide True"] * 4)
    assert extent.reason == "the kind of a layer depends on the number of layers"


def test_experts_are_no_layers_even_if_they_are_as_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modeling_llama, "LlamaMLP", lambda _: nn.ModuleList(nn.Linear(8, 8) for _ in range(5)))
    assert extent_of_slice(tiny_config("llama", num_hidden_layers=5)) == (("",) * 5, 2, "")


def test_the_whole_model_is_loaded_where_it_has_no_slice(tmp_path: Path, checkpoint: Any) -> None:
    def load(folder: Path, **how: Any) -> Slice:
        sliced = load_slice(folder, **HOW | how)
        assert sliced.extent.num_layers is None
        found, wanted = sliced.model.state_dict(), load_model(folder, needs_tokenizer=False, **HOW | how).model
        assert all(torch.equal(found[name], tensor) for name, tensor in wanted.state_dict().items())
        return sliced

    assert "a slice would have all of its 2 layers" in load(checkpoint("llama")).extent.reason
    # One table for all layers, whose width grows with their number.
    settings = {**GEMMA4, "num_hidden_layers": 6, "layer_types": [LOCAL, WHOLE] * 3}
    save_tiny(tmp_path / "gemma4", tiny_config("gemma4_text", **settings))
    reason = load(tmp_path / "gemma4", interpolation=Linear()).extent.reason
    assert "embed_tokens_per_layer.weight depends on the number of layers" in reason
    assert "only read all together" in load(save_baichuan(baichuan(1), tmp_path / "baichuan")).extent.reason


def test_a_last_layer_of_its_own_kind_takes_the_whole() -> None:
    config = tiny_config("gemma3_text", **GEMMA3, num_hidden_layers=4, layer_types=[*[LOCAL] * 3, WHOLE])
    extent = extent_of_slice(config)
    assert (extent.num_layers, extent.kinds) == (None, (*[LOCAL] * 3, WHOLE))
    assert "all of its 4 layers" in extent.reason


def test_numbers_in_fp8_are_read_as_they_are_for_the_whole(tmp_path: Path, read: set[str]) -> None:
    save_tiny(tmp_path / "plain", tiny_config("llama", num_hidden_layers=4))
    meant = write_fp8(tmp_path / "plain", tmp_path / "fp8")
    read.clear()
    sliced = load_slice(tmp_path / "fp8", **HOW)
    assert sliced.extent.num_layers == 2
    for name, tensor in sliced.model.state_dict().items():
        torch.testing.assert_close(tensor, meant[name], rtol=1e-6, atol=0, msg=name)
    assert read
    assert not [name for name in read if ".layers.2." in name or ".layers.3." in name]


def test_a_gptj_is_cut_as_the_model_it_is_loaded_as(tmp_path: Path) -> None:
    save_tiny(tmp_path, tiny_config("gptj", num_hidden_layers=4, n_inner=48, rotary_dim=8), noise=0.1)
    sliced, whole = load_slice(tmp_path, **HOW).model, load_model(tmp_path, **HOW).model
    assert sliced.config.num_hidden_layers == 2
    wanted = whole.state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in sliced.state_dict().items())


def test_a_slice_has_the_settings_and_tables_of_the_whole(tmp_path: Path) -> None:
    case = LAYERED["sliding"]
    save_tiny(tmp_path, case.config)
    how = {"dtype": torch.bfloat16, "attention": "eager"}
    sliced, whole = load_slice(tmp_path, **HOW, **how), load_model(tmp_path, **HOW, **how)
    assert sliced.model.dtype == torch.bfloat16
    assert sliced.model.config._attn_implementation == "eager"
    found, expected = rotary_tables(sliced.model), rotary_tables(whole.model)
    assert found.keys() == expected.keys()
    for name, table in found.items():
        assert (table.inv_freq == expected[name].inv_freq).all()
        assert table.attention_factor == expected[name].attention_factor
    assert json.loads(sliced.config.to_json_string())["num_hidden_layers"] == 12
    assert sliced.tokenizer is not None
