"""Loads the first layers of a model, so many that every kind of layer is among them.

Layers differ in how far they attend, whether positions turn them, whether they hold experts, whose keys they use. Each
family's config says this in its own way. So kinds are read from the model, built without weights: two layers are of one
kind if they are made of the same modules with the same settings, and lists in the config say the same of them.
"""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from skipwise.model.extend import extended_config, with_first_layers
from skipwise.model.load import load_model, read_config, without_weights
from skipwise.model.rotary import text_config
from skipwise.model.source import locate, packed_config
from skipwise.names import first_line
from skipwise.rope import Interpolation
from skipwise.window import Window

_LEAST_LAYERS = 2


class Extent(NamedTuple):
    """Which layers a slice has.

    Attributes:
        kinds: for each layer of the whole model, its kind in words; empty if its layers were not found.
        num_layers: number of layers that are loaded, from the first on; None for all.
        reason: why all are loaded; empty for a slice.
    """

    kinds: tuple[str, ...]
    num_layers: int | None
    reason: str = ""


class Slice(NamedTuple):
    """The first layers of a model, with its embeddings, final norm, head and, if multimodal, its other towers.

    Attributes:
        model: of the whole model's class, width and rotary tables.
        tokenizer: None if the model has none.
        config: of the whole model, extended.
        extent: which layers the slice has.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    config: PreTrainedConfig
    extent: Extent


def load_slice(
    source: str | Path,
    *,
    interpolation: Interpolation,
    window: Window,
    original: int | None = None,
    trust_remote_code: bool = False,
    **how: Any,
) -> Slice:
    """Loads the fewest first layers, and at least two, that have a layer of every kind; other weights are not read.

    Where that is not possible, it loads the whole model: `Slice.extent` says why. From the hub, all files are fetched.

    Args:
        source, interpolation, window, original, trust_remote_code: as for `load_model`.
        how: further arguments of `load_model`.

    Raises:
        CheckpointError, UnsupportedModelError, ConfigError: as for `load_model`.
    """
    config = read_config(source, original=original, trust_remote_code=trust_remote_code)
    config = extended_config(config, interpolation, window)
    place = locate(source, weights=True)
    if place.gguf_file is not None or packed_config(place) is not None:
        extent = Extent((), None, "weights in this format are only read all together")
    else:
        extent = extent_of_slice(config, trust_remote_code=trust_remote_code)
    loaded = load_model(
        source,
        interpolation=interpolation,
        window=window,
        original=original,
        first_layers=extent.num_layers,
        needs_tokenizer=False,
        trust_remote_code=trust_remote_code,
        **how,
    )
    return Slice(*loaded, config, extent)


def extent_of_slice(config: PreTrainedConfig, *, trust_remote_code: bool = False) -> Extent:
    """Which layers a slice of this model has; no weights are read.

    Args:
        config: of the whole model.
        trust_remote_code: as for `load_model`.
    """
    whole = without_weights(config, trust_remote_code=trust_remote_code)
    layers = _layers(whole)
    if not layers:
        return Extent((), None, f"{type(whole).__name__} has no list of its layers")
    names = _names(layers)
    kind_of = [[layer.get(name) for name in names] for layer in layers]
    kinds = [kind for index, kind in enumerate(kind_of) if kind_of.index(kind) == index]
    words = _words(names, kinds)
    named = tuple(words[kinds.index(kind)] for kind in kind_of)
    num_layers = max(_LEAST_LAYERS, *(1 + kind_of.index(kind) for kind in kinds))
    if num_layers >= len(layers):
        return Extent(named, None, f"a slice would have all of its {len(layers)} layers")
    try:
        cut = without_weights(with_first_layers(config, num_layers), trust_remote_code=trust_remote_code)
    except Exception as error:  # Third-party model code may raise anything.
        refused = f"{type(whole).__name__} cannot be built with {num_layers} layers"
        return Extent(named, None, f"{refused} ({first_line(error)})")
    shapes = {name: tensor.shape for name, tensor in whole.named_parameters()}
    for name, tensor in cut.named_parameters():
        if shapes.get(name) != tensor.shape:
            return Extent(named, None, f"the shape of {name} depends on the number of layers")
    # Some layers keep the number of all layers, or what they derive from it.
    found, wanted = ([_without_numbers(layer, names) for layer in each] for each in (_layers(cut), layers[:num_layers]))
    if found != wanted:
        return Extent(named, None, "the kind of a layer depends on the number of layers")
    return Extent(named, num_layers)


def _layers(model: PreTrainedModel) -> list[dict[str, Any]]:
    """For each layer of the decoder, by name: what it is made of, and what lists in the config say of it."""
    config = text_config(model.config)
    count = config.num_hidden_layers
    lists = {
        name: value
        for name, value in config.to_dict().items()
        if isinstance(value, list | tuple) and len(value) == count
    }
    found: dict[str, nn.ModuleList] = {}
    for path, module in model.get_decoder().named_modules():
        is_inside = path.startswith(tuple(f"{outer}." for outer in found))  # Experts may be as many as layers.
        if isinstance(module, nn.ModuleList) and len(module) == count and not is_inside:
            found[path] = module
    if not found:
        return []
    told = {name: value for name, value in lists.items() if all(isinstance(each, str) for each in value)}
    return [
        {name: value[index] for name, value in told.items()}
        | {f"{path}.{name}": made for path, modules in found.items() for name, made in _made_of(modules[index])}
        | {name: value[index] for name, value in lists.items()}
        for index in range(count)
    ]


def _made_of(layer: nn.Module) -> Iterator[tuple[str, Any]]:
    """Names and values of a layer's classes and plain settings, its sizes among them."""
    for path, module in layer.named_modules():
        yield path, type(module).__name__
        for name, value in vars(module).items():
            if not name.startswith("_") and (value is None or isinstance(value, bool | int | float | str)):
                yield f"{path}.{name}", value


def _without_numbers(layer: dict[str, Any], names: Sequence[str]) -> list[Any]:
    return [None if type(layer.get(name)) in (int, float) else layer.get(name) for name in names]


def _names(layers: Sequence[dict[str, Any]]) -> list[str]:
    """All names but those of numbers that no two layers share, such as a layer's index."""
    names = []
    for name in dict.fromkeys(itertools.chain.from_iterable(layers)):
        numbers = [layer[name] for layer in layers if type(layer.get(name)) in (int, float)]
        if not numbers or len(set(numbers)) < len(numbers):
            names.append(name)
    return names


def _words(names: Sequence[str], kinds: Sequence[list[Any]]) -> list[str]:
    """Words for kinds: as few of what differs as tell them apart."""
    words: list[tuple[str, ...]] = [()] * len(kinds)
    for index, name in enumerate(names):
        last = name.rpartition(".")[2]
        said = [kind[index] if isinstance(kind[index], str) else f"{last} {kind[index]}" for kind in kinds]
        more = [(*word, each) for word, each in zip(words, said, strict=True)]
        if len(set(more)) > len(set(words)):
            words = more
    return [" ".join(word) for word in words]
