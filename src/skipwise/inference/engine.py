"""What a server or a command needs of whatever generates: requests in, steps of tokens out.

    generation = engine.start(GenerationRequest(prompt_ids=ids, max_new_tokens=100))
    with generation:
        while not generation.is_done:
            token_ids = generation.step()        # one chunk of the prompt, or one token
            print(generation.take_text(), end="")

A step is short, so that a scheduler can take turns between requests, and stop one between any two steps by `close()`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, Self

from skipwise.errors import ConfigError

Mode = Literal["short", "long"]
"""`short`: the base model, bit for bit. `long`: the extended one."""

MODES: tuple[Mode, ...] = ("short", "long")

FinishReason = Literal["stop", "length", "closed"]
"""`stop`: an end token or a stop text; `length`: `max_new_tokens`; `closed`: somebody had enough of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """A prompt to be continued.

    Attributes:
        prompt_ids: token ids of the prompt, special tokens included; at least one.
        max_new_tokens: tokens to generate at most; 1 or more.
        temperature: of the draws; 0, and what is next to it, takes the likeliest token each time.
        top_p: draws are among the likeliest tokens that together have at least this probability; above 0, at most 1.
        seed: of the draws; None draws differently each time.
        stop: texts that end the output, and are no part of it.
        mode: `short` or `long`; None leaves the choice to the exact count of tokens, which is what requests want.

    Raises:
        ConfigError: a value is out of its range.
    """

    prompt_ids: Sequence[int]
    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    mode: Mode | None = None

    def __post_init__(self) -> None:
        if not len(self.prompt_ids):
            raise ConfigError("the prompt is empty; give at least one token")
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens is {self.max_new_tokens}; it must be 1 or more")
        if not self.temperature >= 0:
            raise ConfigError(f"temperature is {self.temperature}; it must be 0 or more")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if self.seed is not None and not -(2**63) <= self.seed < 2**64:
            raise ConfigError(f"seed is {self.seed}; it must have 64 bits at most")
        if not all(self.stop):
            raise ConfigError("a stop text is empty; leave it out")
        if self.mode not in (None, *MODES):
            raise ConfigError(f"mode is {self.mode!r}; give short, long, or None to let the length decide")

    @property
    def total_tokens(self) -> int:
        """Tokens that the request may come to: the prompt's and all that may be generated."""
        return len(self.prompt_ids) + self.max_new_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationStats:
    """What a generation took so far.

    Attributes:
        mode: that it is served in.
        prompt_tokens: of the request.
        reused_tokens: of these, how many an earlier request's cache already had.
        new_tokens: generated, an end token included.
        prefill_seconds: of steps that read the prompt, without what passed between steps.
        decode_seconds: of steps that generated a further token.
        cache_bytes: that keys and values take.
        read_tokens: that the cache holds so far, reused ones too: how far the prompt is.
    """

    mode: Mode
    prompt_tokens: int
    reused_tokens: int
    new_tokens: int
    prefill_seconds: float
    decode_seconds: float
    cache_bytes: int
    read_tokens: int = 0


class Generation(Protocol):
    """A request on its way. One thread at a time may call it; `close`, or leaving a `with`, may come at any time."""

    @property
    def mode(self) -> Mode:
        """The mode that it is served in, chosen when it was started."""
        ...

    @property
    def is_done(self) -> bool:
        """Whether there is nothing left to do."""
        ...

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why it ended; None while it is on its way."""
        ...

    @property
    def stats(self) -> GenerationStats:
        """What it took so far."""
        ...

    def step(self) -> list[int]:
        """Reads one chunk of the prompt, or generates one token.

        Returns:
            The tokens that are new: none while the prompt is read and once it is done, else one. An end token counts.
        """
        ...

    def take_text(self) -> str:
        """The text that was settled since the last call; what may yet become a stop text or half a letter waits."""
        ...

    def close(self) -> None:
        """Ends it and lets go of its memory; the second time does nothing."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...


class Engine(Protocol):
    """Whatever generates."""

    @property
    def name(self) -> str:
        """What clients call the model."""
        ...

    @property
    def original_window(self) -> int:
        """Tokens up to which a request, with what it may generate, is served by the base model."""
        ...

    @property
    def target(self) -> int:
        """Tokens that a request may come to at most, with what it may generate."""
        ...

    def mode_of(self, request: GenerationRequest) -> Mode:
        """The mode that a request would be served in.

        Raises:
            ConfigError: the request is too long, or asks for a mode that cannot hold it or is not there.
        """
        ...

    def start(self, request: GenerationRequest) -> Generation:
        """Begins a request; no model runs before its first step.

        Raises:
            ConfigError: as `mode_of`.
        """
        ...
