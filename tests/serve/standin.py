"""An engine without a model: it repeats a prompt from its end, byte by byte, in steps that take a given time.

So every answer tells whose it is, and all of it is known beforehand.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from skipwise.errors import ConfigError
from skipwise.inference.engine import Engine, Generation, GenerationRequest, GenerationStats, Mode


def answer_to(prompt: bytes, new_tokens: int) -> str:
    """The answer: the prompt's bytes from the last to the first, again and again."""
    times = -(-new_tokens // len(prompt))
    return (prompt[::-1] * times)[:new_tokens].decode("ascii")


class ByteTokenizer:
    """One token per byte, in place of `backends.Prompts`."""

    num_ids = 256
    has_template = False

    def ids(self, prompt: str | Sequence[dict[str, str]]) -> list[int]:
        text = prompt if isinstance(prompt, str) else "".join(message["content"] for message in prompt)
        return list(text.encode())


@dataclass
class StandIn(Engine):
    """For tests of what stands around an engine.

    Attributes:
        token_seconds: that a step takes for each token it reads or writes.
        fail_on: a byte; the first step of a prompt with it raises.
        log: of each step, the first byte of the prompt.
        open: generations that were started and not closed.
    """

    name: str = "stand-in"
    original_window: int = 64
    target: int = 4096
    chunk_tokens: int = 32
    token_seconds: float = 0.0
    fail_on: int | None = None
    log: list[str] = field(default_factory=list)
    open: set[int] = field(default_factory=set)

    def mode_of(self, request: GenerationRequest) -> Mode:
        held = self.original_window if request.mode == "short" else self.target
        if request.total_tokens > held:
            raise ConfigError(f"the request comes to {request.total_tokens} tokens, of {held}")
        return request.mode or ("short" if request.total_tokens <= self.original_window else "long")

    def start(self, request: GenerationRequest) -> "StandInGeneration":
        generation = StandInGeneration(self, request)
        self.open.add(id(generation))
        return generation


class StandInGeneration(Generation):
    def __init__(self, engine: StandIn, request: GenerationRequest) -> None:
        self._engine, self._request = engine, request
        self.mode = engine.mode_of(request)
        self._read = self._taken = 0
        self._written: list[int] = []

    @property
    def stats(self) -> GenerationStats:
        return GenerationStats(
            mode=self.mode,
            prompt_tokens=len(self._request.prompt_ids),
            read_tokens=self._read,
            reused_tokens=0,
            new_tokens=len(self._written),
            prefill_seconds=0.0,
            decode_seconds=0.0,
            cache_bytes=self._read,
        )

    def step(self) -> list[int]:
        prompt = self._request.prompt_ids
        self._engine.log.append(chr(prompt[0]))
        if self._engine.fail_on in prompt:
            raise RuntimeError("secret words of " + bytes(prompt).decode())
        if self._read < len(prompt):
            chunk = min(self._engine.chunk_tokens, len(prompt) - self._read)
            time.sleep(chunk * self._engine.token_seconds)
            self._read += chunk
            return []
        time.sleep(self._engine.token_seconds)
        self._written.append(prompt[-1 - len(self._written) % len(prompt)])
        if len(self._written) == self._request.max_new_tokens:
            self.finish_reason = "length"
        return self._written[-1:]

    def take_text(self) -> str:
        new, self._taken = self._written[self._taken :], len(self._written)
        return bytes(new).decode("ascii", "replace")

    def close(self) -> None:
        self.finish_reason = self.finish_reason or "closed"
        self._engine.open.discard(id(self))
