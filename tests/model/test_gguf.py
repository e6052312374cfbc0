"""GGUF files: a tiny Llama in the order of llama.cpp's converter loads, extends and saves as the model that it was."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import WINDOW
from transformers import AutoModelForCausalLM, AutoTokenizer

from skipwise.loss import training_inputs
from skipwise.model import load_model, read_config, rotary_tables, save_model, with_rope
from skipwise.rope import YaRN, read_rope

gguf = pytest.importorskip("gguf")
from gguf.quants import dequantize, quantize

# Blocks of 32 numbers of a row in 8 bits, as in most files.
BLOCKS = gguf.GGMLQuantizationType.Q8_0

TEXT = "Hello, wörld! 12345\n\tdef f(x): return  x"
NAMES = {
    r"model\.embed_tokens": "token_embd",
    r"model\.norm": "output_norm",
    r"lm_head": "output",
    r"model\.layers\.(\d+)\.input_layernorm": r"blk.\1.attn_norm",
    r"model\.layers\.(\d+)\.post_attention_layernorm": r"blk.\1.ffn_norm",
    r"model\.layers\.(\d+)\.self_attn\.([qkv])_proj": r"blk.\1.attn_\2",
    r"model\.layers\.(\d+)\.self_attn\.o_proj": r"blk.\1.attn_output",
    r"model\.layers\.(\d+)\.mlp\.(gate|up|down)_proj": r"blk.\1.ffn_\2",
}


def pairs_side_by_side(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Rows of queries or keys in GGUF's order: the two of a rotated pair are neighbours, not half a head apart."""
    head_dim = len(weight) // num_heads
    order = np.arange(head_dim).reshape(2, head_dim // 2).T.ravel()
    return weight.reshape(num_heads, head_dim, -1)[:, order].reshape(weight.shape)


def write_gguf(path: Path, model: Any, tokenizer: Any) -> None:
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)

    letters = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list([*letters[:-1], "ee"])
    writer.add_token_types([gguf.TokenType.NORMAL] * len(letters))
    writer.add_token_merges(["e e"])

    heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        module, weight = name.removesuffix(".weight"), tensor.numpy()
        if projection := re.fullmatch(r".*\.([qk])_proj", module):
            weight = pairs_side_by_side(weight, heads[projection[1]])
        (renamed,) = [re.sub(own, new, module) for own, new in NAMES.items() if re.fullmatch(own, module)]
        if weight.ndim == 1:
            writer.add_tensor(f"{renamed}.weight", weight)
        else:
            writer.add_tensor(f"{renamed}.weight", quantize(weight, BLOCKS), raw_dtype=BLOCKS)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    """Logits of two chunks, at the start and at the end of the target."""
    positions = torch.cat([torch.arange(16), torch.arange(WINDOW.target - 16, WINDOW.target)])[None]
    return model(**training_inputs(torch.arange(32)[None] % 90, positions)).logits


@pytest.fixture(scope="module")
def original(tiny_checkpoint: Path) -> Any:
    """A Llama whose attention is far from uniform, so that a wrong order of rows shows in the logits."""
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture(scope="module")
def file(original: Any, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as a GGUF file; the model itself then has the numbers that its blocks stand for."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path, original, AutoTokenizer.from_pretrained(tiny_checkpoint))
    for parameter in original.parameters():
        if parameter.ndim == 2:
            blocks = quantize(parameter.detach().numpy(), BLOCKS)
            parameter.data = torch.from_numpy(dequantize(blocks, BLOCKS)).clone()
    return path


def test_no_text_becomes_a_token_that_the_library_adds_to_a_gguf_file(file: Path) -> None:
    """Its class for GPT-2 vocabularies adds an end token of its own, for which the model has no embedding."""
    tokenizer = load_model(file).tokenizer
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("<|endoftext|>")) == [*"<|endoftext|>"]


def test_a_gguf_file_loads_extends_and_saves(file: Path, original: Any, tmp_path: Path) -> None:
    base = load_model(file)
    assert torch.equal(logits(base.model), logits(original))
    state = read_rope(read_config(file).to_dict())
    assert (state.theta, state.original, state.maximum) == (10_000, WINDOW.original, WINDOW.original)

    model, tokenizer = load_model(file, interpolation=YaRN(), window=WINDOW)
    assert model.dtype == torch.float32
    expected = YaRN().table(state.spec, WINDOW)
    (table,) = rotary_tables(model).values()
    np.testing.assert_allclose(table.inv_freq, expected.inv_freq, rtol=1e-6, atol=0)
    assert torch.equal(logits(model), logits(with_rope(original, YaRN(), WINDOW)))
    assert not torch.equal(logits(model), logits(original))

    save_model(model, tokenizer, tmp_path / "saved")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(logits(reloaded), logits(model))
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert again(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]
    assert tokenizer.decode(tokenizer(TEXT)["input_ids"]) == TEXT
    assert len(tokenizer("eel")["input_ids"]) == 2


def test_a_gguf_file_trains(file: Path) -> None:
    model = load_model(file, interpolation=YaRN(), window=WINDOW).model
    model(torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
