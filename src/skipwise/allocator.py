"""How this process gets memory from the operating system: settings that make a step on a CPU smaller and faster.

Measured on SmolLM2-135M (docs/results/training-step.md). Where the C library is not glibc, or the system not Linux,
both do nothing. Neither needs torch, so that they can come before it.
"""

import contextlib
import ctypes
import os
import sys
from collections.abc import MutableMapping

_ARENA_MAX = -8  # M_ARENA_MAX of malloc.h


def use_huge_pages(environment: MutableMapping[str, str] = os.environ) -> None:
    """Has torch ask for pages of 2 MiB under tensors of that size and more; before torch makes its first one.

    A fresh tensor costs a page fault for each of its pages, and activations come and go at every layer. Tensors that
    begin at a multiple of 2 MiB also leave fewer holes between them in the heap. Where the environment has
    `THP_MEM_ALLOC_ENABLE` already, that stays.

    Args:
        environment: of this process, or of one to be started.
    """
    environment.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def use_one_malloc_arena() -> None:
    """Lets all threads allocate from one heap.

    Autograd runs the backward pass in a thread of its own, and glibc gives each thread its own heap: what the forward
    pass frees would then never serve the backward pass. On a CPU that is several hundred megabytes of a training step.
    """
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_ARENA_MAX, 1)


def give_back_free_memory() -> None:
    """Gives the operating system what the heap holds and nobody uses."""
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
