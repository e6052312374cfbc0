"""Loads models from a folder, the hub or a GGUF file, with the interpolation built in."""

import copy
import logging
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    GgufConfig,
    LlamaForCausalLM,
    PhiForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from skipwise.errors import CheckpointError, ConfigError, UnsupportedModelError
from skipwise.model._transformers import find_file, set_attention
from skipwise.model.baichuan import llama_config, llama_weights
from skipwise.model.extend import built_around, extended_config, rope_state, told_config, with_first_layers
from skipwise.model.gguf_file import read_once
from skipwise.model.gptj import as_loaded, is_gptj, phi_parameters
from skipwise.model.place import ModelSource
from skipwise.model.quantized import FourBits, check_quantizable, keep_packed_as_trained
from skipwise.model.rotary import refusal_reason
from skipwise.model.shards import reads_rows, rows_of
from skipwise.model.source import (
    locate,
    one_line_errors,
    packed_config,
    quiet_transformers,
    without_conversion,
)
from skipwise.model.stored import (
    ask_for_plain_weights,
    blocks_as_stored,
    check_nothing_is_packed,
    forget_quantization,
    make_plain,
)
from skipwise.model.tokenizer import has_tokenizer, load_tokenizer
from skipwise.names import did_you_mean
from skipwise.rope import Interpolation
from skipwise.window import Window

logger = logging.getLogger("skipwise")


class LoadedModel(NamedTuple):
    """A model and the tokenizer it was trained with."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def load_model(
    source: str | Path,
    *,
    interpolation: Interpolation | None = None,
    window: Window | None = None,
    original: int | None = None,
    dtype: str | torch.dtype | None = None,
    attention: str | None = None,
    quantization: FourBits | None = None,
    in_shards: bool = False,
    first_layers: int | None = None,
    needs_tokenizer: bool = True,
    trust_remote_code: bool = False,
) -> LoadedModel:
    """Loads a decoder and its tokenizer, with the interpolation built in.

    Args:
        source: a checkpoint folder (safetensors), a hub name, or the path of a `.gguf` file.
        interpolation: how the rotary table is stretched; None leaves the model as it is.
        window: the lengths that the interpolation is for; required with `interpolation`.
        original: window that the base model was pre-trained for, in tokens, if its config does not say (Qwen3's says
            40960, but it was 32768); None for the config's.
        dtype: dtype of the parameters: `"float32"`, `torch.bfloat16`, ..., or `"auto"` for the checkpoint's own
            (float32 for a GGUF file). None means `"auto"` with an accelerator, else float32.
        attention: `"sdpa"`, `"eager"`, `"flash_attention_2"`, ... or a kernel on the hub; None: the library chooses.
        quantization: quantizes the linear layers of a full-precision checkpoint to 4 bits while they are loaded.
        in_shards: each process of the group reads its slice of every weight (`skipwise.model.shards`), unless the
            weights have to be whole to be converted.
        first_layers: number of decoder layers to load, from the first on; weights of the others are not read. None for
            all. Not for GGUF files and Baichuan, whose weights are read all together.
        needs_tokenizer: refuse a folder without a tokenizer; if False, the tokenizer may be None.
        trust_remote_code: run Python code that comes with the checkpoint.

    Returns:
        The model in evaluation mode, on the CPU or the device of `quantization`, and its tokenizer. A GPT-J is returned
        as an equivalent Phi (`skipwise.model.gptj`), a Baichuan as an equivalent Llama (`skipwise.model.baichuan`).

    Raises:
        CheckpointError: the checkpoint is missing, damaged or incomplete, has pickled weights, or has a tokenizer for
            another vocabulary.
        UnsupportedModelError: the model has no rotary positions to extend; the message says why.
        ConfigError: a setting is wrong, or a package is missing.
    """
    if (interpolation is None) != (window is None):
        raise ConfigError("interpolation and window go together: give load_model both or neither")
    _check_attention(attention)
    place = locate(source, weights=True)
    with quiet_transformers():
        config = _own_config(place, trust_remote_code)
        if quantization is not None:
            check_quantizable(source, config)
        wanted = needs_tokenizer or has_tokenizer(place)
        tokenizer = load_tokenizer(place, config, trust_remote_code) if wanted else None
        target = told_config(as_loaded(config), original)
        if interpolation is not None and window is not None:
            before, target = target, extended_config(target, interpolation, window)
            _warn_of_reset(before, target)
        if first_layers is not None:
            config, target = (with_first_layers(each, first_layers) for each in (config, target))
        if is_gptj(config):
            gptj: Any = _load_weights(place, config, dtype, None, None, trust_remote_code)
            set_attention(target, attention)
            model = built_around(PhiForCausalLM, target, phi_parameters(gptj), gptj)
        else:
            rows = None
            if in_shards and quantization is None:
                skeleton = without_weights(target, trust_remote_code=trust_remote_code)
                rows = rows_of(skeleton) if reads_rows(source, skeleton) else None
            model = _load_weights(place, target, dtype, attention, quantization, trust_remote_code, rows)
    # A tokenizer warns of texts longer than this, or cuts them.
    if tokenizer is not None:
        tokenizer.model_max_length = max(tokenizer.model_max_length, rope_state(model.config).maximum)
    return LoadedModel(model, tokenizer)  # pyright: ignore[reportArgumentType]


def read_config(
    source: str | Path, *, original: int | None = None, trust_remote_code: bool = False
) -> PreTrainedConfig:
    """Reads a model's config without its weights, and refuses a model that cannot be extended.

    Args:
        source, original: as for `load_model`.
        trust_remote_code: run Python code that comes with the checkpoint.

    Raises:
        CheckpointError, UnsupportedModelError, ConfigError: as for `load_model`.
    """
    with quiet_transformers():
        config = _own_config(locate(source, weights=False), trust_remote_code)
        return told_config(as_loaded(config), original)


def check_loads_in_four_bits(source: str | Path, *, trust_remote_code: bool = False) -> None:
    """Refuses a model that `load_model` cannot quantize, by its config alone.

    Raises:
        ConfigError: as `check_quantizable`.
        CheckpointError, UnsupportedModelError: as for `load_model`.
    """
    with quiet_transformers():
        check_quantizable(source, _own_config(locate(source, weights=False), trust_remote_code))


def without_weights(config: PreTrainedConfig, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """Builds a model on the meta device: modules, names and shapes without weights."""
    with quiet_transformers(), torch.device("meta"):
        # From a copy, because building a model sets the attention implementation in its config.
        return AutoModelForCausalLM.from_config(copy.deepcopy(config), trust_remote_code=trust_remote_code)


def _own_config(place: ModelSource, trust_remote_code: bool) -> PreTrainedConfig:
    """The checkpoint's own config; refuses a model that cannot be extended."""
    with one_line_errors(place, "the config"), read_once(place):
        if (packed := packed_config(place)) is not None:
            return llama_config(packed, place)
        config = AutoConfig.from_pretrained(place.name, **place.file_arguments, trust_remote_code=trust_remote_code)
        if is_gptj(config):
            return config
        if config.is_encoder_decoder:
            raise _refusal(place, config, "it is an encoder-decoder, and only decoders that read left to right can be")
        skeleton = without_weights(config, trust_remote_code=trust_remote_code)
    if reason := refusal_reason(skeleton):
        raise _refusal(place, config, reason)
    try:
        rope_state(config)
    except UnsupportedModelError as error:
        raise _refusal(place, config, str(error)) from error
    return config


