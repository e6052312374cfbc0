"""Models whose layers are of several kinds, and where, by their definition, the last new kind comes first."""

from typing import Any, NamedTuple

from tiny_models import EXPERTS, GEMMA4, LATENT, PROPORTIONAL, SHAPE, SHARP, SIGLIP, tiny_config
from transformers import PreTrainedConfig

from skipwise.rope import Interpolation, Linear, YaRN

LOCAL, WHOLE = "sliding_attention", "full_attention"
GEMMA3 = {"head_dim": 16, "sliding_window": 16}


class Layered(NamedTuple):
    """A model of several kinds of layers.

    Attributes:
        family: model type in transformers.
        settings: of the whole model.
        num_layers: the fewest first layers with every kind, counted by hand.
        cut: settings that differ in the model of these layers alone, beside their number.
        told: how many layers of each kind are run, as it is printed.
    """

    family: str
    settings: dict[str, Any]
    num_layers: int
    cut: dict[str, Any]
    told: str

    @property
    def interpolation(self) -> Interpolation:
        return Linear() if self.family in PROPORTIONAL else YaRN()

    @property
    def config(self) -> PreTrainedConfig:
        return tiny_config(self.family, **SHARP, **self.settings)

    @property
    def config_of_slice(self) -> PreTrainedConfig:
        changed = {"num_hidden_layers": self.num_layers, **self.cut}
        if "text_config" in self.settings:
            changed = {"text_config": {**self.settings["text_config"], **changed}}
        return tiny_config(self.family, **SHARP, **self.settings | changed)


LAYERED: dict[str, Layered] = {
    "alike": Layered("llama", {"num_hidden_layers": 5}, 2, {}, "2 of 5 alike"),
    "sliding": Layered(
        "gemma3_text",
        {**GEMMA3, "num_hidden_layers": 12, "layer_types": [*[LOCAL] * 5, WHOLE] * 2},
        6,
        {"layer_types": [*[LOCAL] * 5, WHOLE]},
        f"5 of 10 {LOCAL}, 1 of 2 {WHOLE}",
    ),
    # As Gemma 4's largest: global layers have wider heads, and a config of their own.
    "heads of two widths": Layered(
        "gemma4_text",
        {
            **GEMMA4,
            "sliding_window": 16,
            "hidden_size_per_layer_input": 0,
            "num_hidden_layers": 6,
            "layer_types": [LOCAL, LOCAL, WHOLE] * 2,
        },
        3,
        {"layer_types": [LOCAL, LOCAL, WHOLE]},
        f"2 of 4 {LOCAL}, 1 of 2 {WHOLE}",
    ),
    "dense, then experts": Layered(
        "deepseek_v3",
        {**LATENT, "num_hidden_layers": 6, "first_k_dense_replace": 3},
        4,
        {},
        "3 of 3 DeepseekV3MLP, 1 of 3 DeepseekV3MoE",
    ),
    "dense among experts": Layered(
        "qwen3_moe",
        {**EXPERTS, "head_dim": 16, "num_hidden_layers": 5, "mlp_only_layers": [2], "decoder_sparse_step": 1},
        3,
        {},
        "2 of 4 Qwen3MoeSparseMoeBlock, 1 of 1 Qwen3MoeMLP",
    ),
    "without positions": Layered(
        "smollm3",
        {"num_hidden_layers": 8, "no_rope_layer_interval": 4},
        4,
        {},
        "3 of 6 use_rope 1, 1 of 2 use_rope 0",
    ),
    "convolutions": Layered(
        "lfm2",
        {"num_hidden_layers": 6, "layer_types": ["conv", "conv", WHOLE] * 2},
        3,
        {"layer_types": ["conv", "conv", WHOLE]},
        f"2 of 4 conv, 1 of 2 {WHOLE}",
    ),
    # The tower has as many layers as the decoder.
    "with a tower": Layered(
        "gemma3",
        {
            "text_config": {
                **SHAPE,
                **SHARP,
                **GEMMA3,
                "num_hidden_layers": 6,
                "layer_types": [LOCAL, LOCAL, WHOLE] * 2,
            },
            "vision_config": {**SIGLIP, "num_hidden_layers": 6},
        },
        3,
        {"layer_types": [LOCAL, LOCAL, WHOLE]},
        f"2 of 4 {LOCAL}, 1 of 2 {WHOLE}",
    ),
}
