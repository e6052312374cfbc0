"""An engine of no model: it says a prompt again from its end, byte by byte, in steps that take as long as told.

So every answer tells whose it is, and all of it is known beforehand.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from skipwise.errors import ConfigError
from skipwise.inference.engine import FinishReason, GenerationRequest, GenerationStats, Mode


def answer_to(prompt: bytes, new_tokens: int) -> str:
    """What is answered: the prompt's bytes from the last to the first, again and again."""
    reversed_prompt = prompt[::-1]
    times = -(-new_tokens // len(prompt))
    return (reversed_prompt * times)[:new_tokens].decode("ascii")


class ByteTokenizer:
    """A token a byte, as `backends.Prompts` uses a tokenizer."""

    num_ids = 256
    has_template = False

    def ids(self, prompt: str | Sequence[dict[str, str]]) -> list[int]:
        text = prompt if isinstance(prompt, str) else "".join(message["content"] for message in prompt)
        return list(text.encode())


@dataclass
class StandIn:
    """Made for tests of what stands around an engine.

    Attributes:
        token_seconds: that a step takes for each token it reads or writes.
        fail_on: a byte at which a prompt's first step raises.
        log: of each step, the first byte of the prompt.
        open: generations that were started and not closed.
    """

    original_window: int = 64
    target: int = 4096
    chunk_tokens: int = 32
    token_seconds: float = 0.0
    fail_on: int | None = None
    name: str = "stand-in"
    log: list[str] = field(default_factory=list)
    open: set[int] = field(default_factory=set)

    def mode_of(self, request: GenerationRequest) -> Mode:
        if request.total_tokens > self.target:
            raise ConfigError(f"the request comes to {request.total_tokens} tokens; the window is {self.target}")
        if request.mode == "short" and request.total_tokens > self.original_window:
            raise ConfigError(f"the request comes to {request.total_tokens} tokens; short is {self.original_window}")
        if request.mode is not None:
            return request.mode
        return "short" if request.total_tokens <= self.original_window else "long"

    def start(self, request: GenerationRequest) -> "StandInGeneration":
        generation = StandInGeneration(self, request)
        self.open.add(id(generation))
        return generation


class StandInGeneration:
    def __init__(self, engine: StandIn, request: GenerationRequest) -> None:
        self._engine, self._request = engine, request
        self._mode: Mode = engine.mode_of(request)
        self._read = 0
        self._written: list[int] = []
        self._taken = 0
        self._reason: FinishReason | None = None

    @property
    def mode(self) -> Mode:
        return self._mode

    @property
    def is_done(self) -> bool:
        return self._reason is not None

    @property
    def finish_reason(self) -> FinishReason | None:
        return self._reason

    @property
    def stats(self) -> GenerationStats:
        return GenerationStats(
            mode=self._mode,
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
            self._reason = "length"
        return self._written[-1:]

    def take_text(self) -> str:
        new, self._taken = self._written[self._taken :], len(self._written)
        return bytes(new).decode("ascii", "replace")

    def close(self) -> None:
        self._reason = self._reason or "closed"
        self._engine.open.discard(id(self))

    def __enter__(self) -> "StandInGeneration":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
