"""What lies where a model is, on this machine or the hub; and what is wrong with it, in one line."""

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

logger = logging.getLogger("skipwise")

_NO_SUCH_ATTENTION = re.compile(
    r"\w+ does not support (Flash Attention \d|an attention implementation through torch[\w.']*( flex_attention)?)"
)
_ADAPTER_WEIGHTS = "adapter_model.safetensors"
BAICHUAN = "baichuan"
"""Model type whose weights are read here, pickles as tensors alone, since transformers has no class for it."""
_NO_CONVERSION = "DISABLE_SAFETENSORS_CONVERSION"


def locate(source: str | Path, *, weights: bool) -> ModelSource:
    """Finds what `source` means, and refuses what cannot be loaded or should not be trusted.

    Args:
        source: a checkpoint folder, a hub name (`org/name`), the path of a `.gguf` file, or `embedded`.
        weights: whether a folder must have them; its config is enough to plan with.

    Raises:
        CheckpointError: nothing is there, or the weights are pickles, which run code when they are opened.
        ConfigError: it is a GGUF file and the `gguf` package is not installed.
    """
    place = find_place(source)
    if not place.is_folder:
        _require_hub(place.name)
    elif weights and place.gguf_file is None:
        _check_weights(Path(place.name))
    return place


def _require_hub(name: str) -> None:
    """Refuses a hub name that is not on this machine while the hub cannot be reached.

    The library would ask six times, with growing pauses, and say so in twelve lines.
    """
    if constants.HF_HUB_OFFLINE or isinstance(try_to_load_from_cache(name, "config.json"), str):
        return
    logger.info(f"asking the hub for {name!r}, which is no folder here")
    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except (HfHubHTTPError, HFValidationError, EntryNotFoundError):
        # It answers; what it says is told by whoever reads the config.
        return
    except Exception as error:  # of the network: their types are those of its current HTTP library
        raise CheckpointError(
            f"model is {name!r}; no such folder exists and the hub cannot be reached ({_first_line(error)}): check the "
            "name and the connection, or give a local folder"
        ) from error


def _check_weights(folder: Path) -> None:
    if any(file.name != _ADAPTER_WEIGHTS for file in folder.glob("*.safetensors")):
        return
    if (folder / _ADAPTER_WEIGHTS).is_file():
        raise CheckpointError(
            f"model is {str(folder)!r}, low-rank additions without the weights that they are added to; give the run "
            "that they are of, or what skipwise export --to hf makes of it"
        )
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLE_SUFFIXES)
    if pickles and packed_config(ModelSource(name=str(folder))) is not None:
        return
    if pickles:
        raise CheckpointError(
            f"model is {str(folder)!r}, whose weights are pickles ({pickles[0]}), which can run any code; "
            f"{TO_SAFETENSORS}"
        )
    raise CheckpointError(
        f"model is {str(folder)!r}, which has a config.json but no weights; a *.safetensors file must lie beside it"
    )


def packed_config(place: ModelSource) -> dict[str, Any] | None:
    """The content of a Baichuan's `config.json`; None of any other model.

    Args:
        place: of a model.
    """
    config = own_config(place)
    return config if config.get("model_type") == BAICHUAN else None


def own_config(place: ModelSource) -> dict[str, Any]:
    """The content of a model's `config.json`; empty where there is none that can be read, as of a GGUF file."""
    file = None if place.gguf_file else own_file(place, "config.json")
    try:
        config = {} if file is None else json.loads(Path(file).read_text(encoding="utf-8"))
    except ValueError:
        return {}  # Whoever needs it says what is wrong with it.
    return config if isinstance(config, dict) else {}


def own_file(place: ModelSource, name: str) -> str | None:
    """Where a file of a model lies on this machine, fetched from the hub if need be; None where it has none such."""
    return find_file(place.name, name)


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
    """Keeps the library from sending the name of a model without safetensors to a service that converts it."""
    before = os.environ.get(_NO_CONVERSION)
    os.environ[_NO_CONVERSION] = "1"  # Read whenever weights are looked for.
    try:
        yield
    finally:
        if before is None:
            del os.environ[_NO_CONVERSION]
        else:
            os.environ[_NO_CONVERSION] = before


@contextmanager
def one_line_errors(source: ModelSource, part: str) -> Iterator[None]:
    """Turns what the library raises while it reads `part` of a checkpoint into one of skipwise's one-line errors."""
    try:
        yield
    except SkipwiseError:
        raise
    except SafetensorError as error:
        raise CheckpointError(
            f"{part} of {str(source)!r} is damaged ({_first_line(error)}); copy or download the checkpoint again"
        ) from error
    except ImportError as error:
        raise ConfigError(f"{part} of {str(source)!r} needs a package that is missing: {_first_line(error)}") from error
    except StrictDataclassError as error:
        said = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{part} of {str(source)!r} could not be read ({said}); mend it there") from error
    except (OSError, ValueError, KeyError, RuntimeError, AttributeError, TypeError, HFValidationError) as error:
        message = _first_line(error)
        if "trust_remote_code" in str(error):
            raise ConfigError(
                f"model {str(source)!r} brings its own code, which is not run unless asked; "
                "read that code, then set trust_remote_code"
            ) from error
        if "cannot be loaded with `safetensors`" in str(error):
            raise CheckpointError(
                f"model {str(source)!r} has no safetensors weights on the hub, and pickled ones can run any code; "
                f"{TO_SAFETENSORS}"
            ) from error
        if refused := _NO_SUCH_ATTENTION.match(message):
            raise ConfigError(f"model {str(source)!r}: {refused[0]}; give another attention, such as eager") from error
        if "does not recognize this architecture" in str(error) or "Unrecognized configuration class" in str(error):
            raise UnsupportedModelError(
                f"model {str(source)!r}: transformers has no decoder class for it ({message})"
            ) from error
        place = "check the name and the connection, or give a local folder"
        if source.is_folder:
            place = "skipwise doctor says what is wrong with it" if part == "the config" else "check the folder"
        raise CheckpointError(f"{part} of {str(source)!r} could not be read ({message}); {place}") from error


def _first_line(error: Exception) -> str:
    """The first sentence or line of what a library said, short enough for one line of ours."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
