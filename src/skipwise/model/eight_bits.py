"""Linear layers with weights in 8 bits, for inference on a CPU.

Decoding reads all weights for each token, so it takes about as long as memory needs to deliver them: a quarter of the
bytes is less than half of the time. Each output has a step, and each weight of it an integer of 8 bits. Activations
are rounded to bfloat16, not to 8 bits, since a few of them are hundreds of times as large as the rest. Embeddings,
norms and biases stay as they are, and so does the model's dtype.
"""

from collections.abc import Iterable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from skipwise.errors import ConfigError
from skipwise.model._transformers import int8_product, multiplies_bfloat16
from skipwise.model.quantized import four_bit_layers

Weights = Literal["full", "int8"]
"""How linear layers hold their weights: as loaded, or in 8 bits."""

# The product crashes, or is wrong, for inputs whose width is not a multiple of 16; processors may want more.
_WIDTH_STEP = 32
# From this many rows on, codes are converted to bfloat16 once, where the processor has products of them.
_MANY_ROWS = 32
_TOP = 64


class Int8Linear(nn.Module):
    """A linear layer whose weight is `codes * steps`, one step for each output.

    Args:
        layer: what it replaces; in float32 or 16 bits, on the CPU.

    Attributes:
        codes: int8 (out, in).
        steps: bfloat16 (out,); codes are rounded to these very steps, so their own rounding costs nothing.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        weight = layer.weight.detach().float()
        steps = (weight.abs().amax(1) / 127).clamp(min=torch.finfo(torch.float32).tiny).to(torch.bfloat16)
        codes = (weight / steps.float()[:, None]).round().clamp(-127, 127).to(torch.int8)
        self.register_buffer("codes", codes)
        self.register_buffer("steps", steps)
        self.bias = layer.bias
        self._dtype = layer.weight.dtype

    codes: Tensor
    steps: Tensor

    @property
    def weight(self) -> Tensor:
        """The weight that it computes with, (out, in), for code that looks at a layer's; made anew each time."""
        return (self.codes * self.steps.float()[:, None]).to(self._dtype)

    def forward(self, inputs: Tensor) -> Tensor:
        """As `nn.Linear`, (..., in) to (..., out) in the inputs' own dtype."""
        rows = inputs.reshape(-1, self.in_features) if inputs.numel() else inputs.new_empty(0, self.in_features)
        outputs = self._product(rows.to(torch.bfloat16))
        outputs = outputs if self.bias is None else outputs + self.bias
        return outputs.to(inputs.dtype).view(*inputs.shape[:-1], self.out_features)

    def _product(self, rows: Tensor) -> Tensor:
        """(rows, in) to (rows, out), both in bfloat16."""
        if len(rows) >= _MANY_ROWS and multiplies_bfloat16():
            return linear(rows, self.codes.to(torch.bfloat16)) * self.steps
        return int8_product(rows, self.codes, self.steps)


class Int8Head(Int8Linear):
    """The layer that makes logits. In bfloat16 the likeliest ones would tie, so these are computed again in float32."""

    def forward(self, inputs: Tensor) -> Tensor:
        """As `Int8Linear`."""
        logits = super().forward(inputs)
        likeliest = logits.topk(min(_TOP, self.out_features), sorted=False).indices
        weight = self.codes[likeliest].float() * self.steps.float()[likeliest][..., None]
        exact = (weight @ inputs.float()[..., None])[..., 0]
        exact = exact if self.bias is None else exact + self.bias[likeliest]
        return logits.scatter(-1, likeliest, exact.to(logits.dtype))


def check_weights(weights: str, device: torch.device | str | None) -> None:
    """Refuses weights that are unknown, or not for this device (None: the CPU).

    Raises:
        ConfigError: as said.
    """
    if weights not in get_args(Weights):
        raise ConfigError(f"weights is {weights!r}; give {' or '.join(get_args(Weights))}")
    if weights != "full" and device is not None and torch.device(device).type != "cpu":
        raise ConfigError(
            f"weights is {weights!r}, which is for a CPU, and the model runs on {torch.device(device).type}; leave it "
            "out, or give --dtype bfloat16 for half the memory"
        )


def hold_in_eight_bits(models: Iterable[Any]) -> None:
    """Replaces the linear layers of models on the CPU, their heads included, by layers in 8 bits.

    Layers that models share stay shared. Low-rank additions, and layers whose inputs are not a multiple of 32 wide,
    stay as they are.

    Raises:
        ConfigError: a model has no layer that can be replaced.
    """
    # With the weights, which must not be freed before the end: their ids are the keys.
    made: dict[int, tuple[Tensor, Int8Linear]] = {}
    for model in models:
        head = model.get_output_embeddings()
        heads = {module for module in (head.modules() if head is not None else ()) if type(module) is nn.Linear}
        chosen = {*four_bit_layers(model).values(), *heads}
        places = [
            (parent, name, layer)
            for path, parent in model.named_modules()
            for name, layer in parent.named_children()
            if layer in chosen and ".lora_" not in f".{path}" and layer.in_features % _WIDTH_STEP == 0
        ]
        if not places:
            raise ConfigError("weights is 'int8', and this model has no linear layer in full precision: leave it out")
        for parent, name, layer in places:
            if id(layer.weight) not in made:
                made[id(layer.weight)] = layer.weight, (Int8Head if layer in heads else Int8Linear)(layer)
            setattr(parent, name, made[id(layer.weight)][1])
