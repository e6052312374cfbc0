"""A ledger of the memory that tensors take while operations run."""

import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from skipwise.hollow import HollowTensor, run_hollow

_ALIGNMENT = 64  # bytes to which allocators round

# Whatever is asked about the numbers of a tensor without any is answered yes: no token is padding, every one is scored.
_ANSWERS = {
    torch.ops.aten._local_scalar_dense.default: 1,
    torch.ops.aten.item.default: 1,
    torch.ops.aten.equal.default: True,
}


class Bytes(NamedTuple):
    """Bytes alive, of one count in two readings.

    Attributes:
        all: of every tensor.
        beside: of all but the gradients that have been accumulated, as if these had been there before.
    """

    all: int
    beside: int


class Ledger(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive; a view counts with what it looks at.

    Args:
        hollow: operations run without numbers, those that make tensors of nothing among them.
    """

    def __init__(self, *, hollow: bool = False) -> None:
        super().__init__()
        self._hollow = hollow
        self._all = self._accumulated = 0
        self._most = Bytes(0, 0)
        self._sizes = WeakIdKeyDictionary()

    @property
    def live(self) -> Bytes:
        """Alive now."""
        return Bytes(self._all, self._all - self._accumulated)

    @property
    def peak(self) -> Bytes:
        """The most since `mark` was called, each reading by itself."""
        return self._most

    def mark(self) -> Bytes:
        """Begins a new peak; returns the one before."""
        before, self._most = self._most, self.live
        return before

    def add(self, tensor: Tensor) -> None:
        """Counts a tensor until it is gone."""
        storage = _storage(tensor)
        if storage in self._sizes:
            return
        size = -(-storage.nbytes() // _ALIGNMENT) * _ALIGNMENT
        self._sizes[storage] = size
        self._all += size
        self._most = Bytes(*map(max, self._most, self.live))
        weakref.finalize(storage, self._forget, size)

    def accumulated(self, gradient: Tensor) -> None:
        """Takes down that a gradient is finished, which stays."""
        storage = _storage(gradient)
        # Gradients that look at the same memory count once.
        self._accumulated += self._sizes[storage]
        self._sizes[storage] = 0

    def _forget(self, size: int) -> None:
        self._all -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation and counts what it makes."""
        if func in _ANSWERS:
            return _ANSWERS[func]
        out = run_hollow(func, args, kwargs or {}) if self._hollow else func(*args, **(kwargs or {}))
        for value in out if isinstance(out, list | tuple) else (out,):
            if isinstance(value, Tensor):
                self.add(value)
        return out


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    return (tensor.twin if isinstance(tensor, HollowTensor) else tensor).untyped_storage()
