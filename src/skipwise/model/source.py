"""Finds and reads a checkpoint's files, on this machine or the hub, and turns a library's errors into one line."""

import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, StrictDataclassError
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from skipwise.errors import CheckpointError, ConfigError, SkipwiseError, UnsupportedModelError
from skipwise.model._transformers import find_file
from skipwise.model.place import PICKLE_SUFFIXES, TO_SAFETENSORS, ModelSource, find_place
from skipwise.names import first_line

logger = logging.getLogger("skipwise")

BAICHUAN = "baichuan"
"""A model type without a class in transformers. `skipwise.model.baichuan` reads its weights, also from pickles."""
_ADAPTER_WEIGHTS = "adapter_model.safetensors"
_NO_CONVERSION = "DISABLE_SAFETENSORS_CONVERSION"
# What transformers says of an attention implementation that a model has not.
_NO_SUCH_ATTENTION = re.compile(
    r"\w+ does not support (Flash Attention \d|an attention implementation through torch[\w.']*( flex_attention)?)"
)


def locate(source: str | Path, *, weights: bool) -> ModelSource:
    """Finds what `source` means, and refuses what cannot be loaded or should not be trusted.

    Args:
        source: a checkpoint folder, a hub name (`org/name`), the path of a `.gguf` file, or `embedded`.
        weights: whether a folder must contain weights.

    Raises:
        CheckpointError: nothing is there, or the weights are pickles, which can run code.
        ConfigError: it is a GGUF file and the `gguf` package is not installed.
    """
    place = find_place(source)
    if not place.is_folder:
        _require_hub(place.name)
    elif weights and place.gguf_file is None:
        _check_weights(Path(place.name))
    return place


def _require_hub(name: str) -> None:
    """Refuses a model that is only on the hub if the hub cannot be reached.

    Without this check the library would ask six times, with growing pauses.
    """
    if constants.HF_HUB_OFFLINE or isinstance(try_to_load_from_cache(name, "config.json"), str):
        return
    logger.info(f"there is no folder {name!r} here; looking for it on the hub")
    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except (HfHubHTTPError, HFValidationError, EntryNotFoundError):
        return  # The hub answers. Reading the config raises the right error.
    except Exception as error:  # Network errors have the types of the hub's current HTTP library.
        raise CheckpointError(
            f"model is {name!r}; no such folder exists and the hub cannot be reached ({first_line(error)}): check the "
            "name and the connection, or give a local folder",
            page="not-found",
        ) from error


def _check_weights(folder: Path) -> None:
    if any(file.name != _ADAPTER_WEIGHTS for file in folder.glob("*.safetensors")):
        return
    if (folder / _ADAPTER_WEIGHTS).is_file():
        raise CheckpointError(
            f"model is {str(folder)!r}, an adapter without its base model; give the run that it is from, or the folder "
            "that skipwise export --to hf writes for that run",
            page="wrong-base",
        )
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLE_SUFFIXES)
    if pickles and packed_config(ModelSource(name=str(folder))) is not None:
        return
    if pickles:
        raise CheckpointError(
            f"model is {str(folder)!r}, whose weights are pickles ({pickles[0]}), which can run any code; "
            f"{TO_SAFETENSORS}",
            page="untrusted-code",
        )
    raise CheckpointError(
        f"model is {str(folder)!r}, which has a config.json but no weights; put the *.safetensors files beside it"
    )


def packed_config(place: ModelSource) -> dict[str, Any] | None:
    """The content of `config.json` if the model is a Baichuan, else None."""
    config = own_config(place)
    return config if config.get("model_type") == BAICHUAN else None


