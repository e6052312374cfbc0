"""Tensors without data behave as CPU tensors do, and torch's internals do what `skipwise.hollow` takes them to do."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from skipwise.hollow import HollowTensor, Ledger, hollow_out


def hollow(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return HollowTensor(torch.empty(shape, dtype=dtype, device="meta"))


OPERATIONS: dict[str, Callable[[Tensor], Any]] = {
    "product": lambda x: x @ x.transpose(1, 2),
    "view": lambda x: x[:, 2:].transpose(0, 1),
    "several results": lambda x: torch.native_layer_norm(x, (8,), None, None, 1e-5),
    "attention": lambda x: nn.functional.scaled_dot_product_attention(x[None], x[None], x[None], is_causal=True),
    "new dtype": lambda x: x.bfloat16().float().softmax(-1, dtype=torch.float64),
    "from nothing": lambda x: torch.arange(x.shape[1], device=x.device),
    "in place": lambda x: x.mul_(2).add_(1),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_return_what_they_return_on_the_cpu(name: str) -> None:
    """`FakeTensorMode`, `_schema` and `_make_wrapper_subclass`."""
    found, real = OPERATIONS[name](hollow(3, 4, 8)), OPERATIONS[name](torch.zeros(3, 4, 8))
    for one, other in zip(*((x if isinstance(x, tuple) else (x,)) for x in (found, real)), strict=True):
        seen = [(x.shape, x.stride(), x.storage_offset(), x.dtype, x.device) for x in (one, other)]
        assert seen[0] == seen[1]


def test_views_and_operations_in_place_keep_their_memory() -> None:
    """`untyped_storage()._cdata` names the memory of a tensor."""
    for x in (torch.zeros(4, 4), hollow(4, 4)):
        base = x.twin if isinstance(x, HollowTensor) else x
        view, new = x[1:], x + 1
        memory = [(y.twin if isinstance(y, HollowTensor) else y).untyped_storage()._cdata for y in (view, new)]
        assert memory[0] == base.untyped_storage()._cdata != memory[1]
        assert x.add_(1) is x


def test_tied_parameters_stay_tied() -> None:
    """`nn.Module` keeps parameters in `_parameters` and buffers in `_buffers`."""
    with torch.device("meta"):
        model = nn.ModuleDict({"one": nn.Linear(4, 4), "two": nn.Linear(4, 4), "norm": nn.BatchNorm1d(4)})
    model["two"].weight = model["one"].weight
    hollow_out(model)
    assert model["two"].weight is model["one"].weight
    assert all(isinstance(x.data, HollowTensor) for x in (*model.parameters(), *model.buffers()))


def test_under_a_ledger_values_are_ones() -> None:
    """These calls end in the operations of `aten` that the ledger answers."""
    with Ledger(hollow=True):
        x = torch.zeros(2)
        assert x[0].item() == 1
        assert bool(x[0])
        assert torch.equal(x, x + 1)


def test_the_ledger_counts_a_tensor_while_it_lives() -> None:
    ledger = Ledger()
    with ledger:
        a = torch.zeros(1024)
        view = a[10:]
        assert ledger.live.all == 4096
        del a
        assert ledger.live.all == 4096, "the view keeps it"
        del view
        assert (ledger.live.all, ledger.peak.all) == (0, 4096)
    parameter = nn.Parameter(torch.zeros(16))
    ledger.add(parameter)
    assert ledger.live.all == 64
