"""GGUF files of the Llama, Mistral, Qwen2, Qwen3 and Gemma families, with their rotary embedding and tokenizer.

Two things in the weights are GGUF's own. Llama's and Mistral's queries and keys are stored with the two dimensions of a
rotated pair as neighbours, where transformers has them half a head apart. Gemma's norms are stored with the 1 added
that its class adds. Everything else is renamed only.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from skipwise.doctor.bench import LOCAL_LAYERS, local_span
from skipwise.errors import CheckpointError, ConfigError, UnsupportedModelError
from skipwise.export.gguf_rope import GgufRope
from skipwise.export.gguf_rope import to_gguf as rope_to_gguf
from skipwise.export.gguf_tokenizer import GgufTokenizer
from skipwise.export.gguf_tokenizer import to_gguf as tokenizer_to_gguf
from skipwise.model import rope_state
from skipwise.model.rotary import text_config
from skipwise.rope.eras import head_dim

DTYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16", "q8_0": "Q8_0"}
"""Number formats of a GGUF file, by the name that `--dtype` has for them."""

_FILE_TYPES = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "BF16": "MOSTLY_BF16", "Q8_0": "MOSTLY_Q8_0"}


class _Family(NamedTuple):
    """How llama.cpp runs a kind of model.

    Attributes:
        architecture: its name there.
        activation: of the feed-forward layers, which is no metadata.
        permuted: queries and keys have the dimensions of a pair side by side.
        has_divisors: tensors of divisors of the frequencies are read.
        is_gemma: norms are stored with 1 added, and some layers may be local.
    """

    architecture: str
    activation: str = "silu"
    permuted: bool = False
    has_divisors: bool = False
    is_gemma: bool = False


_GELU = "gelu_pytorch_tanh"
FAMILIES = {
    "llama": _Family("llama", permuted=True, has_divisors=True),
    "mistral": _Family("llama", permuted=True, has_divisors=True),
    "qwen2": _Family("qwen2"),
    "qwen3": _Family("qwen3"),
    "gemma": _Family("gemma", _GELU, is_gemma=True),
    "gemma2": _Family("gemma2", _GELU, is_gemma=True),
    "gemma3_text": _Family("gemma3", _GELU, is_gemma=True),
}
"""Kinds of model that are written, by `model_type`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufPlan:
    """All that goes into a file but the weights, found to be possible before any is written.

    Attributes:
        family: how llama.cpp runs the model.
        rope: its rotary embedding.
        tokenizer: its tokenizer.
        metadata: entries of the architecture, by the end of their key.
    """

    family: _Family
    rope: GgufRope
    tokenizer: GgufTokenizer
    metadata: Mapping[str, Any]


