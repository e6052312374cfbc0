"""Every form in which people's configs hold a rotary embedding, and what the transformers library makes of it."""

import copy
import importlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tiny_models import SHAPE
from transformers import AutoConfig

from skipwise.rope import RopeTable

ORIGINAL, MAXIMUM, THETA = 64, 256, 250_000.0
SMALL = SHAPE | {"vocab_size": 32, "num_key_value_heads": 4, "head_dim": 16, "max_position_embeddings": MAXIMUM}
_LAYERS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}
_LISTS = {"short_factor": [1.0] * 8, "long_factor": [1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0]}
_YARN = {"rope_type": "yarn", "factor": 4.0}

# By name, without the original window; `(entry, whether it may have one)`.
ENTRIES: dict[str, tuple[dict[str, Any], bool]] = {
    "default": ({"rope_type": "default"}, False),
    "linear": ({"rope_type": "linear", "factor": 4.0}, False),
    "dynamic": ({"rope_type": "dynamic", "factor": 2.0}, False),
    "yarn": (_YARN, True),
    "yarn attention_factor": ({**_YARN, "attention_factor": 1.3}, True),
    "yarn beta": ({**_YARN, "beta_fast": 16, "beta_slow": 2}, True),
    "yarn truncate": ({**_YARN, "truncate": False}, True),
    "yarn mscale": ({**_YARN, "mscale": 0.707, "mscale_all_dim": 1.0}, True),
    "yarn factor too small": ({"rope_type": "yarn", "factor": 3.0}, True),
    "yarn factor too large": ({"rope_type": "yarn", "factor": 8.0}, True),
    "yarn without factor": ({"rope_type": "yarn"}, True),
    "llama3": ({"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}, True),
    "llama3 without low": ({"rope_type": "llama3", "factor": 4.0, "high_freq_factor": 4.0}, True),
    "longrope": ({"rope_type": "longrope", **_LISTS}, True),
    "longrope factor": ({"rope_type": "longrope", "factor": 4.0, **_LISTS}, True),
    "longrope attention_factor": ({"rope_type": "longrope", "attention_factor": 1.4, **_LISTS}, True),
    "su": ({"rope_type": "su", **_LISTS}, True),
    "ntk": ({"rope_type": "ntk", "factor": 4.0}, False),
    "mrope": ({"rope_type": "mrope", "mrope_section": [2, 3, 3]}, False),
    "deepseek_yarn": ({"rope_type": "deepseek_yarn", "factor": 4.0}, True),
    "telechat3-yarn": ({"rope_type": "telechat3-yarn", "factor": 4.0}, True),
}

# Where a config keeps its decoder's part, by family; what else it needs; whether the family keeps entries by layer.
HOSTS: dict[str, tuple[dict[str, Any], bool]] = {
    "llama": ({"model_type": "llama"}, False),
    "phi3": ({"model_type": "phi3", "max_position_embeddings": 16384}, False),
    "qwen2_vl": ({"model_type": "qwen2_vl"}, False),
    "olmo3": ({"model_type": "olmo3", **_LAYERS}, True),
    "gemma3_text": ({"model_type": "gemma3_text", **_LAYERS, "rope_local_base_freq": 12_000.0}, True),
    "mistral in text_config": ({"model_type": "mistral3", "text_config": {"model_type": "mistral"}}, False),
    "gemma3 in text_config": (
        {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", **_LAYERS}}, True,
    ),
}  # fmt: skip
# The transformers library makes a decoder alone of these.
HAS_DECODER_CLASS = {host: host not in ("qwen2_vl", "mistral in text_config") for host in HOSTS}
PLACES = {
    "none": {}, "inside": {"inside": ORIGINAL}, "beside": {"beside": ORIGINAL},
    "both": {"inside": ORIGINAL, "beside": ORIGINAL}, "both and unlike": {"inside": ORIGINAL, "beside": 2 * ORIGINAL},
}  # fmt: skip
# transformers refuses these names; what they are in its own.
STANDARD = {"su": "longrope", "deepseek_yarn": "yarn", "telechat3-yarn": "yarn"}


@dataclass(frozen=True, slots=True)
class Form:
    """One way to write a config.

    Attributes:
        host: key of HOSTS.
        entry: key of ENTRIES.
        era: of transformers: 4 has `rope_scaling`, 5 `rope_parameters`.
        layout: `flat`, or `by layer` kind.
        place: key of PLACES: where the original window stands.
        spelling: `rope_type` or `type`.
    """

    host: str
    entry: str
    era: int
    layout: str
    place: str
    spelling: str = "rope_type"

    def __str__(self) -> str:
        spelled = "" if self.spelling == "rope_type" else f", {self.spelling}"
        return f"{self.host}, {self.entry}, era {self.era}, {self.layout}, original {self.place}{spelled}"

    @property
    def only_its_maker_knows(self) -> bool:
        """Whether transformers passes over what is written, so that nobody can tell what the model was trained with."""
        by_layer = HOSTS[self.host][1]
        passed_over = by_layer and (self.layout, self.era) == ("flat", 5)
        unlike_names = by_layer and self.spelling == "type"
        unseen_original = self.place == "beside" and (by_layer or self.host == "qwen2_vl")
        return passed_over or unlike_names or unseen_original

    def config(self) -> dict[str, Any]:
        """Content of the `config.json`."""
        host = copy.deepcopy(HOSTS[self.host][0])
        text = host.get("text_config", host)
        text.update({**SMALL, **text})
        entry = copy.deepcopy(ENTRIES[self.entry][0])
        # Phi-3's class has 4096 for an original window that is left out.
        scale = text["max_position_embeddings"] // MAXIMUM
        place = {where: scale * tokens for where, tokens in PLACES[self.place].items()}
        if "inside" in place:
            entry["original_max_position_embeddings"] = place["inside"]
        if "beside" in place:
            text["original_max_position_embeddings"] = place["beside"]
        if self.host == "qwen2_vl":
            entry["mrope_section"] = [2, 3, 3]
        if self.spelling == "type":
            entry["type"] = entry.pop("rope_type")
        if self.layout == "by layer":
            entry = {
                "sliding_attention": {"rope_type": "default", "rope_theta": THETA},
                "full_attention": {"rope_theta": THETA, **entry},
            }
        if self.era == 4:
            text |= {"rope_theta": THETA, "rope_scaling": entry}
        else:
            text["rope_parameters"] = entry if self.layout == "by layer" else {"rope_theta": THETA, **entry}
        return host

    def standard(self) -> dict[str, Any]:
        """The same under a name that transformers knows, written by hand: what the tables should be where it knows
        none."""
        config = self.config()
        text = config.get("text_config", config)
        for name in ("rope_scaling", "rope_parameters"):
            entry = text.get(name) or {}
            entry = entry.get("full_attention", entry)
            kind = entry.get("rope_type") or entry.get("type")
            if kind in STANDARD:
                entry["rope_type"] = STANDARD[kind]
                entry.pop("type", None)
            if kind == "telechat3-yarn":
                entry["attention_factor"] = 1 + 0.07 * math.log(entry["factor"])
        return config


def forms() -> Iterator[Form]:
    """All of them that a host can be written in."""
    for host, (_, by_layer) in HOSTS.items():
        for entry, (settings, has_original) in ENTRIES.items():
            for era in (4, 5):
                for layout in ("flat", "by layer") if by_layer and era == 5 else ("flat",):
                    for place in PLACES if has_original else ("none",):
                        yield Form(host, entry, era, layout, place)
                    if era == 4 and settings["rope_type"] in ("linear", "yarn", "su", "mrope"):
                        yield Form(host, entry, era, layout, "inside" if has_original else "none", "type")


def library_table(folder: Path, length: int) -> RopeTable:
    """The table of the layers that see the whole context, which transformers computes with for this folder.

    Raises:
        Exception: transformers refuses it.
    """
    decoder = AutoConfig.from_pretrained(folder).get_text_config(decoder=True)
    family = decoder.model_type.removesuffix("_text")
    code = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    rotary = next(
        value for name, value in vars(code).items() if name.endswith("RotaryEmbedding") and "Vision" not in name
    )(decoder)
    layer = ["full_attention"] if isinstance(rotary.rope_type, dict) else []
    shape = (3, 1, 1) if family.startswith("qwen2_vl") else (1, 1)
    rotary(torch.zeros(1), torch.full(shape, length - 1), *layer)
    prefix = f"{layer[0]}_" if layer else ""
    return RopeTable(
        inv_freq=getattr(rotary, f"{prefix}inv_freq").double().numpy(),
        attention_factor=getattr(rotary, f"{prefix}attention_scaling"),
    )


def write(folder: Path, config: dict[str, Any]) -> Path:
    """A folder with this `config.json`."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return folder
