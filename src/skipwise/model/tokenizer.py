"""Reads a model's tokenizer, and refuses one with token ids that the model has no embeddings for."""

import json
import logging
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from skipwise.errors import CheckpointError
from skipwise.model._transformers import find_file, set_engine
from skipwise.model.baichuan_tokenizer import baichuan_tokenizer
from skipwise.model.gguf_file import number_of_tokens, read_once
from skipwise.model.place import ModelSource
from skipwise.model.rotary import text_config
from skipwise.model.source import locate, one_line_errors, packed_config, quiet_transformers
from skipwise.model.tokenizer_cache import kept_tokenizer

logger = logging.getLogger("skipwise")

# Making a tokenizer from a GGUF file with so many tokens takes seconds.
_MANY_TOKENS = 100_000
# Files with a vocabulary. Without one, some classes of the library make an empty tokenizer.
_VOCABULARIES = ("tokenizer.json", "tekken.json", "vocab.json", "vocab.txt")
_VOCABULARY_SUFFIXES = (".model", ".tiktoken")
_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def read_tokenizer(
    source: str | Path, config: PreTrainedConfig, *, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Reads a model's tokenizer without the model's weights.

    Args:
        source: as for `load_model`.
        config: the model's config.
        trust_remote_code: run Python code that comes with the checkpoint.

    Raises:
        CheckpointError: it is missing or damaged, or has token ids that the model has no embeddings for.
    """
    with quiet_transformers():
        return load_tokenizer(locate(source, weights=False), config, trust_remote_code)


def has_tokenizer(place: ModelSource) -> bool:
    """Whether a folder has a tokenizer; True for names on the hub and GGUF files."""
    if not place.is_folder or place.gguf_file is not None:
        return True
    folder = Path(place.name)
    if any((folder / name).is_file() for name in _VOCABULARIES):
        return True
    # Custom code may read files of any name.
    settings = folder / "tokenizer_config.json"
    brings_code = settings.is_file() and "auto_map" in settings.read_text(encoding="utf-8", errors="replace")
    return brings_code or any(file.suffix in _VOCABULARY_SUFFIXES for file in folder.iterdir())


def load_tokenizer(
    place: ModelSource, config: PreTrainedConfig | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """`read_tokenizer` for a source that is found already. Without a config, token ids are not checked."""
    if not has_tokenizer(place):
        raise CheckpointError(
            f"model {str(place)!r} has no tokenizer; put its files, such as tokenizer.json, beside config.json",
            page="unsuitable-tokenizer",
        )
    rows = None if config is None else embedding_rows(config)
    make = partial(_made, place, rows, trust_remote_code)
    with one_line_errors(place, "the tokenizer"), read_once(place):
        return make() if place.gguf_file is None or trust_remote_code else kept_tokenizer(place, rows, make)


def _made(place: ModelSource, rows: int | None, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """Reads a tokenizer, and holds its token ids against the number of embeddings, `rows`, if that is known."""
    if place.gguf_file is not None and (tokens := number_of_tokens(place)) >= _MANY_TOKENS:
        logger.info(f"building the tokenizer from the {tokens} tokens in {str(place)!r}: once, for some seconds")
    if packed_config(place) is not None:
        tokenizer = baichuan_tokenizer(place)
    else:
        how = {**place.file_arguments, "trust_remote_code": trust_remote_code}
        tokenizer = AutoTokenizer.from_pretrained(place.name, **how)
    if rows is not None:
        _check_ids(place, tokenizer, rows)
    return tokenizer


def embedding_rows(config: PreTrainedConfig) -> int:
    """Number of token ids, from 0, that a model of this config has embeddings for."""
    return text_config(config).vocab_size


def _check_ids(place: ModelSource, tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    beyond = {index: token for token, index in tokenizer.get_vocab().items() if index >= rows}
    if not beyond:
        return
    if tokenizer.is_fast and set(beyond.values()) <= _of_no_use(place, tokenizer):
        _without_added(tokenizer, beyond)
        return
    largest = max(beyond)
    how = "".join(f", {name}={value!r}" for name, value in place.file_arguments.items())
    raise CheckpointError(
        f"the tokenizer of {str(place)!r} has token ids up to {largest} ({beyond[largest]!r}), and the model has "
        f"{rows} embeddings, for ids 0 to {rows - 1}: give the model's own tokenizer, or add embeddings and train "
        f'them: python -c "from transformers import AutoModelForCausalLM as M; m = M.from_pretrained({place.name!r}'
        f"{how}); m.resize_token_embeddings({largest + 1}); m.save_pretrained('NEW')\", and copy the tokenizer's files "
        "to NEW",
        page="unsuitable-tokenizer",
    )


def _of_no_use(place: ModelSource, tokenizer: Any) -> set[str]:
    """Tokens that the model never had. Without them, their text becomes plain tokens."""
    common = PreTrainedTokenizerBase.SPECIAL_TOKENS_ATTRIBUTES
    # Placeholders of images and sounds: text-only models share their family's tokenizer without these embeddings.
    placeholders = {str(getattr(tokenizer, name)) for name in tokenizer.SPECIAL_TOKENS_ATTRIBUTES if name not in common}
    # The library's classes add end tokens of their own to any vocabulary, also to that of a GGUF file.
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    return placeholders | (special - _named_in_files(place))


def _named_in_files(place: ModelSource) -> set[str]:
    """All strings in a checkpoint's tokenizer files, which include its tokens; empty for a GGUF file."""
    if place.gguf_file is not None:
        return set()
    paths = [find_file(place.name, name) for name in _FILES]
    return set(_strings([json.loads(Path(path).read_text(encoding="utf-8")) for path in paths if path]))


def _strings(value: Any) -> Iterator[str]:
    """All strings in a JSON value, including keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for entry in value:
            yield from _strings(entry)
            if isinstance(value, dict):
                yield from _strings(value[entry])


def _without_added(tokenizer: Any, tokens: Mapping[int, str]) -> None:
    """Removes added tokens from a fast tokenizer: no text becomes them, and none of them ends a text."""
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    described["added_tokens"] = [token for token in described["added_tokens"] if token["id"] not in tokens]
    set_engine(tokenizer, Tokenizer.from_str(json.dumps(described)))
    for name in PreTrainedTokenizerBase.SPECIAL_TOKENS_ATTRIBUTES:
        if str(getattr(tokenizer, name)) in tokens.values():
            setattr(tokenizer, name, None)
