"""Baichuan-7B and Baichuan2-7B, which transformers has no class for, as Llama models that compute the same.

A folder of them brings its own code. It is never run: what it computes is published, and Llama's but for two things.

- `W_pack` holds the rows of queries, keys and values one below the other: Llama has them as three weights.
- Version 2 has a head (`NormHead`) whose rows are divided by their length in every pass; here that is done once.

Rotary positions have base 10000 and are Llama's own. The models of 13B parameters have ALiBi instead and are refused.
So an extended Baichuan is saved as a Llama checkpoint, which every reader of Llama loads unchanged.

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
from skipwise.model.place import ModelSource
from skipwise.model.rotary import ALIBI
from skipwise.model.source import BAICHUAN, own_file

logger = logging.getLogger("skipwise")

_BASE = 10000.0
_SIZES = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "rms_norm_eps", "vocab_size")
# Vocabularies of the two versions, where no code lies beside the weights to tell a plain head from a NormHead.
_PLAIN_VOCABULARY, _NORMALISED_VOCABULARY = 64000, 125696
# Sizes of the models with ALiBi, likewise.
_ALIBI_SIZES = {"hidden_size": 5120, "num_attention_heads": 40, "num_hidden_layers": 40}
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def llama_config(config: Mapping[str, Any], place: ModelSource) -> LlamaConfig:
    """The config of the Llama model that computes what this Baichuan computes.

    Args:
        config: as `packed_config` gives it.
        place: where it lies; the text of its code is looked at.

    Raises:
        UnsupportedModelError: it has ALiBi, is quantized, or asks for what no published Baichuan does.
        CheckpointError: sizes are missing.
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
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_hidden_layers=config["num_hidden_layers"],
        num_attention_heads=config["num_attention_heads"],
        num_key_value_heads=config["num_attention_heads"],
        hidden_act=config.get("hidden_act", "silu"),
        max_position_embeddings=window,
        initializer_range=config.get("initializer_range", 0.02),
        rms_norm_eps=config["rms_norm_eps"],
        # A normalised head is none of the embeddings, even where these were its rows once.
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": _BASE},
        bos_token_id=config.get("bos_token_id", 1),
        eos_token_id=config.get("eos_token_id", 2),
        pad_token_id=config.get("pad_token_id", 0),
        architectures=["LlamaForCausalLM"],
        dtype=config.get("dtype") or config.get("torch_dtype"),
        **extra,
    )


def llama_weights(config: Mapping[str, Any], place: ModelSource) -> dict[str, Tensor]:
    """The weights of a Baichuan under their Llama names; pickles are opened as tensors alone.

    Args:
        config: as `packed_config` gives it.
        place: where it lies.

    Raises:
        CheckpointError: there are none, or a file has more in it than tensors.
        UnsupportedModelError: nothing says whether the rows of its head are normalised.
    """
    normalised = _has_normalised_head(config, place)
    weights: dict[str, Tensor] = {}
    for file in _weight_files(place):
        try:
            stored = load_state_dict(file)
        except (pickle.UnpicklingError, EOFError) as error:
            raise CheckpointError(
                f"{file!r} holds more than tensors, or is damaged, and is not opened: get the checkpoint again"
            ) from error
        for name, tensor in stored.items():
            weights.update(_renamed(name, tensor))
    if normalised and "lm_head.weight" in weights:
        # In float32, whatever is stored: rounded once, to the dtype that is asked for.
        weights["lm_head.weight"] = functional.normalize(weights["lm_head.weight"].float(), dim=1)
    return weights


def _renamed(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    if name.endswith("rotary_emb.inv_freq"):
        return  # Version 1 stores the table that the config describes.
    if ".W_pack." not in name:
        yield name, tensor
        return
    if tensor.shape[0] % 3:
        raise CheckpointError(f"{name} has {tensor.shape[0]} rows, which are no queries, keys and values")
    for part, rows in zip(("q_proj", "k_proj", "v_proj"), tensor.chunk(3), strict=True):
        # Of their own memory, since they are written and trained apart.
        yield name.replace("W_pack", part), rows.clone()


def _weight_files(place: ModelSource) -> list[str]:
    for name in _WEIGHTS:
        if (whole := own_file(place, name)) is not None:
            return [whole]
        if (index := own_file(place, f"{name}.index.json")) is not None:
            return get_checkpoint_shard_files(place.name, index)[0] or []
    raise CheckpointError(f"model {str(place)!r} has no weights; {' or '.join(_WEIGHTS)}, or shards, must be there")


def _refusal_reason(config: Mapping[str, Any], place: ModelSource) -> str | None:
    if _has_alibi(config, place):
        return ALIBI
    if config.get("quantization_config"):
        return "its weights are quantized already; give the checkpoint that it was made of"
    for name, published in (("rope_scaling", None), ("rope_theta", _BASE)):
        if config.get(name) not in (None, published):
            return (
                f"its config has {name} {config[name]!r}, which no published Baichuan reads; where its code does not, "
                "either, take it out of config.json"
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
            f"nothing in {str(place)!r} says whether its positions are rotary, as of 7B, or ALiBi, as of 13B; they are "
            "read as rotary"
        )
    return False


def _has_normalised_head(config: Mapping[str, Any], place: ModelSource) -> bool:
    if code := _code(config, place):
        return "NormHead" in code
    if config["vocab_size"] in (_PLAIN_VOCABULARY, _NORMALISED_VOCABULARY):
        return config["vocab_size"] == _NORMALISED_VOCABULARY
    # Version 1 of the rotary models has a class of this spelling, and version 2 of the other.
    names = {*(config.get("architectures") or ())}
    if names in ({"BaiChuanForCausalLM"}, {"BaichuanForCausalLM"}):
        return names == {"BaichuanForCausalLM"}
    raise UnsupportedModelError(
        f"model {str(place)!r} (model type {BAICHUAN}) does not say whether the rows of its head are normalised, as in "
        "version 2: put its modeling_baichuan.py beside the weights, which is looked at and not run"
    )


def _code(config: Mapping[str, Any], place: ModelSource) -> str:
    """The text of the code that the model brings along, as far as it defines the model; empty where there is none."""
    reference = (config.get("auto_map") or {}).get("AutoModelForCausalLM", "")
    module = re.fullmatch(r"(?:.*--)?(\w+)\.\w+", reference if isinstance(reference, str) else "")
    file = own_file(place, f"{module[1] if module else 'modeling_baichuan'}.py")
    return "" if file is None else Path(file).read_text(encoding="utf-8", errors="replace")
