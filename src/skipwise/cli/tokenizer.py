"""The tokenizer of a model, without its weights."""

from typing import Any


def load_tokenizer(model: str, *, trust_remote_code: bool) -> Any:
    """Loads it.

    Raises:
        SkipwiseError: there is none.
    """
    from skipwise.model.source import locate
    from skipwise.model.tokenizer import load_tokenizer as load

    loaded = load(locate(model, weights=False), trust_remote_code=trust_remote_code)
    # It would warn of texts that are longer than its model's window; they may be meant for an extended one.
    loaded.model_max_length = 2**62
    return loaded
