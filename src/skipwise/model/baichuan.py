"""Load Baichuan-7B and Baichuan2-7B, which transformers has no class for, as equivalent Llama models.

Their folders contain custom code, which is never run. The architecture is published and is Llama's, with two
differences:

- `W_pack` stacks the query, key and value projections in one weight. Llama has three weights.
- The head of version 2 (`NormHead`) normalises its rows in every forward pass. Here they are normalized once.

Rotary positions are Llama's, with base 10000. The 13B models use ALiBi instead and are refused. An extended Baichuan is
saved as a Llama checkpoint, which every reader of Llama loads unchanged.

Source: Baichuan 2, arXiv 2309.10305, sections 2.3 and 2.4.
"""

import logging
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig
from transformers.modeling_utils import load_state_dict
from transformers.utils.hub import get_checkpoint_shard_files

from skipwise.errors import CheckpointError, UnsupportedModelError
from skipwise.model._transformers import find_file
from skipwise.model.place import ModelSource
from skipwise.model.rotary import ALIBI
from skipwise.model.source import BAICHUAN

logger = logging.getLogger("skipwise")

_BASE = 10000.0
_SIZES = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "rms_norm_eps", "vocab_size")
# Settings with the same names and defaults as Llama's.
_OPTIONAL = ("hidden_act", "initializer_range", "bos_token_id", "eos_token_id")
# Vocabulary sizes of the two versions. They tell a plain head from a NormHead if the folder has no code.
_PLAIN_VOCABULARY, _NORMALISED_VOCABULARY = 64000, 125696
# Sizes of the models with ALiBi. They identify these models if the folder has no code.
_ALIBI_SIZES = {"hidden_size": 5120, "num_attention_heads": 40, "num_hidden_layers": 40}
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def llama_config(config: Mapping[str, Any], place: ModelSource) -> LlamaConfig:
    """The config of the equivalent Llama model.

    Args:
        config: as returned by `packed_config`.
        place: where the model is. The text of its code is searched, but the code is not run.

    Raises:
        UnsupportedModelError: the model has ALiBi, is quantized, or has settings that no published Baichuan uses.
        CheckpointError: the config lacks sizes.
    """
    window: Any = config.get("max_position_embeddings") or config.get("model_max_length")
    missing = [name for name in _SIZES if config.get(name) is None]
    missing += [] if window else ["max_position_embeddings or model_max_length"]
    if missing:
        raise CheckpointError(f"the config of {str(place)!r} lacks {', '.join(missing)}; give the folder as published")
    if reason := _refusal_reason(config, place):
        raise UnsupportedModelError(f"model {str(place)!r} (model type {BAICHUAN}) cannot be extended: {reason}")
    extra: dict[str, Any] = {"converted_from": BAICHUAN}
    return LlamaConfig(
        **{name: config[name] for name in (*_SIZES, *_OPTIONAL) if name in config},
        num_key_value_heads=config["num_attention_heads"],
        max_position_embeddings=window,
        # Normalising changes the head, so it cannot share the embeddings even if the checkpoint tied them.
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": _BASE},
        pad_token_id=config.get("pad_token_id", 0),
        architectures=["LlamaForCausalLM"],
        dtype=config.get("dtype") or config.get("torch_dtype"),
        **extra,
    )


def llama_weights(config: Mapping[str, Any], place: ModelSource) -> dict[str, Tensor]:
    """The weights of a Baichuan under their Llama names. Only tensors are loaded from pickle files.

    Args:
        config: as returned by `packed_config`.
        place: where the model is.

    Raises:
        CheckpointError: there are no weights, or a file is damaged or contains more than tensors.
        UnsupportedModelError: it cannot be determined whether the rows of the head are normalized.
    """
    normalized = _has_normalised_head(config, place)
    weights: dict[str, Tensor] = {}
    for file in _weight_files(place):
        try:
            stored = load_state_dict(file)
        except (pickle.UnpicklingError, EOFError) as error:
            raise CheckpointError(
                f"{file!r} is damaged or contains more than tensors, so it is not loaded: download the checkpoint "
                "again",
                page="untrusted-code",
            ) from error
        for name, tensor in stored.items():
            weights.update(_renamed(name, tensor))
    if normalized and "lm_head.weight" in weights:
        # In float32 whatever the stored dtype, so that rounding to the requested dtype happens only once.
        weights["lm_head.weight"] = functional.normalize(weights["lm_head.weight"].float(), dim=1)
    return weights


