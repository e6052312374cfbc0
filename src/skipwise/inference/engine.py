"""What a server or a command needs of an engine: requests in, steps of tokens out.

    generation = engine.start(GenerationRequest(prompt_ids=ids, max_new_tokens=100))
    with generation:
        while not generation.is_done:
            token_ids = generation.step()        # one chunk of the prompt, or one token
            print(generation.take_text(), end="")

A step is short, so that a scheduler can take turns between requests, and stop one between any two steps by `close()`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

from skipwise.errors import ConfigError

Mode = Literal["short", "long"]
"""`short`: the base model, bit for bit for a request that runs alone. `long`: the extended one."""

MODES: tuple[Mode, ...] = ("short", "long")

FinishReason = Literal["stop", "length", "closed"]
"""`stop`: an end token or a stop text; `length`: `max_new_tokens`; `closed`: it was ended from outside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """A prompt to continue.

    Attributes:
        prompt_ids: token ids of the prompt, special tokens included; at least one.
        max_new_tokens: most tokens to generate; 1 or more.
        temperature: of the sampling; 0, or next to it, takes the likeliest token each time.
        top_p: samples among the likeliest tokens that together have at least this probability; above 0, at most 1.
        seed: of the sampling; None samples differently each time.
        stop: texts that end the output, and are not part of it.
        mode: `short` or `long`; None, the usual choice, lets the exact token count decide.

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
        """Most tokens of the request: the prompt's and all that may be generated."""
        return len(self.prompt_ids) + self.max_new_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationStats:
    """What a generation took so far.

    Attributes:
        reused_tokens: how many of these came from an earlier request's cache.
        new_tokens: generated, an end token included.
        prefill_seconds: of steps that read the prompt, without the time between steps.
        decode_seconds: of steps that generated a further token.
        cache_bytes: of keys and values.
        read_tokens: tokens in the cache so far, reused ones included.
    """

    mode: Mode
    prompt_tokens: int
    reused_tokens: int
    new_tokens: int
    prefill_seconds: float
    decode_seconds: float
    cache_bytes: int
    read_tokens: int = 0


class Generation(ABC):
    """A request that is computed. One thread at a time may call it; `close`, or leaving a `with`, may come at any time.

    `finish_reason` is None while it runs.
    """

    mode: Mode
    finish_reason: FinishReason | None = None

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do."""
        return self.finish_reason is not None

    @property
    @abstractmethod
    def stats(self) -> GenerationStats:
        """What it took so far."""

    @abstractmethod
    def step(self) -> list[int]:
        """Reads one chunk of the prompt, or generates one token.

        Returns:
            The new tokens: none while the prompt is read and once it is done, else one. An end token counts.
        """

    @abstractmethod
    def take_text(self) -> str:
        """Text that is new and final; what may become a stop text, or is half a character, waits."""

    @abstractmethod
    def close(self) -> None:
        """Ends it and frees its memory; a second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Engine(ABC):
    """Generates.

    Attributes:
        original_window: most tokens of a request that the base model serves, new ones included.
        target: most tokens of any request, new ones included.
    """

    name: str
    original_window: int
    target: int

    @abstractmethod
    def mode_of(self, request: GenerationRequest) -> Mode:
        """The mode of a request.

        Raises:
            ConfigError: the request is too long, or asks for a mode that cannot hold it or does not exist.
        """

    @abstractmethod
    def start(self, request: GenerationRequest) -> Generation:
        """Starts a request; no model runs before its first step.

        Raises:
            ConfigError: as `mode_of`; or a token id is not in the vocabulary.
        """

    def step(
        self, generation: Generation, others: Sequence[Generation] = ()
    ) -> dict[Generation, list[int] | Exception]:
        """Steps a generation and, if the same pass of the model can serve them, some of the others.

        Args:
            generation: whose turn it is.
            others: that run, too.

        Returns:
            The new tokens of each that was stepped, or what its step raised.
        """
        try:
            return {generation: generation.step()}
        except Exception as error:
            return {generation: error}
