"""Tokenizers made from GGUF files, kept in skipwise's cache folder.

The transformers library recovers merges from the pieces of a vocabulary and reads the file several times. This takes
7 s for the 262 thousand tokens of Gemma 3. The result is written once, and read by later processes.

An entry is named by a hash of all that the conversion depends on: the GGUF file up to its first weight, name, size and
time of files beside it, the number of embeddings, versions, and the code here. Weights are not hashed: the library
makes a tokenizer of metadata and names of tensors alone, and these stand before the weights.

An entry has three lines: a hash of the other two, which describe the Python object and its engine. The hash finds
damage, not malice: whoever can write an entry chooses a tokenizer, but never code that runs.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from skipwise import __version__
from skipwise.files import cache_folder, replace_file
from skipwise.model._transformers import set_engine
from skipwise.model.gguf_file import header
from skipwise.model.place import ModelSource

logger = logging.getLogger("skipwise")

# Files that the library may read beside a GGUF file when it makes a tokenizer.
_READ_TOO = (".json", ".jinja", ".model", ".txt")
_CODE = ("tokenizer_cache.py", "tokenizer.py", "gguf_file.py", "_transformers.py")
# The engine, and what a class builds its own first engine from.
_OF_THE_ENGINE = {"_tokenizer", "_vocab", "_merges"}


def kept_tokenizer(
    place: ModelSource, rows: int | None, make: Callable[[], PreTrainedTokenizerBase]
) -> PreTrainedTokenizerBase:
    """The tokenizer of a GGUF file: from the cache, or made and then put there.

    Args:
        place: of the GGUF file.
        rows: number of embeddings that `make` checks token ids against, or None.
        make: makes the tokenizer, without code from the checkpoint.
    """
    try:
        path = cache_folder() / "tokenizers" / f"{_key(place, rows)}.txt"
    except (OSError, RuntimeError, PackageNotFoundError) as error:  # No home, or files that come and go.
        logger.info(f"the tokenizer of {str(place)!r} is not kept: {error}")
        return make()
    try:
        return _read(path, place)
    except FileNotFoundError:
        pass
    except Exception as error:  # The entry is damaged, for which libraries raise errors of many types.
        logger.info(f"making the tokenizer of {str(place)!r} again: {str(path)!r} is damaged ({error})")
    tokenizer = make()
    shell = _shell_of(tokenizer)
    if shell is not None:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            replace_file(path, _entry(shell, tokenizer))
        except OSError as error:
            logger.info(f"the tokenizer of {str(place)!r} is not kept: {error}")
    return tokenizer


def _key(place: ModelSource, rows: int | None) -> str:
    versions = [__version__, *map(version, ("transformers", "tokenizers", "gguf"))]
    folder = Path(place.name)
    found = [*folder.iterdir(), *(folder / "additional_chat_templates").glob("*")]
    beside = [path for path in sorted(found) if path.suffix in _READ_TOO and path.exists()]
    states = [(str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns) for path in beside]
    digest = hashlib.sha256(json.dumps([versions, rows, states]).encode())
    for name in _CODE:
        digest.update(Path(__file__).with_name(name).read_bytes())
    digest.update(header(place))
    return digest.hexdigest()


def _entry(shell: dict[str, Any], tokenizer: Any) -> str:
    content = f"{json.dumps(shell)}\n{tokenizer.backend_tokenizer.to_str()}"
    return f"{hashlib.sha256(content.encode()).hexdigest()}\n{content}"


def _read(path: Path, place: ModelSource) -> PreTrainedTokenizerBase:
    digest, _, content = path.read_text(encoding="utf-8").partition("\n")
    if digest != hashlib.sha256(content.encode()).hexdigest():
        raise ValueError("its hash is another")
    shell, _, engine = content.partition("\n")
    tokenizer = _built(json.loads(shell), place.name)
    set_engine(tokenizer, Tokenizer.from_str(engine))
    return tokenizer


def _shell_of(tokenizer: Any) -> dict[str, Any] | None:
    """What `_built` needs to make the tokenizer's Python object; None if the result would differ."""
    if not tokenizer.is_fast:
        return None
    given = tokenizer.init_kwargs
    settings = {name: value for name, value in given.items() if _is_plain(value)}
    # Some may have been removed since the object was made.
    settings |= {name: getattr(tokenizer, name) for name in tokenizer.SPECIAL_TOKENS_ATTRIBUTES if name in given}
    empty = Tokenizer(models.BPE())
    # If its first engine has none, a tokenizer replaces it whenever special tokens change.
    empty.post_processor = tokenizer.backend_tokenizer.post_processor
    shell = {"class": type(tokenizer).__name__, "settings": settings, "engine": empty.to_str()}
    try:
        again = _built(json.loads(json.dumps(shell)), tokenizer.name_or_path)
    except Exception:  # The engine raises no narrower type.
        return None
    own, other = (
        {name: str(value) for name, value in vars(each).items() if name not in {*_OF_THE_ENGINE, "init_kwargs"}}
        for each in (tokenizer, again)
    )
    return shell if own == other and type(again) is type(tokenizer) else None


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float)


def _built(shell: dict[str, Any], name: str) -> Any:
    """A tokenizer of the library's class with these settings and an engine without vocabulary.

    Raises:
        ValueError: the class is not a fast tokenizer of the library, or a setting is more than a plain value.
    """
    kind, settings = getattr(transformers, shell["class"], None), shell["settings"]
    if not (isinstance(kind, type) and issubclass(kind, PreTrainedTokenizerFast)):
        raise ValueError(f"{shell['class']!r} is not a fast tokenizer")
    if "trust_remote_code" in settings or not all(map(_is_plain, settings.values())):
        raise ValueError("its settings are not plain values")
    return kind(**settings | {"name_or_path": name, "tokenizer_object": Tokenizer.from_str(shell["engine"])})
