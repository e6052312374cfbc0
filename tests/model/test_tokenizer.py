"""Tokenizers that do not go with their model are refused before weights are read, with a cure that works."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from refusals import refused, run_cure
from tiny_models import byte_tokenizer
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from skipwise.data.tokens import require_fast
from skipwise.errors import CheckpointError, DataError
from skipwise.evals import evaluate
from skipwise.model import load_model, read_config, read_tokenizer, save_model


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint of 256 embeddings, with a tokenizer of as many ids."""
    return shutil.copytree(tiny_checkpoint, tmp_path / "model")


@pytest.mark.parametrize("special", [False, True])
def test_ids_beyond_the_embeddings_are_refused_at_load_with_both_numbers(
    special: bool, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<one>", "<two>"], special_tokens=special)
    tokenizer.save_pretrained(folder)
    with monkeypatch.context() as patch:
        patch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("weights were read"))
        with refused(CheckpointError, "257 .* 256") as caught:
            load_model(folder)
    fixed = run_cure(caught.value, tmp_path, monkeypatch)
    for file in folder.glob("tokenizer*"):
        shutil.copy(file, fixed)
    model, tokenizer = load_model(fixed)
    ids = tokenizer("a<two>", return_tensors="pt").input_ids
    assert int(ids.max()) == 257
    assert model(ids).logits.shape[-1] == 258  # pyright: ignore[reportCallIssue]


def test_a_placeholder_of_images_needs_no_embedding_and_is_plain_text(folder: Path) -> None:
    """As of the text-only models of Gemma 3, which have the tokenizer of those that see."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    plain = tokenizer.encode("an <image>")
    tokenizer.add_special_tokens({"extra_special_tokens": ["<image>"]})
    tokenizer.save_pretrained(folder)
    with pytest.raises(CheckpointError, match="256"):
        load_model(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"extra_special_tokens": {"image_token": "<image>"}}))
    assert load_model(folder).tokenizer.encode("an <image>") == plain


def test_an_end_token_that_the_library_adds_is_none_of_the_model(folder: Path, tmp_path: Path) -> None:
    """Its class for GPT-2's tokenizers adds one to any vocabulary; a checkpoint's own one is refused."""
    plain = AutoTokenizer.from_pretrained(folder).encode("<|endoftext|>")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    assert AutoTokenizer.from_pretrained(folder).eos_token_id == 256
    for _ in range(2):
        model, tokenizer = load_model(folder)
        assert tokenizer.eos_token_id is None
        assert tokenizer.encode("<|endoftext|>") == plain
        folder = tmp_path / "again"
        save_model(model, tokenizer, folder)
    path.write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>"}))
    with pytest.raises(CheckpointError, match="256"):
        load_model(path.parent)


def make_slow(folder: Path) -> None:
    """Gives the checkpoint a class of tokenizer that is Python; its files for a fast one stay."""
    letters = [*"abcdefghijklmnopqrstuvwxyz", *(f"{letter}</w>" for letter in "abcdefghijklmnopqrstuvwxyz"), "<unk>"]
    (folder / "vocab.json").write_text(json.dumps({letter: i for i, letter in enumerate(letters)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CTRLTokenizer"}))


def test_a_slow_tokenizer_is_refused_with_a_cure_that_works(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_slow(folder)
    tokenizer = read_tokenizer(folder, read_config(folder))
    with refused(DataError, "CTRLTokenizer") as caught:
        require_fast(tokenizer)
    fixed = run_cure(caught.value, tmp_path, monkeypatch)
    own = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for file in folder.glob("tokenizer*"):
        file.unlink()
    shutil.copytree(fixed, folder, dirs_exist_ok=True)
    fast = read_tokenizer(folder, read_config(folder))
    require_fast(fast)
    assert fast.encode("a river") == own.encode("a river").ids


def test_a_slow_tokenizer_of_no_use_is_said_to_be(folder: Path) -> None:
    make_slow(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"CTRLTokenizer.*tokenizer\.json"):
        require_fast(read_tokenizer(folder, read_config(folder)))


def test_documents_of_another_vocabulary_are_refused(checkpoint: Callable[[str], Path]) -> None:
    model, _ = load_model(checkpoint("llama"))
    documents, task = [np.arange(200, 260)], {"kind": "perplexity", "scored_tokens": 16}
    with pytest.raises(DataError, match=r"259.*256"):
        evaluate(model, byte_tokenizer(), [task], [32], documents, progress=False)
