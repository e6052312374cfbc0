"""CPU tensors with shapes but no data, and a count of the memory that they would take.

torch's `FakeTensorMode` says what an operation returns, but it is slow. Here it is asked once for each operation and
shape of arguments. After that, results are tensors on the meta device: nothing is computed or stored, but autocast,
attention and models take them for CPU tensors. All internals of torch that this needs are used in this file only.
"""

import functools
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

_META = torch.device("meta")
_ALIGNMENT = 64  # Allocators round up to this many bytes.

# For an operation with the shapes of its arguments: shape, strides and dtype of each tensor that it returns. None if
# these do not describe the result, because it is a view or occupies more memory than its shape.
_RESULTS: dict[tuple[Any, ...], list[tuple[Any, ...]] | None] = {}

# Answers for code that reads values: no token is padding, every token counts.
_ANSWERS = {
    torch.ops.aten._local_scalar_dense.default: 1,
    torch.ops.aten.item.default: 1,
    torch.ops.aten.equal.default: True,
}


class HollowTensor(Tensor):
    """A CPU tensor without data.

    Args:
        twin: a tensor on the meta device with the same shape, strides and dtype.
    """

    twin: Tensor

    @staticmethod
    def __new__(cls, twin: Tensor) -> "HollowTensor":
        """Wraps the twin."""
        made: Any = Tensor._make_wrapper_subclass(
            cls, twin.shape, twin.stride(), twin.storage_offset(), dtype=twin.dtype, device=torch.device("cpu")
        )
        made.twin = twin
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation."""
        return run_hollow(func, args, kwargs or {})


def run_hollow(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Runs an operation without data.

    Args:
        func: an operation of `torch.ops`; it may also be one that creates tensors.
        args: its arguments; the data of real tensors among them is ignored.
        kwargs: likewise.

    Returns:
        Hollow tensors; for an operation in place, the argument itself.
    """
    call = _Call(func)
    twins = [call.twin(value) for value in args]
    call.key.extend(kwargs)
    named = {name: call.twin(value) for name, value in kwargs.items()}
    if _returns_new_tensors(func):
        key = tuple(call.key)
        if key not in _RESULTS:
            _RESULTS[key] = _ask_torch(func, twins, named)
        if (sizes := _RESULTS[key]) is not None:
            made = [HollowTensor(torch.empty_strided(*size, dtype=dtype, device=_META)) for *size, dtype in sizes]
            return made[0] if len(made) == 1 else tuple(made)
    return call.hollow(func(*twins, **named))


def hollow_out(model: nn.Module) -> None:
    """Replaces the parameters and buffers of a model on the meta device by hollow ones; tied ones stay tied."""
    hollow: dict[int, Tensor] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                made = nn.Parameter(HollowTensor(parameter.data), parameter.requires_grad)
                module._parameters[name] = hollow.setdefault(id(parameter), made)  # pyright: ignore
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = HollowTensor(buffer)


def _ask_torch(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[tuple[Any, ...]] | None:
    """What torch says that an operation on the CPU returns, as in `_RESULTS`."""
    mode = _fake_mode()

    def fake(twin: Tensor) -> Tensor:
        return FakeTensor(mode, twin, torch.device("cpu"))

    with mode:
        made = func(*tree_map_only(Tensor, fake, args), **tree_map_only(Tensor, fake, kwargs))
    made = [made] if isinstance(made, Tensor) else made
    if not all(isinstance(each, Tensor) for each in made):
        return None  # Gradients that nobody asked for are None.
    # Some operations return views although their schema says otherwise.
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
    mode.cache_enabled = False  # `_RESULTS` is the cache.
    return mode


@functools.cache
def _returns_new_tensors(func: Any) -> bool:
    """Whether, by its schema, an operation returns only new tensors and changes none."""
    taken, given = func._schema.arguments, func._schema.returns
    return not any(each.alias_info for each in (*taken, *given)) and {str(each.type) for each in given} == {"Tensor"}


class _Call:
    """The arguments of one operation.

    Attributes:
        owners: the tensor of each twin, by the twin's id.
        key: the operation, and all of its arguments that its result's shape depends on.
    """

    __slots__ = ("key", "owners")

    def __init__(self, func: Any) -> None:
        self.key: list[Any] = [func]
        self.owners: dict[int, Tensor] = {}

    def twin(self, value: Any) -> Any:
        """The value with twins in place of tensors."""
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
        """The result with hollow tensors in place of new twins, and the owners in place of old ones."""
        if isinstance(value, Tensor):
            owner = self.owners.get(id(value))
            if owner is not None and owner.shape != value.shape:
                raise RuntimeError("an operation changes the shape of a tensor in place")
            return HollowTensor(value) if owner is None else owner
        return type(value)(map(self.hollow, value)) if isinstance(value, list | tuple) else value


class Bytes(NamedTuple):
    """Bytes of living tensors.

    Attributes:
        all: of all tensors.
        beside: without finished gradients, as if these had existed before.
    """

    all: int
    beside: int


class Ledger(TorchDispatchMode):
    """Counts the bytes of living tensors while operations run. A view shares the bytes of its base.

    Args:
        hollow: run all operations without data, including those that create tensors.

    Attributes:
        peak: maximum of `live` since `mark`, of both readings separately.
    """

    def __init__(self, *, hollow: bool = False) -> None:
        super().__init__()
        self._hollow = hollow
        self._all = self._accumulated = 0
        self.peak = Bytes(0, 0)
        self._sizes = WeakIdKeyDictionary()

    @property
    def live(self) -> Bytes:
        """Bytes of the tensors that exist now."""
        return Bytes(self._all, self._all - self._accumulated)

    def mark(self) -> Bytes:
        """Starts a new peak and returns the previous one."""
        before, self.peak = self.peak, self.live
        return before

    def add(self, tensor: Tensor) -> None:
        """Counts a tensor until it is freed."""
        storage = _storage(tensor)
        if storage in self._sizes:
            return
        size = -(-storage.nbytes() // _ALIGNMENT) * _ALIGNMENT
        self._sizes[storage] = size
        self._all += size
        self.peak = Bytes(*map(max, self.peak, self.live))
        weakref.finalize(storage, self._forget, size)

    def accumulated(self, gradient: Tensor) -> None:
        """Records that a gradient is finished; it stays."""
        storage = _storage(gradient)
        self._accumulated += self._sizes[storage]
        self._sizes[storage] = 0  # Gradients that share memory count once.

    def _forget(self, size: int) -> None:
        self._all -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation and counts its results."""
        if func in _ANSWERS:
            return _ANSWERS[func]
        out = run_hollow(func, args, kwargs or {}) if self._hollow else func(*args, **(kwargs or {}))
        for value in out if isinstance(out, list | tuple) else (out,):
            if isinstance(value, Tensor):
                self.add(value)
        return out


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    return (tensor.twin if isinstance(tensor, HollowTensor) else tensor).untyped_storage()
