"""Statistics of `skipwise generate --stats`: speed and memory of a request by length."""

import dataclasses
from typing import Any, NamedTuple

import torch

from skipwise.inference.generate import LocalEngine, LocalGeneration
from skipwise.report.quantities import bytes_text, seconds_text
from skipwise.runtime.peak import Peak


class _Row(NamedTuple):
    """Part of a request, up to a number of tokens: its new tokens and seconds, and memory at its end."""

    what: str
    tokens: int
    new: int
    seconds: float
    cache_bytes: int
    peak_bytes: int


class Progress:
    """Measures a generation: a row for each doubling of the tokens read, the end of the prompt, and the output."""

    def __init__(self, engine: LocalEngine, generation: LocalGeneration) -> None:
        self._engine, self._generation = engine, generation
        self._rows: list[_Row] = []
        self._next = engine.chunk_tokens
        self._read, self._seconds = 0, 0.0
        self._peak = Peak(torch.device(engine.modes.model("long").device))

    def look(self) -> None:
        """Called after each step; adds a row where one is due."""
        stats = self._generation.stats
        at_end = stats.read_tokens >= stats.prompt_tokens
        if stats.new_tokens <= 1 and (at_end or stats.read_tokens >= self._next):
            since = max(self._read, stats.reused_tokens)
            self._note("read", stats.read_tokens, stats.read_tokens - since, stats.prefill_seconds - self._seconds)
            self._read, self._seconds = stats.read_tokens, stats.prefill_seconds
            while self._next <= stats.read_tokens:
                self._next *= 2
        if self._generation.is_done and stats.new_tokens > 1:
            self._note("written", stats.read_tokens, stats.new_tokens - 1, stats.decode_seconds)

    def record(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        return {
            **dataclasses.asdict(self._generation.stats),
            "cache": self._engine.cache_kind,
            "peak_of": self._peak.of,
            "by_length": [row._asdict() for row in self._rows],
        }

    def table(self) -> str:
        """Everything, as a table."""
        stats = self._generation.stats
        reused = f", {stats.reused_tokens:,} of them from an earlier cache" if stats.reused_tokens else ""
        lines = [
            f"{stats.mode} mode, {self._engine.cache_kind} cache: {stats.prompt_tokens:,} tokens read{reused}, "
            f"{stats.new_tokens:,} written ({self._peak.of})",
            f"{'up to':>9} {'':>8} {'tokens':>8} {'time':>9} {'tokens/s':>10} {'cache':>10} {'peak':>10}",
        ]
        for row in self._rows:
            speed = row.new / row.seconds if row.seconds else 0.0
            lines.append(
                f"{row.tokens:>9,} {row.what:>8} {row.new:>8,} {seconds_text(row.seconds):>9} {speed:>10,.1f} "
                f"{bytes_text(row.cache_bytes):>10} {bytes_text(row.peak_bytes):>10}"
            )
        return "\n".join(lines)

    def _note(self, what: str, tokens: int, new: int, seconds: float) -> None:
        self._rows.append(_Row(what, tokens, new, seconds, self._generation.stats.cache_bytes, self._peak.look()))
