"""Muon: momentum whose every step is an orthogonal matrix, so that all directions of a weight learn equally fast."""

import math
from collections.abc import Iterable

import torch
from torch import nn

# The quintic of the reference implementation: steep at zero, so that five rounds bring singular values near one.
_QUINTIC = (3.4445, -4.7750, 2.0315)
_ROUNDS = 5


class Muon(torch.optim.Optimizer):
    """What `torch.optim.Muon` computes with Nesterov's momentum and `adjust_lr_fn="original"`, in float32.

    Torch's rounds to bfloat16. A processor without it computes such products so slowly that they take half of a base's
    training time.

    Args:
        matrices: 2-D parameters of any shape.
        lr: learning rate of a square matrix; a taller one's is larger by the root of rows over columns.
        momentum: share of the old direction that a step keeps.
        weight_decay: share of the weights that a step takes off, in units of `lr`.

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks".
    """

    def __init__(self, matrices: Iterable[nn.Parameter], *, lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Moves every matrix once, by its gradient of now."""
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
    """The matrix with all singular values brought near one, by Newton and Schulz's iteration.

    Args:
        matrix: 2-D.

    Returns:
        The same shape; singular values from 0.7 to 1.2, save those that were near nothing.
    """
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonalized(matrix.T).T
    linear, cubic, quintic = _QUINTIC
    x = matrix / matrix.norm().clamp(min=1e-7)
    for _ in range(_ROUNDS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=cubic, alpha=quintic), x, beta=linear)
    return x