def own_config(place: ModelSource) -> dict[str, Any]:
    """The content of a model's `config.json`; empty if there is none or it cannot be parsed."""
    file = None if place.gguf_file else find_file(place.name, "config.json")
    try:
        config = {} if file is None else json.loads(Path(file).read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return config if isinstance(config, dict) else {}


# What libraries raise while they read a checkpoint that is damaged, incomplete or of another kind.
_RAISED = (ImportError, OSError, ValueError, KeyError, RuntimeError, AttributeError, TypeError)
_RAISED += (SafetensorError, StrictDataclassError)
_CONVERTED = {
    "gptj": (
        "This model was a GPT-J and is stored as the Phi model that computes the same function, because GPT-J's own "
        "class hard-codes its rotary table and would silently drop the longer window. Load it as it is (model type "
        "phi), with any program that reads Phi; do not convert it back."
    ),
    BAICHUAN: (
        "This model was a Baichuan, a folder with code of its own, and is stored as the Llama model that computes the "
        "same function: its packed projections are apart, and where the rows of its head were normalized in every pass "
        "they are so now. Load it as it is (model type llama), with any program that reads Llama; it needs no code and "
        "no trust_remote_code."
    ),
}


def portability_note(config: Any) -> str | None:
    """What a model card must say about loading a converted model elsewhere; None for other models.

    Args:
        config: the `PreTrainedConfig` of a loaded model.
    """
    return _CONVERTED.get(getattr(config, "converted_from", None) or "")


def is_read_as_another(source: str | Path) -> bool:
    """Whether `load_model` converts the model to another family, so that weights have other names elsewhere.

    Args:
        source: as for `load_model`.
    """
    return own_config(locate(source, weights=False)).get("model_type") in _CONVERTED


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silences the library's progress bars and its warnings below errors, and restores both."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


@contextmanager
def without_conversion() -> Iterator[None]:
    """Stops the library from sending a model's name to a service that converts pickles to safetensors."""
    before = os.environ.get(_NO_CONVERSION)
    os.environ[_NO_CONVERSION] = "1"  # The library reads it each time it looks for weights.
    try:
        yield
    finally:
        if before is None:
            del os.environ[_NO_CONVERSION]
        else:
            os.environ[_NO_CONVERSION] = before


@contextmanager
def one_line_errors(source: ModelSource, part: str) -> Iterator[None]:
    """Turns what libraries raise while they read `part` of a checkpoint into one-line errors of skipwise."""
    try:
        yield
    except SkipwiseError:
        raise
    except _RAISED as error:
        raise _told(error, source, part) from error


def _told(error: Exception, source: ModelSource, part: str) -> SkipwiseError:
    """The error of ours for an error of a library, by its type, else by what it says."""
    whole, said, model = str(error), first_line(error), f"model {str(source)!r}"
    if isinstance(error, SafetensorError):
        return CheckpointError(f"{part} of {str(source)!r} is damaged ({said}); copy or download the checkpoint again")
    if isinstance(error, ImportError):
        return ConfigError(f"{part} of {str(source)!r} needs a package that is missing: {said}", page="missing-extra")
    if isinstance(error, StrictDataclassError):
        return CheckpointError(
            f"{part} of {str(source)!r} could not be read ({' '.join(whole.split())[:200]}); correct it there"
        )
    if "trust_remote_code" in whole:
        return ConfigError(
            f"{model} brings its own code, which is not run unless asked; read that code, then set trust_remote_code",
            page="untrusted-code",
        )
    if "cannot be loaded with `safetensors`" in whole:
        return CheckpointError(
            f"{model} has no safetensors weights on the hub, and pickled ones can run any code; {TO_SAFETENSORS}",
            page="untrusted-code",
        )
    if refused := _NO_SUCH_ATTENTION.match(said):
        return ConfigError(f"{model}: {refused[0]}; give another attention, such as eager")
    if "does not recognize this architecture" in whole or "Unrecognized configuration class" in whole:
        return UnsupportedModelError(f"{model}: transformers has no decoder class for it ({said})")
    cure = "check the name and the connection, or give a local folder"
    if source.is_folder:
        cure = "skipwise doctor says what is wrong with it" if part == "the config" else "check the folder"
    return CheckpointError(f"{part} of {str(source)!r} could not be read ({said}); {cure}")
