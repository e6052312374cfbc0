"""Models: load with the interpolation in place, look at what they really rotate by, save so that everyone can read it.

The only part of skipwise that knows the transformers library's model classes (with `model_source`, `model_rotary` and
`model_gptj` beside it). No family is named here except GPT-J: whatever keeps its rotary table in its config works.

The interpolation goes into the config *before* the model is built. A model that is already built keeps its tables
whatever its config says, and attention that reads its scale from the rope's config at construction (DeepSeek) would
keep that too. So `with_rope` builds anew around the same parameters.
"""

import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from accelerate import init_empty_weights
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PhiForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.initialization import no_init_weights

from skipwise.errors import CheckpointError, ConfigError, UnsupportedModelError
from skipwise.model_gptj import is_gptj, phi_config, phi_parameters, portability_note
from skipwise.model_rotary import refusal_reason, rotary_tables, text_config
from skipwise.model_source import ModelSource, locate, one_line_errors, quiet_transformers
from skipwise.rope import Interpolation, read_rope, with_legacy_keys, write_rope
from skipwise.window import Window

__all__ = [
    "LoadedModel",
    "load_model",
    "original_window",
    "portability_note",
    "read_config",
    "rotary_tables",
    "save_model",
    "with_rope",
]


class LoadedModel(NamedTuple):
    """A model and the tokenizer it was trained with."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def load_model(
    source: str | Path,
    *,
    interpolation: Interpolation | None = None,
    window: Window | None = None,
    dtype: str | torch.dtype | None = None,
    attention: str | None = None,
    trust_remote_code: bool = False,
) -> LoadedModel:
    """Loads a decoder and its tokenizer, with the interpolation built in.

    Args:
        source: a checkpoint folder (safetensors), a hub name, or the path of a `.gguf` file.
        interpolation: how its rotary table is stretched; None leaves the checkpoint as it is.
        window: the lengths that the interpolation is for; goes with `interpolation`.
        dtype: of the parameters: `"float32"`, `torch.bfloat16`, ..., or `"auto"` for the checkpoint's own (a GGUF file's
            blocks become float32). None means `"auto"` where there is an accelerator, else float32.
        attention: `"sdpa"`, `"eager"`, `"flash_attention_2"`, ...; None leaves the choice to the library.
        trust_remote_code: run Python code that comes with the checkpoint.

    Returns:
        The model in evaluation mode on the CPU, and its tokenizer. A GPT-J comes back as the Phi model that computes
        the same function, since GPT-J's own class cannot be told another table (see `model_gptj`).

    Raises:
        CheckpointError: missing, damaged, incomplete, or with pickled weights.
        UnsupportedModelError: the model has no rotary positions to extend, with the reason.
        ConfigError: a setting or package stands in the way.
    """
    if (interpolation is None) != (window is None):
        raise ConfigError("interpolation and window go together: give load_model both or neither")
    place = locate(source)
    with quiet_transformers():
        config = _own_config(place, trust_remote_code)
        tokenizer = _load_tokenizer(place, trust_remote_code)
        target = phi_config(config) if is_gptj(config) else config
        if interpolation is not None and window is not None:
            target = _extended(target, interpolation, window)
        if is_gptj(config):
            gptj = _load_weights(place, config, dtype, None, trust_remote_code)
            target._attn_implementation = attention
            model = _built_around(PhiForCausalLM, target, phi_parameters(gptj), gptj)
        else:
            model = _load_weights(place, target, dtype, attention, trust_remote_code)
    # A tokenizer warns of, or cuts, texts longer than this; the model's window is the limit now.
    tokenizer.model_max_length = max(tokenizer.model_max_length, text_config(model.config).max_position_embeddings)
    return LoadedModel(model, tokenizer)


def read_config(source: str | Path, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """Reads a model's config without its weights, and refuses the model if it cannot be extended.

    Args:
        source: as for `load_model`.
        trust_remote_code: run Python code that comes with the checkpoint.

    Raises:
        CheckpointError, UnsupportedModelError, ConfigError: as for `load_model`.
    """
    with quiet_transformers():
        config = _own_config(locate(source), trust_remote_code)
    return phi_config(config) if is_gptj(config) else config


def original_window(config: PreTrainedConfig) -> int:
    """The window that the model was pre-trained for, in tokens, also where it was extended since."""
    return read_rope(_mapping(text_config(config))).original


def with_rope(model: PreTrainedModel, interpolation: Interpolation, window: Window) -> PreTrainedModel:
    """The same model under another interpolation: a new model around the same parameter tensors.

    Args:
        model: a plain model, neither quantised nor wrapped by an adapter library.
        interpolation: how its rotary table is stretched.
        window: the lengths that the interpolation is for.

    Returns:
        A model of the same class, mode, device and dtype. Training one changes the parameters of both.

    Raises:
        ConfigError: the model is wrapped or quantised.
    """
    if hasattr(model, "peft_config") or getattr(model, "is_quantized", False):
        raise ConfigError(
            "with_rope was given a model with an adapter or with quantised weights; merge or dequantise it first"
        )
    tensors = dict(model.named_parameters(remove_duplicate=False))
    with quiet_transformers():
        return _built_around(type(model), _extended(model.config, interpolation, window), tensors, model)


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> None:
    """Writes a checkpoint folder that transformers 5 and readers of the 4 era both understand.

    A new folder appears only when it is complete; files of an existing one are replaced in place.

    Args:
        model: as `load_model` gives it, trained or not.
        tokenizer: that goes with it.
        folder: where to; its parents are made.

    Raises:
        CheckpointError: it cannot be written there.
    """
    folder = Path(folder)
    try:
        if folder.exists():
            _write_checkpoint(model, tokenizer, folder)
            return
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as unfinished:
            complete = Path(unfinished) / folder.name
            _write_checkpoint(model, tokenizer, complete)
            complete.rename(folder)
    except OSError as error:
        raise CheckpointError(
            f"checkpoint folder is {str(folder)!r} and cannot be written ({error}); choose another"
        ) from error


def _write_checkpoint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    with quiet_transformers():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    path = folder / "config.json"
    written = json.loads(path.read_text(encoding="utf-8"))
    key = _decoder_key(model.config)
    readable = {**written, key: with_legacy_keys(written[key])} if key else with_legacy_keys(written)
    path.write_text(json.dumps(readable, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _own_config(place: ModelSource, trust_remote_code: bool) -> PreTrainedConfig:
    """The config as the checkpoint has it, of a model that can be extended."""
    with one_line_errors(place, "the config"):
        config = AutoConfig.from_pretrained(place.name, **place.file_arguments, trust_remote_code=trust_remote_code)
        if is_gptj(config):
            return config
        with torch.device("meta"):
            skeleton = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    if reason := refusal_reason(skeleton):
        raise UnsupportedModelError(
            f"model {str(place)!r} (model type {config.model_type}) cannot be extended: {reason}"
        )
    return config


def _extended(config: PreTrainedConfig, interpolation: Interpolation, window: Window) -> PreTrainedConfig:
    """A new config of the same class with the interpolation written in; the given one stays as it is."""
    whole = config.to_dict()
    key = _decoder_key(config)
    decoder = text_config(config)
    written = write_rope(_mapping(decoder), interpolation, window)
    written |= {name: written.pop(common) for common, name in decoder.attribute_map.items() if common in written}
    new = type(config).from_dict({**whole, key: written} if key else written)
    new._attn_implementation = config._attn_implementation
    return new


def _mapping(config: PreTrainedConfig) -> dict[str, Any]:
    """A config as a plain mapping, in which lengths and widths have their common names beside a family's own."""
    own = config.to_dict()
    return {**own, **{common: own[name] for common, name in config.attribute_map.items() if name in own}}


