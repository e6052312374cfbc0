"""Tensors of the CPU that have shapes and no numbers, as torch's fake tensors, and far faster where work repeats.

What an operation makes is asked of torch's `FakeTensorMode` once for each shape of its arguments. From then on tensors
of the meta device are made as large, so nothing is computed and nothing is stored; but autocast, attention and models
take them for the CPU's own.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_iter, tree_map_only

_META = torch.device("meta")

# Of an operation and what its arguments look like: shape, strides and dtype of each tensor that it makes, or None where
# it only seems to make any.
_MADE: dict[tuple[Any, ...], list[tuple[Any, ...]] | None] = {}


class HollowTensor(Tensor):
    """A tensor of the CPU without numbers: what its operations make is what those of its twin make.

    Args:
        twin: a tensor of the meta device, of the same shape, strides and dtype.
    """

    twin: Tensor

    @staticmethod
    def __new__(cls, twin: Tensor) -> "HollowTensor":
        """Around its twin."""
        made: Any = Tensor._make_wrapper_subclass(
            cls, twin.shape, twin.stride(), twin.storage_offset(), dtype=twin.dtype, device=torch.device("cpu")
        )
        made.twin = twin
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation on hollow tensors."""
        return run_hollow(func, args, kwargs or {})


def run_hollow(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Runs an operation without numbers; what it makes is hollow, and what it changes in place is what it was.

    Args:
        func: an operation of `torch.ops`, one that makes tensors of nothing among them.
        args: its arguments; tensors are hollow, or real ones whose numbers are passed over.
        kwargs: likewise.
    """
    call = _Call(func)
    twins = [call.twin(value) for value in args]
    call.key.extend(kwargs)
    named = {name: call.twin(value) for name, value in kwargs.items()}
    if _makes_new(func):
        key = tuple(call.key)
        if key not in _MADE:
            _MADE[key] = _asked(func, twins, named)
        if (sizes := _MADE[key]) is not None:
            made = [HollowTensor(torch.empty_strided(*size, dtype=dtype, device=_META)) for *size, dtype in sizes]
            return made[0] if len(made) == 1 else tuple(made)
    return call.hollow(func(*twins, **named))


def _asked(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[tuple[Any, ...]] | None:
    """What torch says that an operation on the CPU makes; None unless all of it is new and as large as its shape."""
    mode = _fake_mode()

    def fake(twin: Tensor) -> Tensor:
        return FakeTensor(mode, twin, torch.device("cpu"))

    with mode:
        made = func(*tree_map_only(Tensor, fake, args), **tree_map_only(Tensor, fake, kwargs))
    made = [made] if isinstance(made, Tensor) else made
    # Gradients that nobody asked for are None, and some operations hide that they look at what they were given.
    if not all(isinstance(each, Tensor) for each in made):
        return None
    memory = [each.untyped_storage() for each in made]
    taken = {twin.untyped_storage()._cdata for twin in tree_iter((args, kwargs)) if isinstance(twin, Tensor)}
    if len({each._cdata for each in memory} - taken) < len(made):
        return None
    sizes = [(each.shape, each.stride(), each.dtype) for each in made]
    alone = [torch.empty_strided(*size, dtype=dtype, device=_META).untyped_storage() for *size, dtype in sizes]
    return sizes if [each.nbytes() for each in alone] == [each.nbytes() for each in memory] else None


@functools.cache
def _fake_mode() -> FakeTensorMode:
    mode = FakeTensorMode()
    # Nothing is asked twice.
    mode.cache_enabled = False
    return mode


@functools.cache
def _makes_new(func: Any) -> bool:
    """Whether an operation makes new tensors and changes none, as it says."""
    taken, given = func._schema.arguments, func._schema.returns
    return not any(each.alias_info for each in (*taken, *given)) and {str(each.type) for each in given} == {"Tensor"}


class _Call:
    """The arguments of one operation.

    Attributes:
        owners: the tensor of each twin, by the twin's id.
        key: the operation and all that the shape of its result depends on.
    """

    __slots__ = ("key", "owners")

    def __init__(self, func: Any) -> None:
        self.key: list[Any] = [func]
        self.owners: dict[int, Tensor] = {}

    def twin(self, value: Any) -> Any:
        """The value with twins in the place of tensors."""
        if isinstance(value, Tensor):
            twin = value.twin if isinstance(value, HollowTensor) else value.to(_META)
            self.owners[id(twin)] = value
            self.key.append((twin.shape, twin.stride(), twin.dtype))
            return twin
        if isinstance(value, list | tuple):
            self.key.append(len(value))
            return [self.twin(each) for each in value]
        self.key += (type(value), value)
        return value

    def hollow(self, value: Any) -> Any:
        """The result with hollow tensors in the place of new twins, and with their owners in that of old ones."""
        if isinstance(value, Tensor):
            owner = self.owners.get(id(value))
            if owner is not None and owner.shape != value.shape:
                raise RuntimeError("an operation changes the shape of a tensor in place")
            return HollowTensor(value) if owner is None else owner
        return type(value)(map(self.hollow, value)) if isinstance(value, list | tuple) else value
