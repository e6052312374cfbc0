"""Write and read GGUF files of the Llama, Mistral, Qwen2, Qwen3 and Gemma families.

GGUF stores two kinds of weights differently from transformers. In the query and key projections of Llama and Mistral,
the two dimensions of a rotated pair are neighbours; in transformers they are half a head apart. Gemma's norms are
stored with the 1 that its class adds in transformers. All other weights are only renamed.
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
from skipwise.rope import RopeState
from skipwise.rope.eras import head_dim

DTYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16", "q8_0": "Q8_0"}
"""Number formats of a GGUF file, by their `--dtype` name."""

_FILE_TYPES = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "BF16": "MOSTLY_BF16", "Q8_0": "MOSTLY_Q8_0"}


class _Family(NamedTuple):
    """How llama.cpp runs a family of models.

    Attributes:
        architecture: llama.cpp's name of the family.
        activation: activation of the feed-forward layers, which the metadata do not contain.
        permuted: whether the dimensions of a rotated pair are neighbours in queries and keys.
        has_divisors: whether llama.cpp reads tensors of frequency divisors.
        is_gemma: whether norms are stored with 1 added and some layers may use local attention.
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
"""Supported families, by `model_type`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufPlan:
    """Everything in a file except the weights. It is planned first, so that an unsupported model leaves no file.

    Attributes:
        family: how llama.cpp runs the model.
        rope: rotary embedding.
        tokenizer: tokenizer.
        metadata: entries of the architecture, by key without the architecture.
    """

    family: _Family
    rope: GgufRope
    tokenizer: GgufTokenizer
    metadata: Mapping[str, Any]


def plan_gguf(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> GgufPlan:
    """Plans a GGUF file for a model.

    Args:
        model: without adapters.
        tokenizer: the model's tokenizer.

    Raises:
        UnsupportedModelError: the family, or a part of the model or tokenizer, is not supported.
        ConfigError: llama.cpp cannot compute the rotary embedding or the attention. The message names an alternative.
    """
    config: Any = text_config(model.config)
    family = FAMILIES.get(model.config.model_type)
    if family is None:
        raise UnsupportedModelError(
            f"model type is {model.config.model_type!r}; GGUF export supports {', '.join(FAMILIES)}: export --to hf "
            "and convert that with llama.cpp's convert_hf_to_gguf.py",
            page="engine-cannot-compute",
        )
    state, width = rope_state(model.config), head_dim(config.to_dict())
    _check_computable(config, family, state, width)
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
        "attention.key_length": width,
        "attention.value_length": width,
        "vocab_size": config.vocab_size,
        "rope.dimension_count": state.rotary_dim,
        **rope.entries,
    }
    if family.is_gemma and any(local):
        metadata["attention.sliding_window"] = config.sliding_window
        metadata["attention.sliding_window_pattern"] = local
        if own_base:
            metadata["rope.freq_base_swa"] = float(config.rope_parameters[LOCAL_LAYERS[0]]["rope_theta"])
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if getattr(config, name, None) is not None:
            metadata[name] = float(getattr(config, name))
    written = tokenizer_to_gguf(tokenizer, config.vocab_size)
    return GgufPlan(family=family, rope=rope, tokenizer=written, metadata=metadata)


def write_gguf(path: Path, model: PreTrainedModel, plan: GgufPlan, dtype: str, name: str) -> None:
    """Writes a GGUF file, one tensor at a time to save memory.

    Args:
        path: path of the new file.
        model: the model that was planned.
        plan: as returned by `plan_gguf`.
        dtype: key of `DTYPES`, for matrices. Norms, biases and divisors are float32. Matrices whose rows do not divide
            into blocks of 32 are F16 instead of Q8_0.
        name: display name of the model.

    Raises:
        CheckpointError: a weight is not finite, or too large for the format.
        UnsupportedModelError: llama.cpp's architecture does not have one of the weights.
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
        # The writer expects the shape in bytes with the type, as for every quantised tensor.
        writer.add_tensor_info(stored_name, shape, np.dtype(np.uint8), int(np.prod(shape)), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for stored_name, weight in stored:
        number = weight if isinstance(weight, np.ndarray) else _in_gguf_order(stored_name, weight, model, plan.family)
        kind = stored_type(number.shape, dtype)
        blocks = gguf.quantize(number, kind)
        if not np.isfinite(gguf.dequantize(blocks, kind)).all():
            writer.close()
            raise CheckpointError(
                f"tensor {stored_name} has values that {DTYPES[dtype]} cannot represent (largest "
                f"{np.abs(number).max():.4g}); choose --dtype bf16 or f32",
                page="engine-cannot-compute",
            )
        writer.write_tensor_data(blocks)
    writer.close()


def stored_type(shape: tuple[int, ...], dtype: str) -> Any:
    """The gguf package's type that a tensor of this shape is stored in."""
    import gguf

    if len(shape) == 1:
        return gguf.GGMLQuantizationType.F32
    name = DTYPES[dtype]
    return gguf.GGMLQuantizationType["F16" if name == "Q8_0" and shape[-1] % 32 else name]


def rounded(weight: torch.Tensor, dtype: str) -> torch.Tensor:
    """The weight after rounding to a format: float32, same shape."""
    import gguf

    kind = stored_type(tuple(weight.shape), dtype)
    numbers = gguf.dequantize(gguf.quantize(weight.detach().float().cpu().numpy(), kind), kind)
    return torch.from_numpy(np.array(numbers, dtype=np.float32)).reshape(weight.shape)


class GgufContent(NamedTuple):
    """The metadata of a GGUF file.

    Attributes:
        architecture: llama.cpp's name of the family.
        entries: metadata of the architecture, by key without the architecture.
        divisors: tensors of the rotary embedding, by name.
    """

    architecture: str
    entries: dict[str, Any]
    divisors: dict[str, np.ndarray]


def read_gguf(path: Path) -> GgufContent:
    """Reads a file's metadata and the tensors of its rotary embedding, but no weights."""
    import gguf

    reader = gguf.GGUFReader(path)
    architecture = reader.fields["general.architecture"].contents()
    prefix = f"{architecture}."
    entries = {key: field.contents() for key, field in reader.fields.items() if key.startswith(prefix)}
    return GgufContent(
        architecture=architecture,
        entries={key.removeprefix(prefix): value for key, value in entries.items()},
        divisors={tensor.name: np.array(tensor.data) for tensor in reader.tensors if tensor.name.startswith("rope_")},
    )


def _check_computable(config: Any, family: _Family, state: RopeState, width: int) -> None:
    """Raises for models that llama.cpp would compute differently, whatever the metadata; `width` is that of a head."""
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    if activation != family.activation:
        raise UnsupportedModelError(
            f"model's activation is {activation!r}, but llama.cpp runs this family with {family.activation}; export "
            "--to hf and serve it with vLLM",
            page="engine-cannot-compute",
        )
    if state.rotary_dim != width:
        raise UnsupportedModelError(
            f"{state.rotary_dim} of {width} dimensions of a head are rotated, but llama.cpp rotates all of them in "
            "this family; export --to hf and serve it with vLLM",
            page="engine-cannot-compute",
        )
    span = local_span(config)
    if span is not None and not family.is_gemma and span < state.maximum:
        raise ConfigError(
            f"layers of the model attend only to the last {span} tokens, but llama.cpp lets them attend to all "
            f"{state.maximum}; if the model was trained that way, set sliding_window to null in a copy of the "
            "checkpoint, otherwise export --to hf and serve it with vLLM",
            page="engine-cannot-compute",
        )
    if not family.is_gemma or not hasattr(config, "query_pre_attn_scalar"):
        return
    # llama.cpp recognises the sizes that scale attention differently by their number of layers.
    of_hidden = {"gemma2": 46, "gemma3": 62}[family.architecture] == config.num_hidden_layers
    scalar = config.hidden_size // config.num_attention_heads if of_hidden else width
    if config.query_pre_attn_scalar != scalar:
        raise UnsupportedModelError(
            f"config's query_pre_attn_scalar is {config.query_pre_attn_scalar}, but llama.cpp uses {scalar} for such a "
            "model; export --to hf and serve it with vLLM",
            page="engine-cannot-compute",
        )


def _tensors(model: PreTrainedModel, plan: GgufPlan) -> Iterator[tuple[str, torch.Tensor | np.ndarray]]:
    """Yields name in the file and tensor, divisors first. A tied head is left out."""
    import gguf

    yield from plan.rope.tensors.items()
    config: Any = model.config
    architecture = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == plan.family.architecture)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        stored_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if stored_name is None:
            raise UnsupportedModelError(
                f"the model has a weight {name!r} that llama.cpp's {plan.family.architecture} does not have",
                page="engine-cannot-compute",
            )
        yield stored_name, weight


def _in_gguf_order(name: str, weight: torch.Tensor, model: PreTrainedModel, family: _Family) -> np.ndarray:
    """The weight in float32, with the order of rows and the offset that llama.cpp expects."""
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
    # A bool is an int, too.
    kinds = ((bool, writer.add_bool), (int, writer.add_uint32), (float, writer.add_float32), (str, writer.add_string))
    next((add for kind, add in kinds if isinstance(value, kind)), writer.add_array)(key, value)
