"""What a run of the benchmark measures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Sizes of all parts.

    Attributes:
        model: folder with float32 weights.
        folder: of the peers' environments and of files that parts make.
        windows: tokens of a training step.
        steps: of a process that trains, the first one not timed.
        rounds: repeats, in which the sides take turns.
        texts: number of texts of which perplexity is measured.
        clients: numbers of concurrent clients of the servers.
        formats: of the GGUF files that llama.cpp serves.
        threads: of every side.
    """

    model: str
    folder: Path
    windows: Sequence[int] = (512, 2048)
    steps: int = 3
    rounds: int = 2
    texts: int = 3
    clients: Sequence[int] = (1, 4, 8)
    formats: Sequence[str] = ("f16", "q8_0")
    threads: int = 1