def _warn_of_reset(before: PreTrainedConfig, after: PreTrainedConfig) -> None:
    """Warns if the extension replaces a calibrated attention factor, which was for the old window."""
    old, new = rope_state(before), rope_state(after)
    if old.trained_factor is not None:
        logger.warning(
            f"the model's attention factor was calibrated to {old.attention_factor:.4g} for {old.maximum} tokens. "
            f"Extended to {new.maximum}, it starts from the interpolation's own, {new.attention_factor:.4g}; "
            "calibrate again after training"
        )


def _refusal(place: ModelSource, config: PreTrainedConfig, reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"model {str(place)!r} (model type {config.model_type}) cannot be extended: {reason}")


def _check_attention(attention: str | None) -> None:
    known = ["eager", *sorted(name for name in ALL_ATTENTION_FUNCTIONS.valid_keys() if "|" not in name)]
    # A name with a slash is a kernel on the hub.
    if attention is not None and attention not in known and "/" not in attention:
        raise ConfigError(
            f"attention is {attention!r}; {did_you_mean(attention, known)}give one of {', '.join(known)}, or a kernel "
            "of the hub (owner/name)"
        )


def _load_weights(
    place: ModelSource,
    config: PreTrainedConfig,
    dtype: str | torch.dtype | None,
    attention: str | None,
    quantization: FourBits | None,
    trust_remote_code: bool,
    rows: Any = None,
) -> PreTrainedModel:
    """Builds the model from the config and loads its weights. A missing weight is an error."""
    arguments: dict[str, Any] = {**place.file_arguments, "config": config, "dtype": _parameter_dtype(dtype, place)}
    if attention is not None:
        arguments["attn_implementation"] = attention
    if quantization is not None:
        arguments |= {"quantization_config": quantization.settings, "device_map": {"": quantization.device}}
    if rows is not None:
        arguments["distributed_config"] = rows
    if place.gguf_file is None:
        arguments["use_safetensors"] = True
    else:
        # Packed blocks can be neither trained nor saved.
        arguments["quantization_config"] = GgufConfig(dequantize=True)
    stored = None if place.gguf_file else ask_for_plain_weights(str(place), config)
    with one_line_errors(place, "the model"), read_once(place), without_conversion(), blocks_as_stored(stored):
        if (packed := packed_config(place)) is not None:
            arguments["state_dict"] = llama_weights(packed, place)
            loaded: Any = LlamaForCausalLM.from_pretrained(None, **arguments, output_loading_info=True)
            if find_file(place.name, "generation_config.json") is not None:
                loaded[0].generation_config = GenerationConfig.from_pretrained(place.name)
        else:
            loaded = AutoModelForCausalLM.from_pretrained(
                place.name, **arguments, output_loading_info=True, trust_remote_code=trust_remote_code
            )
    model, report = loaded
    if packed is not None and (others := sorted(report["unexpected_keys"])):
        raise CheckpointError(
            f"model {str(place)!r} has {len(others)} weights that no published Baichuan has ({others[0]}, ...), so it "
            "is not known what it computes"
        )
    if absent := sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}):
        raise CheckpointError(
            f"model {str(place)!r} lacks {len(absent)} of its weights or has them in another shape ({absent[0]}, ...); "
            "config and weights do not belong together: get the checkpoint again"
        )
    if place.gguf_file is not None:
        forget_quantization(model)
    elif stored is not None:
        make_plain(model, stored, arguments["dtype"])
    else:
        check_nothing_is_packed(str(place), report["unexpected_keys"])
    keep_packed_as_trained(model)
    return model


def _parameter_dtype(dtype: str | torch.dtype | None, place: ModelSource) -> str | torch.dtype:
    if dtype is None:
        dtype = "auto" if torch.accelerator.is_available() else torch.float32
    if dtype == "auto":
        return torch.float32 if place.gguf_file else "auto"
    resolved = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(resolved, torch.dtype) or not resolved.is_floating_point:
        raise ConfigError(f"dtype is {dtype!r}; give auto, float32, bfloat16 or float16")
    return resolved