def plan_gguf(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> GgufPlan:
    """Finds how a model is written as GGUF.

    Args:
        model: without adapters.
        tokenizer: that goes with it.

    Raises:
        UnsupportedModelError: it is of a family, or has a part, that is not written.
        ConfigError: llama.cpp cannot compute its rotary embedding or attention, with the nearest that it can.
    """
    config: Any = text_config(model.config)
    family = FAMILIES.get(model.config.model_type)
    if family is None:
        raise UnsupportedModelError(
            f"model type is {model.config.model_type!r}; as GGUF are written {', '.join(FAMILIES)}: export --to hf and "
            "convert that with llama.cpp's convert_hf_to_gguf.py"
        )
    state = rope_state(model.config)
    _check_computable(config, family, state.rotary_dim, state.maximum)
    local = [kind in LOCAL_LAYERS for kind in getattr(config, "layer_types", None) or ()]
    own_base = isinstance(config.rope_parameters.get(LOCAL_LAYERS[0]), dict)
    rope = rope_to_gguf(state, has_divisors=family.has_divisors, local_layers=own_base)
    metadata: dict[str, Any] = {
        "context_length": state.maximum,
        "block_count": config.num_hidden_layers,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "attention.key_length": head_dim(config.to_dict()),
        "attention.value_length": head_dim(config.to_dict()),
        "vocab_size": config.vocab_size,
        "rope.dimension_count": state.rotary_dim,
        **rope.entries,
    }
    if family.is_gemma and any(local):
        metadata["attention.sliding_window"] = config.sliding_window
        metadata["attention.sliding_window_pattern"] = local
        if own_base:
            metadata["rope.freq_base_swa"] = float(config.rope_parameters[LOCAL_LAYERS[0]]["rope_theta"])
    for name, key in (
        ("attn_logit_softcapping", "attn_logit_softcapping"),
        ("final_logit_softcapping", "final_logit_softcapping"),
    ):
        if getattr(config, name, None) is not None:
            metadata[key] = float(getattr(config, name))
    return GgufPlan(
        family=family, rope=rope, tokenizer=tokenizer_to_gguf(tokenizer, config.vocab_size), metadata=metadata
    )


def write_gguf(path: Path, model: PreTrainedModel, plan: GgufPlan, dtype: str, name: str) -> None:
    """Writes the file, one tensor in memory at a time beside the model's own.

    Args:
        path: of the new file.
        model: that the plan is of.
        plan: from `plan_gguf`.
        dtype: key of `DTYPES`, for matrices; norms, biases and divisors are float32, and rows that do not divide into
            blocks of 32 are F16 in place of Q8_0.
        name: of the model, for people.

    Raises:
        CheckpointError: a weight is not a number, or too large for the format.
    """
    import gguf

    writer = gguf.GGUFWriter(path, plan.family.architecture)
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[DTYPES[dtype]]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for key, value in plan.metadata.items():
        _add(writer, f"{plan.family.architecture}.{key}", value)
    _add_tokenizer(writer, plan.tokenizer)
    stored = list(_tensors(model, plan))
    for stored_name, weight in stored:
        kind = stored_type(tuple(weight.shape), dtype)
        shape = gguf.quant_shape_to_byte_shape(tuple(weight.shape), kind)
        # A shape in bytes and the kind that they stand for, as for any quantised tensor.
        writer.add_tensor_info(stored_name, shape, np.dtype(np.uint8), int(np.prod(shape)), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for stored_name, weight in stored:
        number = weight if isinstance(weight, np.ndarray) else _in_gguf_order(stored_name, weight, model, plan.family)
        blocks = gguf.quantize(number, stored_type(number.shape, dtype))
        if not np.isfinite(gguf.dequantize(blocks, stored_type(number.shape, dtype))).all():
            writer.close()
            raise CheckpointError(
                f"tensor {stored_name} has numbers that {DTYPES[dtype]} cannot hold (largest "
                f"{np.abs(number).max():.4g}); choose --dtype bf16 or f32"
            )
        writer.write_tensor_data(blocks)
    writer.close()


def stored_type(shape: tuple[int, ...], dtype: str) -> Any:
    """The kind of numbers, of the gguf package, that a tensor of this shape is stored in."""
    import gguf

    if len(shape) == 1:
        return gguf.GGMLQuantizationType.F32
    name = DTYPES[dtype]
    return gguf.GGMLQuantizationType["F16" if name == "Q8_0" and shape[-1] % 32 else name]


def rounded(weight: torch.Tensor, dtype: str) -> torch.Tensor:
    """A weight as it is after it was stored in a format: float32, of the same shape."""
    import gguf

    kind = stored_type(tuple(weight.shape), dtype)
    numbers = gguf.dequantize(gguf.quantize(weight.detach().float().cpu().numpy(), kind), kind)
    return torch.from_numpy(np.array(numbers, dtype=np.float32)).reshape(weight.shape)


class GgufContent(NamedTuple):
    """What a file says.

    Attributes:
        architecture: its family, as llama.cpp names it.
        entries: metadata of the family, by the end of the key.
        divisors: tensors of the rotary embedding, by name.
    """

    architecture: str
    entries: dict[str, Any]
    divisors: dict[str, np.ndarray]


def read_gguf(path: Path) -> GgufContent:
    """Reads a file's metadata and the tensors of its rotary embedding, and no weights."""
    import gguf

    reader = gguf.GGUFReader(path)
    fields = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("tokenizer.")}
    architecture = fields["general.architecture"]
    return GgufContent(
        architecture=architecture,
        entries={
            key.removeprefix(f"{architecture}."): value
            for key, value in fields.items()
            if key.startswith(f"{architecture}.")
        },
        divisors={tensor.name: np.array(tensor.data) for tensor in reader.tensors if tensor.name.startswith("rope_")},
    )


def _check_computable(config: Any, family: _Family, rotary_dim: int, maximum: int) -> None:
    """Refuses what llama.cpp computes otherwise and takes no metadata for."""
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    if activation != family.activation:
        raise UnsupportedModelError(
            f"model's activation is {activation!r}, and llama.cpp runs this family with {family.activation}"
        )
    if rotary_dim != head_dim(config.to_dict()):
        raise UnsupportedModelError(
            f"{rotary_dim} of {head_dim(config.to_dict())} dimensions of a head are rotated, and llama.cpp rotates all "
            "of them in this family; export --to hf and serve it with vLLM"
        )
    span = local_span(config)
    if span is not None and not family.is_gemma and span < maximum:
        raise ConfigError(
            f"layers of the model look back {span} tokens only, and llama.cpp lets them see all {maximum}; set "
            "sliding_window to null in a copy of the checkpoint if it was trained to see them all, or serve --to hf "
            "with vLLM"
        )
    if not family.is_gemma or not hasattr(config, "query_pre_attn_scalar"):
        return
    # llama.cpp knows by the number of layers which sizes scale otherwise.
    of_hidden = {"gemma2": 46, "gemma3": 62}[family.architecture] == config.num_hidden_layers
    scalar = config.hidden_size // config.num_attention_heads if of_hidden else head_dim(config.to_dict())
    if config.query_pre_attn_scalar != scalar:
        raise UnsupportedModelError(
            f"config's query_pre_attn_scalar is {config.query_pre_attn_scalar}, and llama.cpp scales the attention of "
            f"such a model by {scalar}; export --to hf and serve it with vLLM"
        )


def _tensors(model: PreTrainedModel, plan: GgufPlan) -> Iterator[tuple[str, torch.Tensor | np.ndarray]]:
    """Name in the file and tensor, divisors first; a tied head is none of its own."""
    import gguf

    yield from plan.rope.tensors.items()
    config: Any = model.config
    names = gguf.get_tensor_name_map(_architecture(plan.family), config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        stored_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if stored_name is None:
            raise UnsupportedModelError(
                f"the model has a weight {name!r} that llama.cpp's {plan.family.architecture} lacks"
            )
        yield stored_name, weight


def _architecture(family: _Family) -> Any:
    import gguf

    return next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == family.architecture)


def _in_gguf_order(name: str, weight: torch.Tensor, model: PreTrainedModel, family: _Family) -> np.ndarray:
    """Float32 numbers in the order, and with the offset, that llama.cpp wants."""
    number, config = weight.detach().float().cpu().numpy(), model.config
    if family.permuted and (".attn_q." in name or ".attn_k." in name):
        heads: Any = config.num_attention_heads if ".attn_q." in name else config.num_key_value_heads
        halves = number.reshape(heads, 2, len(number) // heads // 2, *number.shape[1:])
        number = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(number.shape)
    if family.is_gemma and name.endswith("norm.weight"):
        number = number + np.float32(1)
    return number


def _add_tokenizer(writer: Any, tokenizer: GgufTokenizer) -> None:
    writer.add_tokenizer_model(tokenizer.model)
    writer.add_tokenizer_pre(tokenizer.pre)
    writer.add_token_list(tokenizer.tokens)
    writer.add_token_types(tokenizer.types)
    if tokenizer.merges is not None:
        writer.add_token_merges(tokenizer.merges)
    if tokenizer.scores is not None:
        writer.add_token_scores(tokenizer.scores)
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.chat_template)
    for key, value in tokenizer.entries.items():
        _add(writer, f"tokenizer.ggml.{key}", value)


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
