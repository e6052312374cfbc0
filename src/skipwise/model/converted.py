"""Models that are read, and then stored, as the model of another family, which computes the same function."""

from pathlib import Path

from transformers import PreTrainedConfig

from skipwise.model.source import BAICHUAN, locate, own_config

_NOTES = {
    "gptj": (
        "This model was a GPT-J and is stored as the Phi model that computes the same function, because GPT-J's own "
        "class hard-codes its rotary table and would silently drop the longer window. Load it as it is (model type "
        "phi), with any program that reads Phi; do not convert it back."
    ),
    BAICHUAN: (
        "This model was a Baichuan, a folder with code of its own, and is stored as the Llama model that computes the "
        "same function: its packed projections are apart, and where the rows of its head were normalised in every pass "
        "they are so now. Load it as it is (model type llama), with any program that reads Llama; it needs no code and "
        "no trust_remote_code."
    ),
}


def portability_note(config: PreTrainedConfig) -> str | None:
    """What the readers of a model card must be told about loading it elsewhere, or None if there is nothing to tell."""
    return _NOTES.get(getattr(config, "converted_from", None) or "")


def is_read_as_another(source: str | Path) -> bool:
    """Whether a model is converted while it is read, so that other programs would find weights of other names.

    Args:
        source: as for `load_model`.
    """
    return own_config(locate(source, weights=False)).get("model_type") in _NOTES
