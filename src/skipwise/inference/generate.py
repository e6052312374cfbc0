"""The engine of this process: one model in two modes, requests in turns of one chunk or of a token each."""

import threading
import time
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from skipwise.errors import ConfigError
from skipwise.inference.engine import Engine, FinishReason, Generation, GenerationRequest, GenerationStats, Mode
from skipwise.inference.modes import TwoModes
from skipwise.inference.prefix import PrefixStore
from skipwise.inference.text import TextStream
from skipwise.model import embedding_rows
from skipwise.runtime.caches import BLOCK_TOKENS, cache_bytes, make_cache
from skipwise.runtime.chunks import chunk_columns
from skipwise.runtime.decode import end_token_ids
from skipwise.runtime.length_rope import held_length, tables_at
from skipwise.runtime.session import Session
from skipwise.runtime.together import can_step_together, forget_half_read, step_together

# Logits divided by a smaller temperature are infinite and cannot be sampled.
_GREEDY_BELOW = 1e-5


class LocalEngine(Engine):
    """Generates with the transformers library in this process.

    Requests are independent: each has its own cache, filled and read in its one mode. A lock is held for a step, so
    that threads may each have a generation of their own.

    Args:
        cache: kind of KV cache, one of `CACHES`.
        chunk_tokens: tokens of a prompt that one step reads, a multiple of 64; by default what suits the device.
        prefixes: caches of finished requests that are kept for later ones on the same document.

    Raises:
        ConfigError: the kind of cache is unknown, or a number out of range.
    """

    def __init__(
        self,
        modes: TwoModes,
        *,
        name: str = "skipwise",
        cache: str = "dynamic",
        chunk_tokens: int | None = None,
        prefixes: int = 1,
    ) -> None:
        long = modes.model("long")
        self.modes, self.cache_kind, self.lock = modes, cache, threading.RLock()
        self.name, self.original_window, self.target = name, modes.original_window, modes.target
        self.chunk_tokens = chunk_columns(long, 1) if chunk_tokens is None else chunk_tokens
        if self.chunk_tokens < 1 or self.chunk_tokens % BLOCK_TOKENS:
            raise ConfigError(f"chunk_tokens is {self.chunk_tokens}; give a multiple of {BLOCK_TOKENS}")
        if prefixes < 0:
            raise ConfigError(f"prefixes is {prefixes}; it must be 0 or more")
        make_cache(cache, long, BLOCK_TOKENS)  # Raises if it does not suit this model and machine.
        self.prefixes = PrefixStore(prefixes, self.chunk_tokens)
        self.end_ids = end_token_ids(long, modes.tokenizer)
        self._together: dict[Mode, bool] = {}

    def mode_of(self, request: GenerationRequest) -> Mode:
        """The mode of a request, by `TwoModes.choose`."""
        return self.modes.choose(request.total_tokens, request.mode)

    def step(
        self, generation: Generation, others: Sequence[Generation] = ()
    ) -> dict[Generation, list[int] | Exception]:
        """Steps a generation; if it makes a token, those of the others that do so in the same mode go with it."""
        with self.lock:
            rows = [one for one in (generation, *others) if isinstance(one, LocalGeneration) and one.only_decodes]
            rows = [one for one in rows if one.mode == generation.mode]
            if len(rows) < 2 or generation not in rows or not self._steps_together(generation.mode):
                return super().step(generation)
            stepped = LocalGeneration.step_all(rows)
            return stepped if generation in stepped else stepped | super().step(generation)

    def _steps_together(self, mode: Mode) -> bool:
        """Whether requests of a mode can make their tokens in one pass, tried when it is first asked for."""
        if mode not in self._together:
            model = self.modes.model(mode)
            try:
                with self.modes.one_at_a_time:
                    does = can_step_together(model, lambda: make_cache(self.cache_kind, model, BLOCK_TOKENS))
            except (MemoryError, torch.OutOfMemoryError):
                return False
            self._together[mode] = does
        return self._together[mode]

    def start(self, request: GenerationRequest) -> "LocalGeneration":
        """Starts a request; no model runs before its first step."""
        mode = self.mode_of(request)
        vocabulary = embedding_rows(self.modes.model(mode).config)
        if not 0 <= min(request.prompt_ids) <= max(request.prompt_ids) < vocabulary:
            raise ConfigError(
                f"the prompt has token ids out of 0 to {vocabulary - 1}; it needs the model's own tokenizer"
            )
        return LocalGeneration(self, request, mode)


