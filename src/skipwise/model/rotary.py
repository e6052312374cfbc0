"""The rotary tables that a built model uses, and why a model cannot be extended; read from modules, not from names."""

import inspect
import re
from collections.abc import Iterator

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from skipwise.rope import RopeTable

_FREQUENCIES = "inv_freq"
_ABSOLUTE = re.compile(r"wpe|emb\w*_?pos|pos\w*_?emb", re.IGNORECASE)
ALIBI = "it uses ALiBi, which biases attention by distance and has no rotary positions to interpolate"


def text_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The decoder's part of a config: a sub-config for a multimodal model, else the config itself."""
    return config.get_text_config(decoder=True)


def rotary_tables(model: PreTrainedModel) -> dict[str, RopeTable]:
    """The table that each rotary module of a built decoder uses.

    Args:
        model: on any device except meta.

    Returns:
        Table by module path. If one module serves several kinds of layer, the kind is appended to the path, as in
        `model.rotary_emb.full_attention`. For types whose table depends on the input's length (dynamic, longrope), it
        is the table of the last forward pass; before the first pass, that of the configured window.
    """
    tables = {}
    for path, name, module in _frequencies(model):
        kind = name.removesuffix(_FREQUENCIES)
        tables[f"{path}.{kind}".rstrip("._")] = RopeTable(
            inv_freq=getattr(module, name).detach().double().cpu().numpy(),
            attention_factor=float(getattr(module, f"{kind}attention_scaling", 1.0)),
        )
    return tables


def _frequencies(model: PreTrainedModel) -> Iterator[tuple[str, str, nn.Module]]:
    """Yields path, buffer name and module of the decoder's inverse frequencies. Vision and audio towers are skipped."""
    decoder = type(text_config(model.config))
    for path, module in model.named_modules():
        if not isinstance(getattr(module, "config", text_config(model.config)), decoder):
            continue
        for name, buffer in module.named_buffers(recurse=False):
            if name.endswith(_FREQUENCIES) and not name.endswith(f"original_{_FREQUENCIES}") and buffer.ndim == 1:
                yield path, name, module


def refusal_reason(model: PreTrainedModel) -> str | None:
    """Why skip-wise positions cannot extend this model, or None if they can.

    Args:
        model: on any device, including meta: only shapes and names are read.
    """
    if getattr(text_config(model.config), "alibi", False):
        return ALIBI
    if next(_frequencies(model), None) is None:
        return _why_no_frequencies(model)
    if not any("position_ids" in inspect.signature(part.forward).parameters for part in (model, model.base_model)):
        return "its forward takes no position_ids, so its positions cannot be chosen"
    return None


def _why_no_frequencies(model: PreTrainedModel) -> str:
    for path, module in model.named_modules():
        if any(name == "embed_positions" and buffer.ndim == 2 for name, buffer in module.named_buffers(recurse=False)):
            return f"its rotary table is hard-coded in {path}, where no config can change it"
    if "alibi" in inspect.getsource(inspect.getmodule(type(model))).lower():  # pyright: ignore[reportArgumentType]
        return ALIBI
    for path, module in model.named_modules():
        has_table = next(module.parameters(), next(module.buffers(), None)) is not None
        if has_table and _ABSOLUTE.search(path.rpartition(".")[2]):
            return f"it adds absolute position embeddings ({path}), which end with the window it was trained for"
    return "it has no rotary table (as state-space, recurrent and position-free models), so no positions to interpolate"
