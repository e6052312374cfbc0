"""A fast tokenizer like that of a Baichuan, whose own is code."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from skipwise.errors import CheckpointError
from skipwise.model.place import ModelSource
from skipwise.model.sentencepieces import fast_tokenizer, read_pieces
from skipwise.model.source import own_file

_SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": None}


def baichuan_tokenizer(place: ModelSource) -> PreTrainedTokenizerFast:
    """Makes the tokenizer of a Baichuan of its files.

    Raises:
        CheckpointError, UnsupportedModelError: no fast one can be made of them.
    """
    settings = _json(place, "tokenizer_config.json")
    if (whole := own_file(place, "tokenizer.json")) is not None:
        engine = Tokenizer.from_file(whole)
    elif (model := own_file(place, "tokenizer.model")) is not None:
        engine = fast_tokenizer(read_pieces(model))
    else:
        raise CheckpointError(
            f"model {str(place)!r} has no tokenizer.model, of which its tokenizer is made, and no tokenizer.json; copy "
            "one from the published folder"
        )
    _add_tokens(engine, settings, place)
    special = {name: _text(settings.get(name), usual) for name, usual in _SPECIAL.items()}
    if whole is None:
        # As its own code has it where its settings do not say.
        begin = special["bos_token"] if settings.get("add_bos_token", True) else None
        end = special["eos_token"] if settings.get("add_eos_token", False) else None
        _frame(engine, begin, end)
    more = {"model_max_length": settings.get("model_max_length"), "chat_template": settings.get("chat_template")}
    if more["chat_template"] is None:
        more["chat_template"] = _turns(engine, _json(place, "generation_config.json"))
    return PreTrainedTokenizerFast(
        tokenizer_object=engine,
        clean_up_tokenization_spaces=False,
        **{name: text for name, text in special.items() if text is not None},
        **{name: value for name, value in more.items() if value is not None},
    )


def _turns(engine: Tokenizer, generation: Mapping[str, Any]) -> str | None:
    """The chat template that does what a chat model's code does: one token before a turn, and none after it."""
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
    """Adds what was given to the vocabulary after it was made, under the ids it had."""
    told = {index: text for text, index in _json(place, "added_tokens.json").items()}
    told |= {int(index): entry["content"] for index, entry in (settings.get("added_tokens_decoder") or {}).items()}
    new = [told[index] for index in sorted(told) if engine.id_to_token(index) is None]
    engine.add_tokens([AddedToken(text, normalized=False) for text in new])
    if wrong := [f"{text} {index}" for index, text in sorted(told.items()) if engine.token_to_id(text) != index]:
        raise CheckpointError(
            f"the tokenizer of {str(place)!r} names tokens by ids that its vocabulary does not have ({wrong[0]}, ...); "
            "its files do not belong together: get them again"
        )


def _frame(engine: Tokenizer, begin: str | None, end: str | None) -> None:
    """Has the ends of a text marked."""
    marks = [text for text in (begin, end) if text is not None]
    if marks:
        template = [*([begin] if begin else ()), "$A", *([end] if end else ())]
        engine.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[(text, engine.token_to_id(text)) for text in marks]
        )


def _text(token: Any, usual: str | None) -> str | None:
    """The text of a special token, which may be written with its settings."""
    return token["content"] if isinstance(token, dict) else token or usual


def _json(place: ModelSource, name: str) -> dict[str, Any]:
    file = own_file(place, name)
    return {} if file is None else json.loads(Path(file).read_text(encoding="utf-8"))
