"""Who answers: the engine in this process, or other servers behind this one; either way by exact counts of tokens."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from skipwise.data.tokens import TextEncoder
from skipwise.errors import ConfigError, DataError, UnsupportedModelError
from skipwise.inference.engine import Engine, GenerationRequest, Mode
from skipwise.serve.refusals import Refusal
from skipwise.serve.scheduler import Progress, Scheduler, Turns

# Characters from which on a text is a long one.
_LONG_TEXT = 1 << 16

Message = dict[str, str]
"""Of a chat: `role` and `content`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """What clients may ask for by a name.

    Attributes:
        name: that they ask for.
        mode: that all its requests are served in; None for the exact count of tokens to decide.
        window: most tokens of a request, those to be generated included.
    """

    name: str
    mode: Mode | None
    window: int


class Backend(Protocol):
    """Whoever answers."""

    @property
    def models(self) -> dict[str, ServedModel]:
        """By name, the usual one first."""
        ...

    @property
    def num_ids(self) -> int | None:
        """One more than the largest token id; None where that is not known here."""
        ...

    @property
    def load(self) -> tuple[int, int]:
        """Requests that run, and that wait."""
        ...

    def mode_of(self, request: GenerationRequest) -> Mode:
        """The mode that a request is served in. Raises ConfigError where it is too long."""
        ...

    async def tokenize(self, prompt: str | Sequence[Message]) -> list[int]:
        """Token ids of a text, or of a chat by the model's template, special tokens included."""
        ...

    def run(self, owner: str, request: GenerationRequest) -> AbstractAsyncContextManager[AsyncIterator[Progress]]:
        """Within, the answer as it comes; whoever leaves early stops what computes it."""
        ...

    async def is_healthy(self) -> bool:
        """Whether an answer can be expected."""
        ...

    async def start(self) -> None:
        """Makes it ready."""
        ...

    def drain(self) -> None:
        """Refuses requests from now on."""
        ...

    async def stop(self) -> None:
        """Ends it; what still runs is cut off."""
        ...


def served_models(name: str, original_window: int, target: int) -> dict[str, ServedModel]:
    """The names of a model with two modes: its own, by which length decides, and one for each mode."""
    models = [ServedModel(name=name, mode=None, window=target)]
    if target > original_window:
        models.append(ServedModel(name=f"{name}:short", mode="short", window=original_window))
        models.append(ServedModel(name=f"{name}:long", mode="long", window=target))
    return {model.name: model for model in models}


class Prompts:
    """Text and chats to token ids, as a fast tokenizer of the transformers library makes them.

    Control tokens that a client spells are text. Who means the tokens sends token ids.

    Args:
        tokenizer: the model's own.
        chat_template: a Jinja template; None for the tokenizer's own, and if it has none a plain one of lines.

    Attributes:
        has_template: whether there is one beside the plain one.
        num_ids: one more than the largest token id.

    Raises:
        UnsupportedModelError: the tokenizer is of another kind.
    """

    def __init__(self, tokenizer: Any, chat_template: str | None = None) -> None:
        if getattr(tokenizer, "backend_tokenizer", None) is None:
            raise UnsupportedModelError(
                f"the tokenizer is a {type(tokenizer).__name__}, with no fast form; give the model a tokenizer.json"
            )
        self._encoder = TextEncoder(tokenizer, chat_template=chat_template)
        self.has_template = self._encoder.has_template
        self.num_ids = len(tokenizer)

    def ids(self, prompt: str | Sequence[Message]) -> list[int]:
        """Token ids, special tokens included. Any thread may call this.

        Raises:
            Refusal: 400, the template has no place for such a chat, or its text is none.
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
            # Templates raise on what they do not like, in words of their own that may hold the text.
            reason = f"the model's chat template refuses these messages ({type(error).__name__})"
            raise Refusal(400, f"{reason}; begin with a user's message and take turns", param="messages") from error


class Tokenizing:
    """Tokenizes beside the event loop, so that others are answered meanwhile.

    Args:
        prompts: how.
    """

    def __init__(self, prompts: Prompts) -> None:
        self._prompts = prompts
        # One long text at a time, so that short ones always find a thread; who leaves before its turn is passed over.
        self._long_texts = ThreadPoolExecutor(1, "skipwise-long-text")

    async def __call__(self, prompt: str | Sequence[Message]) -> list[int]:
        """Token ids of a text or chat."""
        size = len(prompt) if isinstance(prompt, str) else sum(len(message["content"]) for message in prompt)
        threads = self._long_texts if size > _LONG_TEXT else None
        return await asyncio.get_running_loop().run_in_executor(threads, self._prompts.ids, prompt)


class Embedded:
    """The engine in this process, with fair turns.

    Args:
        engine: whatever generates.
        prompts: of its tokenizer.
        turns: how requests share it.
    """

    def __init__(self, engine: Engine, prompts: Prompts, turns: Turns) -> None:
        self._engine = engine
        self._scheduler = Scheduler(engine, turns)
        self.num_ids = prompts.num_ids
        self._tokenizing = Tokenizing(prompts)
        models = served_models(engine.model_names[0], engine.original_window, engine.target)
        self.models = {name: model for name, model in models.items() if self._has(model.mode)}

    def _has(self, mode: Mode | None) -> bool:
        """Whether the engine has a mode; where the base model is gone, it has no short one."""
        try:
            self._engine.mode_of(GenerationRequest(prompt_ids=[0], max_new_tokens=1, mode=mode))
        except ConfigError:
            return False
        return True

    @property
    def load(self) -> tuple[int, int]:
        """Requests that run, and that wait."""
        return self._scheduler.num_running, self._scheduler.num_waiting

    def mode_of(self, request: GenerationRequest) -> Mode:
        """The mode that a request is served in."""
        return self._engine.mode_of(request)

    async def tokenize(self, prompt: str | Sequence[Message]) -> list[int]:
        """Token ids of a text or chat."""
        return await self._tokenizing(prompt)

    @asynccontextmanager
    async def run(self, owner: str, request: GenerationRequest) -> AsyncIterator[AsyncIterator[Progress]]:
        """Within, the answer as it comes."""
        loop, queue = asyncio.get_running_loop(), asyncio.Queue[Progress]()

        def deliver(progress: Progress) -> None:
            # The loop may be gone when the server ends in haste.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(queue.put_nowait, progress)

        async def answer() -> AsyncIterator[Progress]:
            while True:
                progress = await queue.get()
                yield progress
                if progress.is_last:
                    return

        job = self._scheduler.submit(owner, request, deliver)
        try:
            yield answer()
        finally:
            self._scheduler.cancel(job)

    async def is_healthy(self) -> bool:
        """Whether the computing thread is there."""
        return self._scheduler.is_running

    async def start(self) -> None:
        """Begins to compute."""
        self._scheduler.start()

    def drain(self) -> None:
        """Refuses requests from now on."""
        self._scheduler.drain()

    async def stop(self) -> None:
        """Ends the computing thread after its step."""
        await asyncio.to_thread(self._scheduler.stop)