def _decoder_key(config: PreTrainedConfig) -> str | None:
    """Where a composite config keeps its decoder's part; None where the config is the decoder's."""
    decoder = text_config(config)
    return None if decoder is config else next(key for key in config.sub_configs if getattr(config, key) is decoder)


def _built_around(
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    tensors: dict[str, torch.nn.Parameter],
    like: PreTrainedModel,
) -> PreTrainedModel:
    """Builds a model from its config around parameters that exist already; only its tables and buffers are new.

    Args:
        model_class: what to build.
        config: with the interpolation in it.
        tensors: every parameter by name; tied ones under each of their names.
        like: where device, mode and buffers that a checkpoint stores come from.

    Raises:
        ConfigError: the model has other parameters than `tensors`.
    """
    default = torch.get_default_dtype()
    torch.set_default_dtype(like.dtype)
    try:
        # Parameters are dropped as soon as they are made, buffers stay: their values come from the config.
        with init_empty_weights(include_buffers=False), no_init_weights():
            model = model_class(config)
    finally:
        torch.set_default_dtype(default)
    wanted = {name: parameter.shape for name, parameter in model.named_parameters(remove_duplicate=False)}
    if wanted != {name: parameter.shape for name, parameter in tensors.items()}:
        raise ConfigError(
            f"{type(like).__name__} has other parameters than its config describes; give a plain, unwrapped model"
        )
    for name, parameter in tensors.items():
        path, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(path), leaf, parameter)
    stored = dict(like.named_buffers()) if type(like) is model_class else {}
    for name, _ in like.named_non_persistent_buffers():
        stored.pop(name, None)
    for name, buffer in stored.items():
        path, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(path), leaf, buffer)
    model.generation_config = like.generation_config
    return model.to(like.device).train(like.training)


def _load_tokenizer(place: ModelSource, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    with one_line_errors(place, "the tokenizer"):
        return AutoTokenizer.from_pretrained(place.name, **place.file_arguments, trust_remote_code=trust_remote_code)


def _load_weights(
    place: ModelSource,
    config: PreTrainedConfig,
    dtype: str | torch.dtype | None,
    attention: str | None,
    trust_remote_code: bool,
) -> PreTrainedModel:
    """Builds the model from the config and fills in all of its weights; a missing one is an error, never a random tensor."""
    arguments: dict[str, Any] = {**place.file_arguments, "config": config, "dtype": _parameter_dtype(dtype, place)}
    if attention is not None:
        arguments["attn_implementation"] = attention
    if place.gguf_file is None:
        arguments["use_safetensors"] = True
    elif hasattr(transformers, "GgufConfig"):
        # Blocks left packed can be neither trained nor saved; before this setting existed, they never were.
        arguments["quantization_config"] = transformers.GgufConfig(dequantize=True)
    with one_line_errors(place, "the model"):
        model, report = AutoModelForCausalLM.from_pretrained(
            place.name, **arguments, output_loading_info=True, trust_remote_code=trust_remote_code
        )
    if absent := sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}):
        raise CheckpointError(
            f"model {str(place)!r} lacks {len(absent)} of its weights or has them in another shape ({absent[0]}, ...); "
            "config and weights do not belong together: get the checkpoint again"
        )
    if place.gguf_file is not None:
        _forget_quantization(model)
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


def _forget_quantization(model: PreTrainedModel) -> None:
    """A GGUF file's blocks are plain numbers once loaded; the library refuses to save while the record of them remains."""
    for holder, name in (
        (model.config, "quantization_config"),
        (model, "hf_quantizer"),
        (model, "quantization_method"),
    ):
        if hasattr(holder, name):
            delattr(holder, name)
    model.is_quantized = False
