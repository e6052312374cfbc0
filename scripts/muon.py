"""Muon: momentum with orthogonalized steps, so that all directions of a weight learn equally fast."""

import math
from collections.abc import Iterable

import torch
from torch import nn

# The quintic polynomial of the reference implementation: steep at zero, so five rounds bring singular values near one.
_QUINTIC = (3.4445, -4.7750, 2.0315)
_ROUNDS = 5


class Muon(torch.optim.Optimizer):
    """The same as `torch.optim.Muon` with Nesterov's momentum and `adjust_lr_fn="original"`, in float32.

    Torch's version rounds to bfloat16. On a processor without bfloat16 such products are so slow that they take half of
    a base model's training time.

    Args:
        matrices: 2-D parameters of any shape.
        lr: learning rate of a square matrix; taller ones get it times the square root of rows / columns.
        momentum: weight of the previous direction in a step.
        weight_decay: share of the weights that a step removes, in units of `lr`.

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks".
    """

    def __init__(self, matrices: Iterable[nn.Parameter], *, lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Updates every matrix once, from its current gradient."""
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for matrix in group["params"]:
                mean = self.state[matrix].setdefault("mean", torch.zeros_like(matrix))
                mean.lerp_(matrix.grad, 1 - momentum)
                direction = orthogonalized(matrix.grad.lerp(mean, momentum))
                rows, columns = matrix.shape
                matrix.mul_(1 - lr * group["weight_decay"])
                matrix.add_(direction, alpha=-lr * math.sqrt(max(1.0, rows / columns)))


def orthogonalized(matrix: torch.Tensor) -> torch.Tensor:
    """Brings all singular values of a matrix near one, by the Newton-Schulz iteration.

    Args:
        matrix: 2-D.

    Returns:
        A matrix of the same shape; singular values from 0.7 to 1.2, except those that were near zero.
    """
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonalized(matrix.T).T
    linear, cubic, quintic = _QUINTIC
    x = matrix / matrix.norm().clamp(min=1e-7)
    for _ in range(_ROUNDS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=cubic, alpha=quintic), x, beta=linear)
    return x