class LocalGeneration(Generation):
    """A request that a `LocalEngine` computes."""

    def __init__(self, engine: LocalEngine, request: GenerationRequest, mode: Mode) -> None:
        self.mode, self.finish_reason = mode, None
        self._engine, self._request = engine, request
        self._model: Any = engine.modes.model(mode)
        # The first `_read` of these are in the cache.
        self._ids = list(request.prompt_ids)
        self._session: Session | None = None
        self._tables: Hashable = None
        self._read = self._reused = self._cache_bytes = 0
        self._prefill_seconds = self._decode_seconds = 0.0
        self._text, self._settled = TextStream(engine.modes.tokenizer, request.stop), ""
        self._warpers, self._is_greedy = LogitsProcessorList(), request.temperature < _GREEDY_BELOW
        if not self._is_greedy:
            self._warpers.append(TemperatureLogitsWarper(float(request.temperature)))
            self._warpers.append(TopPLogitsWarper(float(request.top_p)))
        self._draws = torch.Generator(self._model.device)
        if request.seed is None:
            self._draws.seed()
        else:
            self._draws.manual_seed(request.seed)

    @property
    def stats(self) -> GenerationStats:
        """What it took so far."""
        prompt_tokens = len(self._request.prompt_ids)
        return GenerationStats(
            mode=self.mode,
            prompt_tokens=prompt_tokens,
            read_tokens=self._read,
            reused_tokens=self._reused,
            new_tokens=len(self._ids) - prompt_tokens,
            prefill_seconds=self._prefill_seconds,
            decode_seconds=self._decode_seconds,
            cache_bytes=self._cache_bytes if self._session is None else cache_bytes(self._session.cache),
        )

    def step(self) -> list[int]:
        """Reads one chunk of the prompt, or generates one token.

        Raises:
            CheckpointError: a logit is NaN, or the largest infinite. The generation is closed then, as after any error.
        """
        with self._engine.lock:
            if self.is_done:
                return []
            began, reads_prompt = time.perf_counter(), self._read < len(self._request.prompt_ids)
            try:
                token = self._forward()
            except BaseException:
                self._finish("closed", keep=False)
                raise
            if reads_prompt:
                self._prefill_seconds += time.perf_counter() - began
            else:
                self._decode_seconds += time.perf_counter() - began
            if token is None:
                return []
            self._take(token)
            return [token]

    @property
    def only_decodes(self) -> bool:
        """Whether the next step reads the last token alone, which is not of the prompt, and makes another."""
        read_all_but_one = len(self._request.prompt_ids) <= self._read == len(self._ids) - 1
        return not self.is_done and self._session is not None and read_all_but_one

    @staticmethod
    def step_all(rows: "Sequence[LocalGeneration]") -> dict[Generation, list[int] | Exception]:
        """Generates a token of each of several, which `only_decode` in one mode, in one pass.

        Returns:
            The token of each, or its CheckpointError for a logit that is NaN or infinite. Of a pass that failed, as
            where memory ran out, only those whose cache cannot be used any more; the others are as before it.
        """
        began, engine, model = time.perf_counter(), rows[0]._engine, rows[0]._model
        sessions: list[Any] = [row._session for row in rows]
        stepped: dict[Generation, list[int] | Exception] = {}
        try:
            with engine.modes.one_at_a_time:
                logits = step_together(model, sessions, [row._ids[-1] for row in rows])
        except Exception as error:
            for row, session in zip(rows, sessions, strict=True):
                try:
                    forget_half_read(session)
                except ValueError:
                    row._finish("closed", keep=False)
                    stepped[row] = error
            return stepped
        except BaseException:
            for row in rows:
                row._finish("closed", keep=False)
            raise
        for row in rows:
            row._read += 1
        for row, session, own in zip(rows, sessions, logits.split(1), strict=True):
            try:
                session.check(own, row._read - 1)
                token = row._choose(own[:, -1].float())
                row._take(token)
                stepped[row] = [token]
            except Exception as error:
                row._finish("closed", keep=False)
                stepped[row] = error
        seconds = (time.perf_counter() - began) / len(rows)
        for row in rows:
            row._decode_seconds += seconds
        return stepped

    def take_text(self) -> str:
        """Text that is new and final."""
        with self._engine.lock:
            settled, self._settled = self._settled, ""
            return settled

    def close(self) -> None:
        """Ends it and frees its memory."""
        with self._engine.lock:
            if not self.is_done:
                self._finish("closed")

    def _forward(self) -> int | None:
        """Reads the next chunk or the last token; returns the next token once everything is read."""
        length = held_length(self._model, len(self._ids), self._request.total_tokens)
        if self._session is None or tables_at(self._model, length) != self._tables:
            # Also when the answer grows past what the keys so far were rotated for.
            self._session = self._begin(length)
        end = min(self._session.columns + self._engine.chunk_tokens, len(self._ids))
        chunk, wants_token = torch.tensor([self._ids[self._session.columns : end]]), end == len(self._ids)
        with self._engine.modes.one_at_a_time:
            logits = self._session.step(chunk, int(wants_token))
        self._read = end
        if wants_token:
            return self._choose(logits[:, -1].float())
        if logits.device.type != "cpu":
            torch.accelerator.synchronize(logits.device)  # Or this chunk's seconds would count as the next one's.
        return None

    def _begin(self, length: int) -> Session:
        """A session with the rotary tables of `length`; its cache is empty or holds the first tokens already."""
        self._session, self._read, self._tables = None, 0, tables_at(self._model, length)
        if found := self._engine.prefixes.take(self._prefix_kind, self._ids):
            cache, self._read = found
        else:
            cache = make_cache(self._engine.cache_kind, self._model, self._request.total_tokens)
        # What the prompt once reused stays counted, even if it is read again for other tables.
        self._reused = max(self._reused, min(self._read, len(self._request.prompt_ids)))
        return Session(self._model, cache, length=length, columns=self._read, names=["request"])

    @property
    def _prefix_kind(self) -> Hashable:
        """What keys and values depend on beside the tokens."""
        return self.mode, self._engine.cache_kind, self._tables

    def _choose(self, logits: Tensor) -> int:
        """The next token by its logits (1, vocabulary)."""
        if self._is_greedy:
            return int(logits.argmax(-1))
        warped: Any = self._warpers(torch.empty(1, 0, dtype=torch.long), logits)  # pyright: ignore[reportArgumentType]
        return int(torch.multinomial(warped.softmax(-1), 1, generator=self._draws))

    def _take(self, token: int) -> None:
        self._ids.append(token)
        if token in self._engine.end_ids:
            self._finish("stop")
            return
        self._settled += self._text.add(token)
        if self._text.stopped:
            self._finish("stop")
        elif len(self._ids) == self._request.total_tokens:
            self._finish("length")

    def _finish(self, reason: FinishReason, *, keep: bool = True) -> None:
        """Ends it. Its cache is kept for requests that begin alike, unless an error left it half written."""
        self._settled += self._text.finish()
        self.finish_reason = reason
        session, self._session = self._session, None
        if session is not None and session.cache is not None:
            self._cache_bytes = cache_bytes(session.cache)
            if keep:
                self._engine.prefixes.give(self._prefix_kind, self._ids[: self._read], session.cache)
