"""A fast tokenizer for Baichuan models, whose own tokenizer is custom code."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from skipwise.errors import CheckpointError
from skipwise.model._transformers import find_file
from skipwise.model.place import ModelSource
from skipwise.model.sentencepieces import fast_tokenizer, read_pieces

_SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": None}


def baichuan_tokenizer(place: ModelSource) -> PreTrainedTokenizerFast:
    """Builds the fast tokenizer of a Baichuan model from its files.

    Raises:
        CheckpointError: files are missing, unreadable, or do not belong together.
        UnsupportedModelError: `tokenizer.model` is not a BPE model.
    """
    settings = _json(place, "tokenizer_config.json")
    if (whole := find_file(place.name, "tokenizer.json")) is not None:
        engine = Tokenizer.from_file(whole)
    elif (model := find_file(place.name, "tokenizer.model")) is not None:
        engine = fast_tokenizer(read_pieces(model))
    else:
        raise CheckpointError(
            f"model {str(place)!r} has neither tokenizer.model nor tokenizer.json, so its tokenizer cannot be built; "
            "copy one of them from the published folder",
            page="unsuitable-tokenizer",
        )
    _add_tokens(engine, settings, place)
    special = {name: _token_text(settings.get(name), usual) for name, usual in _SPECIAL.items()}
    if whole is None:
        # These defaults are those of the model's own code.
        begin = special["bos_token"] if settings.get("add_bos_token", True) else None
        end = special["eos_token"] if settings.get("add_eos_token", False) else None
        _add_boundary_tokens(engine, begin, end)
    more = {"model_max_length": settings.get("model_max_length"), "chat_template": settings.get("chat_template")}
    if more["chat_template"] is None:
        more["chat_template"] = _chat_template(engine, _json(place, "generation_config.json"))
    return PreTrainedTokenizerFast(
        tokenizer_object=engine,
        clean_up_tokenization_spaces=False,
        **{name: text for name, text in special.items() if text is not None},
        **{name: value for name, value in more.items() if value is not None},
    )


def _chat_template(engine: Tokenizer, generation: Mapping[str, Any]) -> str | None:
    """The chat template that the chat model's code implements: one token before each turn. None for other models."""
    ids = [generation.get(f"{role}_token_id") for role in ("user", "assistant")]
    marks = [engine.id_to_token(index) for index in ids if isinstance(index, int)]
    if len(marks) < 2 or None in marks:
        return None
    engine.add_special_tokens([AddedToken(mark, normalized=False, special=True) for mark in marks])
    user, assistant = (json.dumps(mark) for mark in marks)
    return (
        f"{{% for message in messages %}}{{% if message['role'] == 'user' %}}{{{{ {user} }}}}"
        f"{{% elif message['role'] == 'assistant' %}}{{{{ {assistant} }}}}{{% endif %}}{{{{ message['content'] }}}}"
        f"{{% endfor %}}{{% if add_generation_prompt %}}{{{{ {assistant} }}}}{{% endif %}}"
    )


def _add_tokens(engine: Tokenizer, settings: Mapping[str, Any], place: ModelSource) -> None:
    """Adds the tokens that were added to the vocabulary later, and checks that they get their recorded ids."""
    recorded = {index: text for text, index in _json(place, "added_tokens.json").items()}
    recorded |= {int(index): entry["content"] for index, entry in (settings.get("added_tokens_decoder") or {}).items()}
    new = [recorded[index] for index in sorted(recorded) if engine.id_to_token(index) is None]
    engine.add_tokens([AddedToken(text, normalized=False) for text in new])
    if wrong := [f"{text} {index}" for index, text in sorted(recorded.items()) if engine.token_to_id(text) != index]:
        raise CheckpointError(
            f"the tokenizer files of {str(place)!r} disagree on token ids ({wrong[0]}, ...); download them again from "
            "one place",
            page="unsuitable-tokenizer",
        )


def _add_boundary_tokens(engine: Tokenizer, begin: str | None, end: str | None) -> None:
    """Makes the tokenizer add the given tokens at the beginning and end of a text."""
    marks = [text for text in (begin, end) if text is not None]
    if marks:
        template = [*([begin] if begin else ()), "$A", *([end] if end else ())]
        engine.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[(text, engine.token_to_id(text)) for text in marks]
        )


def _token_text(token: Any, usual: str | None) -> str | None:
    """The text of a special token. The settings hold the text itself or a dict that contains it."""
    return token["content"] if isinstance(token, dict) else token or usual


def _json(place: ModelSource, name: str) -> dict[str, Any]:
    file = find_file(place.name, name)
    return {} if file is None else json.loads(Path(file).read_text(encoding="utf-8"))
