"""Training weights in float32 inside a model in 16 bits.

Next to 1, where the weights of norms are, the numbers of bfloat16 are 0.004 apart, so steps with a learning rate of
2e-5 would change nothing. Low-rank additions are made in float32; norms and embeddings that are trained in full are
widened here.
"""

from typing import Any

import torch
from torch import Tensor, nn

_NARROW = (torch.bfloat16, torch.float16)


class _Widened:
    """Hooks of a module with float32 weights, so that its output has the dtype of the rest of the model."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._hooks = [module.register_forward_pre_hook(self._before), module.register_forward_hook(self._after)]

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _before(self, module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        first = inputs[0]
        # Autocast casts by itself. The weights' own dtype, since an engine that trains in 16 bits narrows them again.
        if not first.is_floating_point() or torch.is_autocast_enabled(first.device.type):
            return None
        return first.to(next(module.parameters(recurse=False)).dtype), *inputs[1:]

    def _after(self, module: Any, inputs: Any, output: Tensor) -> Tensor:
        return output.to(self.dtype)


def widen_trained(model: nn.Module) -> None:
    """Converts trained 16-bit weights to float32, and adds hooks so that their modules return the dtype as before.

    Args:
        model: with low-rank additions; it is changed in place.
    """
    narrow = {id(p): p.dtype for p in model.parameters() if p.requires_grad and p.dtype in _NARROW}
    owners = [
        (module, narrow[id(parameter)])
        for module in model.modules()
        for parameter in module.parameters(recurse=False)
        if id(parameter) in narrow
    ]
    for parameter in model.parameters():
        if id(parameter) in narrow:
            parameter.data = parameter.data.float()
    for module, dtype in dict(owners).items():
        vars(module)["widened"] = _Widened(module, dtype)


def narrow_again(model: nn.Module) -> None:
    """Undoes `widen_trained`: removes the hooks, and rounds the weights to the dtype of the rest.

    Args:
        model: after training; it is changed in place.
    """
    for module in model.modules():
        widened = vars(module).pop("widened", None)
        if widened is not None:
            widened.remove()
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(widened.dtype)
