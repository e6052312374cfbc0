"""What answers requests: the engine in this process, or servers behind this one; with exact token counts either way."""

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from skipwise.data.tokens import TextEncoder
from skipwise.errors import ConfigError, DataError, UnsupportedModelError
from skipwise.inference.engine import Engine, GenerationRequest, Mode
from skipwise.serve.refusals import Refusal
from skipwise.serve.scheduler import Cost, Progress, Scheduler, Turns

_LONG_TEXT_CHARACTERS = 1 << 16

Message = dict[str, str]
"""A message of a chat: `role` and `content`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """What clients may ask for by a name; without a mode, the exact token count decides. New tokens count."""

    name: str
    mode: Mode | None
    window: int


class Prompts:
    """Turns texts and chats into token ids, as a fast tokenizer of the transformers library does.

    Control tokens that a client spells out are plain text. Clients that mean the tokens send token ids. Chats are
    written by the Jinja template that is given or, if it is None, the tokenizer's own; without either, as plain lines.

    Raises:
        UnsupportedModelError: the tokenizer is not a fast one.
    """

    def __init__(self, tokenizer: Any, chat_template: str | None = None) -> None:
        if getattr(tokenizer, "backend_tokenizer", None) is None:
            raise UnsupportedModelError(
                f"the tokenizer is a {type(tokenizer).__name__}, with no fast form; give the model a tokenizer.json",
                page="unsuitable-tokenizer",
            )
        self._encoder = TextEncoder(tokenizer, chat_template=chat_template)
        self.has_template = self._encoder.has_template
        self.num_ids = len(tokenizer)

    def ids(self, prompt: str | Sequence[Message]) -> list[int]:
        """Token ids, special tokens included. Any thread may call this.

        Raises:
            Refusal: 400, the template does not take these messages, or the text is not valid.
        """
        try:
            if isinstance(prompt, str):
                return self._encoder.encode(prompt, add_special_tokens=True)
            return self._encoder.encode_rendered(self._rendered(prompt))
        except DataError as error:
            param = "prompt" if isinstance(prompt, str) else "messages"
            raise Refusal(400, str(error), code="invalid_request", param=param) from error

    def _rendered(self, messages: Sequence[Message]) -> str:
        try:
            return self._encoder.render_chat(messages)
        except DataError:
            raise
        except Exception as error:
            # Templates raise errors of their own, whose messages may hold the text.
            reason = f"the model's chat template refuses these messages ({type(error).__name__})"
            raise Refusal(400, f"{reason}; begin with a user's message and take turns", param="messages") from error


class Backend(ABC):
    """What answers requests.

    Clients call the model by `name`, and the length chooses the mode; `name:short` and `name:long` ask for one.
    `num_ids` is one more than the largest token id, or None if that is not known here. `original_window` is the most
    tokens of a request that the base model serves, `target` of any. `unmeasured` says why costs of requests are not
    measured before it starts, where they are not.
    """

    unmeasured = ""

    def __init__(self, name: str, original_window: int, target: int, prompts: Prompts) -> None:
        served = [ServedModel(name=name, mode=None, window=target)]
        if target > original_window:
            served.append(ServedModel(name=f"{name}:short", mode="short", window=original_window))
            served.append(ServedModel(name=f"{name}:long", mode="long", window=target))
        self.models = {model.name: model for model in served}
        self.original_window, self.target = original_window, target
        self.num_ids: int | None = prompts.num_ids
        self.is_draining = False
        self._prompts = prompts
        # One long text at a time, so that short ones always find a thread. If its client leaves, it is not begun.
        self._long_texts = ThreadPoolExecutor(1, "skipwise-long-text")

    async def tokenize(self, prompt: str | Sequence[Message]) -> list[int]:
        """Token ids of a text, or of a chat by the model's template, special tokens included."""
        size = len(prompt) if isinstance(prompt, str) else sum(len(message["content"]) for message in prompt)
        threads = self._long_texts if size > _LONG_TEXT_CHARACTERS else None
        return await asyncio.get_running_loop().run_in_executor(threads, self._prompts.ids, prompt)

    def drain(self) -> None:
        """Refuses new requests from now on; those that are here go on."""
        self.is_draining = True

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes that it has; a model that was never extended has the short one alone."""
        return tuple(model.mode for model in self.models.values() if model.mode is not None) or ("short",)

    @property
    @abstractmethod
    def load(self) -> tuple[int, int]:
        """How many requests run, and how many wait."""

    @abstractmethod
    def mode_of(self, request: GenerationRequest) -> Mode:
        """The mode of a request. Raises ConfigError if the request is too long."""

    @abstractmethod
    def run(
        self, owner: str, request: GenerationRequest, cost: Cost
    ) -> AbstractAsyncContextManager[AsyncIterator[Progress]]:
        """A context with the answer as it comes. Leaving it early stops the computation.

        After it, `cost` says what the request took, as far as the backend knows.
        """

    @abstractmethod
    async def is_healthy(self) -> bool:
        """Whether an answer can be expected."""

    @abstractmethod
    async def start(self) -> None:
        """Makes it ready."""

    @abstractmethod
    async def stop(self) -> None:
        """Ends it, and cuts off what still runs."""


class Embedded(Backend):
    """The engine in this process, with fair turns."""

    def __init__(self, engine: Engine, prompts: Prompts, turns: Turns) -> None:
        super().__init__(engine.name, engine.original_window, engine.target, prompts)
        self.engine = engine
        self._scheduler = Scheduler(engine, turns)
        self.models = {name: model for name, model in self.models.items() if self._has(model.mode)}

    def _has(self, mode: Mode | None) -> bool:
        """Whether the engine has a mode; without the base model it has no short one."""
        try:
            self.mode_of(GenerationRequest(prompt_ids=[0], max_new_tokens=1, mode=mode))
        except ConfigError:
            return False
        return True

    @property
    def load(self) -> tuple[int, int]:
        """How many requests run, and how many wait."""
        return self._scheduler.load

    def mode_of(self, request: GenerationRequest) -> Mode:
        """The mode of a request."""
        return self.engine.mode_of(request)

    @asynccontextmanager
    async def run(self, owner: str, request: GenerationRequest, cost: Cost) -> AsyncIterator[AsyncIterator[Progress]]:
        """A context with the answer as it comes."""
        loop, queue = asyncio.get_running_loop(), asyncio.Queue[Progress]()

        def deliver(progress: Progress) -> None:
            # The loop may be closed already when the server ends at once.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(queue.put_nowait, progress)

        async def answer() -> AsyncIterator[Progress]:
            while True:
                progress = await queue.get()
                yield progress
                if progress.is_last:
                    return

        job = self._scheduler.submit(owner, request, deliver, cost)
        try:
            yield answer()
        finally:
            self._scheduler.cancel(job)

    async def is_healthy(self) -> bool:
        """Whether the computing thread runs."""
        return self._scheduler.is_running

    async def start(self) -> None:
        """Starts the computing thread."""
        self._scheduler.start()

    def drain(self) -> None:
        """Refuses new requests from now on."""
        super().drain()
        self._scheduler.drain()

    async def stop(self) -> None:
        """Ends the computing thread after its step."""
        await asyncio.to_thread(self._scheduler.stop)
