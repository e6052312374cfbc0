"""Settings of the memory allocator that make a training step on a CPU faster and smaller.

Measured on SmolLM2-135M (docs/results/training-step.md). They have no effect without Linux and glibc. They do not
import torch, so that they can be applied before it.
"""

import contextlib
import ctypes
import os
import sys
from collections.abc import MutableMapping

# M_ARENA_MAX and M_MMAP_THRESHOLD of malloc.h
_ARENA_MAX, _MMAP_THRESHOLD = -8, -3
_LARGE_BYTES = 2**20


def use_huge_pages(environment: MutableMapping[str, str] = os.environ) -> None:
    """Makes torch request pages of 2 MiB for tensors of at least that size. Call it before torch makes a tensor.

    A new tensor costs a page fault for each of its pages, and every layer allocates and frees activations. Tensors
    aligned to 2 MiB also fragment the heap less. An existing `THP_MEM_ALLOC_ENABLE` is kept.

    Args:
        environment: of this process, or of one to be started.
    """
    environment.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def use_one_malloc_arena() -> None:
    """Lets all threads allocate from one heap.

    Autograd runs the backward pass in its own thread, and glibc gives each thread its own heap. So the backward pass
    could not reuse what the forward pass frees, which costs several hundred megabytes in a training step on a CPU.
    """
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_ARENA_MAX, 1)


def free_large_blocks_at_once() -> None:
    """Returns each tensor of 1 MiB or more to the operating system as soon as it is freed.

    Else glibc keeps what is freed for later, in pieces. Where weights of layers are gathered and freed in turn, this
    had grown to the size of the whole model in each process.
    """
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)


def give_back_free_memory() -> None:
    """Returns unused memory of the heap to the operating system."""
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
