"""Settings of the allocator, each seen at work in a fresh process."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")

IN_A_THREAD = """
import ctypes, threading
from skipwise.allocator import use_one_malloc_arena
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.sbrk.restype = ctypes.c_void_p
{settings}
blocks = []
thread = threading.Thread(target=lambda: blocks.append(libc.malloc(100_000)))
thread.start()
thread.join()
assert (blocks[0] < libc.sbrk(0)) is {shared}  # other heaps lie above the end of the first one
"""


def has_glibc() -> bool:
    import ctypes

    return sys.platform == "linux" and hasattr(ctypes.CDLL(None), "gnu_get_libc_version")


@pytest.mark.skipif(not has_glibc(), reason="a setting of glibc")
@pytest.mark.parametrize(("settings", "shared"), [("use_one_malloc_arena()", True), ("", False)])
def test_threads_share_one_heap(fresh_python: Callable[[str], None], settings: str, shared: bool) -> None:
    fresh_python(IN_A_THREAD.format(settings=settings, shared=shared))


@pytest.mark.skipif(
    not HUGE_PAGES.exists() or "[never]" in HUGE_PAGES.read_text(), reason="this kernel gives no huge pages"
)
def test_the_command_gives_torch_huge_pages(fresh_python: Callable[[str], None]) -> None:
    fresh_python(
        "import re, sys\n"
        "from skipwise.cli import main\n"
        "assert main(['--version']) == 0 and 'torch' not in sys.modules\n"
        "import torch\n"
        "tensor = torch.ones(16 << 20)\n"
        "told = open('/proc/self/smaps').read()\n"
        "advised = [m for m in re.split(r'(?m)^(?=[0-9a-f]+-)', told) if re.search(r'VmFlags:.* hg\\b', m)]\n"
        "sizes = [int(re.search(r'Size: +(\\d+) kB', m)[1]) for m in advised]\n"
        "assert max(sizes, default=0) >= 60 << 10, sizes\n"
    )


def test_a_choice_of_the_users_own_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    from skipwise.allocator import use_huge_pages

    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    use_huge_pages()
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "0"