def _renamed(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    if name.endswith("rotary_emb.inv_freq"):
        return  # Version 1 stores this table; the config already determines it.
    if ".W_pack." not in name:
        yield name, tensor
        return
    if tensor.shape[0] % 3:
        raise CheckpointError(f"{name} has {tensor.shape[0]} rows, which three equal projections cannot share")
    for part, rows in zip(("q_proj", "k_proj", "v_proj"), tensor.chunk(3), strict=True):
        # Each gets its own memory, because they are saved and trained separately.
        yield name.replace("W_pack", part), rows.clone()


def _weight_files(place: ModelSource) -> list[str]:
    for name in _WEIGHTS:
        if (whole := find_file(place.name, name)) is not None:
            return [whole]
        if (index := find_file(place.name, f"{name}.index.json")) is not None:
            return get_checkpoint_shard_files(place.name, index)[0] or []
    raise CheckpointError(f"model {str(place)!r} has no weights; it needs {' or '.join(_WEIGHTS)}, or their shards")


def _refusal_reason(config: Mapping[str, Any], place: ModelSource) -> str | None:
    if _has_alibi(config, place):
        return ALIBI
    if config.get("quantization_config"):
        return "its weights are already quantized; give the checkpoint that it was made from"
    for name, published in (("rope_scaling", None), ("rope_theta", _BASE)):
        if config.get(name) not in (None, published):
            return (
                f"its config has {name} {config[name]!r}, which no published Baichuan reads; if the model's own code "
                "does not read it either, remove it from config.json"
            )
    return None


def _has_alibi(config: Mapping[str, Any], place: ModelSource) -> bool:
    code = _code(config, place)
    alibi, rotary = "alibi" in code.lower(), "Rotary" in code
    if alibi != rotary:
        return alibi
    if any(config[name] == size for name, size in _ALIBI_SIZES.items()):
        return True
    if not code and "max_position_embeddings" not in config:
        logger.warning(
            f"nothing in {str(place)!r} says whether its positions are rotary (as in 7B) or ALiBi (as in 13B); rotary "
            "is assumed"
        )
    return False


def _has_normalised_head(config: Mapping[str, Any], place: ModelSource) -> bool:
    if code := _code(config, place):
        return "NormHead" in code
    if config["vocab_size"] in (_PLAIN_VOCABULARY, _NORMALISED_VOCABULARY):
        return config["vocab_size"] == _NORMALISED_VOCABULARY
    # Version 1 spells its class BaiChuan, version 2 Baichuan.
    names = {*(config.get("architectures") or ())}
    if names in ({"BaiChuanForCausalLM"}, {"BaichuanForCausalLM"}):
        return names == {"BaichuanForCausalLM"}
    raise UnsupportedModelError(
        f"model {str(place)!r} (model type {BAICHUAN}) does not say whether the rows of its head are normalized, as in "
        "version 2: put its modeling_baichuan.py beside the weights (it is searched, not run)"
    )


def _code(config: Mapping[str, Any], place: ModelSource) -> str:
    """The text of the Python file in the model's folder that defines its class; empty if there is none."""
    reference = (config.get("auto_map") or {}).get("AutoModelForCausalLM", "")
    module = re.fullmatch(r"(?:.*--)?(\w+)\.\w+", reference if isinstance(reference, str) else "")
    file = find_file(place.name, f"{module[1] if module else 'modeling_baichuan'}.py")
    return "" if file is None else Path(file).read_text(encoding="utf-8", errors="replace")
