"""PyTorch's ring attention on a CPU, by private parts of torch: its ring works with any kernel.

torch 2.13 registers the ring only for the kernels of accelerators; for the CPU's it says "does not have a sharding
strategy registered", although the kernel has the same arguments and results. `tests/train/test_contracts.py` checks
these parts against the installed release.
"""

from typing import Any

import torch

from skipwise.errors import ConfigError


def use_ring_on_cpu() -> None:
    """Registers the CPU's attention kernel with the ring of PyTorch's `context_parallel`.

    Raises:
        ConfigError: this version of torch has another ring.
    """
    try:
        from torch.distributed.tensor import DTensor, Shard
        from torch.distributed.tensor.experimental._context_parallel import _attention as ring

        names = ("custom_ops", "_templated_ring_attention", "_templated_ring_attention_backward")
        handlers, forward, backward = (getattr(ring, name) for name in names)
        unwrap = DTensor._op_dispatcher.unwrap_to_op_info
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"setting 'parallel.context' needs torch 2.13's ring attention on a CPU, and this is {torch.__version__}, "
            "whose ring is for accelerators: train on one, or install torch==2.13.0",
            page="parallel-run",
        ) from error

    def go_round(kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        info = unwrap(kernel, args, kwargs)
        named = {argument.name: given for argument, given in zip(kernel._schema.arguments, info.local_args)}  # noqa: B905 - defaults
        given = {name: value for name, value in (named | info.local_kwargs).items() if value is not None}
        mesh, tokens = info.compute_mesh, 2
        if "grad_out" in given:
            made = backward(mesh.get_group(), tokens, kernel, given.pop("grad_out"), "grad_out", **given)
        else:
            made = forward(mesh.get_group(), tokens, kernel, **given)
        return tuple(DTensor.from_local(part, mesh, [Shard(tokens)], run_check=False) for part in made)

    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    gradient = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    handlers |= {attention.default: go_round, gradient.default: go_round}
