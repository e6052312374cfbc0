"""Which requests go to which model, and what they cost on this machine: measured by a few requests before it serves.

These are requests like any others, through the engine's own steps. Where the time is too short for the longest, a
shorter one is measured, and scaled by the arithmetic of `skipwise plan`.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from skipwise.inference.engine import Engine, GenerationRequest, Mode
from skipwise.memory import decode_bytes, kv_cache_bytes, prefill_flops
from skipwise.serve.backends import Backend
from skipwise.serve.keys import Role

SECONDS = 5.0
"""How long the measurements may take together; a step that has begun is finished."""

_PROBE_TOKENS, _NEW_TOKENS = 64, 8
_SHORT_TOKENS = 1024
# Of the free memory, the most that the cache of a measured request may take.
_FREE_SHARE = 0.5


class Span(NamedTuple):
    """Requests of more than `above` and up to `tokens` tokens, new ones included, which one mode serves."""

    above: int
    tokens: int
    mode: Mode


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestCost:
    """What one request takes, alone on the machine.

    Attributes:
        tokens: its length, new tokens included.
        first_token_seconds: until the first token.
        token_seconds: for each further one; None if the model ended its answer at once.
        cache_bytes: that it holds beside the model.
        estimated: scaled from a shorter request, or from one of the other mode.
        fits: False if memory ran out.
    """

    mode: Mode
    tokens: int
    first_token_seconds: float
    token_seconds: float | None
    cache_bytes: int
    estimated: bool = False
    fits: bool = True

    @property
    def seconds(self) -> float:
        """Of the whole measurement."""
        return self.first_token_seconds + _NEW_TOKENS * (self.token_seconds or 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What grows with a request's length, in any unit: operations of prefill, bytes that a token reads, bytes held."""

    prefill: Callable[[int], float]
    token: Callable[[int], float]
    held: Callable[[int], float]

    @classmethod
    def of(cls, model: Any) -> "Work":
        """The arithmetic of a model of the transformers library."""
        from skipwise.plan.shape import shape_of

        shape, bits = shape_of(model.config), 8 * model.dtype.itemsize
        how = {"weight_bits": bits, "kv_bits": bits}
        return cls(
            prefill=lambda tokens: prefill_flops(shape.counts, shape.layers, tokens),
            token=lambda tokens: decode_bytes(shape.counts, shape.layers, tokens, **how),
            held=lambda tokens: kv_cache_bytes(shape.layers, tokens, bits=bits),
        )

    def scaled(self, cost: RequestCost, tokens: int, mode: Mode) -> RequestCost:
        """The cost of another request by that of a measured one."""
        if (cost.tokens, cost.mode) == (tokens, mode):
            return cost
        per_token = cost.token_seconds
        return RequestCost(
            mode=mode,
            tokens=tokens,
            first_token_seconds=cost.first_token_seconds * self.prefill(tokens) / self.prefill(cost.tokens),
            token_seconds=None if per_token is None else per_token * self.token(tokens) / self.token(cost.tokens),
            cache_bytes=round(cost.cache_bytes * self.held(tokens) / self.held(cost.tokens)),
            estimated=True,
            fits=cost.fits,
        )


def spans(original_window: int, target: int, modes: Sequence[Mode]) -> list[Span]:
    """Which mode serves which lengths, in a few steps up to the target."""
    borders: list[tuple[int, Mode]] = []
    if "short" in modes:
        if original_window >= 2 * _SHORT_TOKENS:
            borders.append((_SHORT_TOKENS, "short"))
        borders.append((original_window, "short"))
    if "long" in modes:
        if target >= 8 * original_window:
            borders.append((original_window << round(math.log2(target / original_window) / 2), "long"))
        borders.append((target, "long"))
    above = [0, *(tokens for tokens, _ in borders)]
    return [Span(low, tokens, mode) for low, (tokens, mode) in zip(above, borders, strict=False)]


class Bench:
    """Measures requests on an engine, for so many seconds in all.

    Args:
        engine: nothing else runs on it meanwhile.
        work: how costs grow with the length.
        vocabulary: token ids of prompts are below this.
        seconds: when they are over, what is left is estimated.
        free_bytes: of memory.
        clock: gives seconds.
    """

    def __init__(
        self,
        engine: Engine,
        work: Work,
        vocabulary: int,
        *,
        seconds: float = SECONDS,
        free_bytes: float = math.inf,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._engine, self._work, self._vocabulary = engine, work, vocabulary
        self._clock, self._free_bytes = clock, free_bytes
        self._end = clock() + seconds

    def measure(self, wanted: Sequence[Span]) -> list[RequestCost]:
        """The cost of the longest request of each span; spans are in order of length."""
        costs: list[RequestCost] = []
        basis: RequestCost | None = None
        for number, span in enumerate(wanted):
            now = self._clock()
            # What one span does not use is left to those after it, which take longer.
            until = now + (self._end - now) / (len(wanted) - number)
            basis = self._approach(span, basis, until)
            costs.append(self._work.scaled(basis, span.tokens, span.mode))
        return costs

    def _approach(self, span: Span, basis: RequestCost | None, until: float) -> RequestCost:
        """The longest request up to the span's that time and memory allow."""
        if basis is None or (basis.mode != span.mode and self._clock() < until):
            basis = self._run(span.mode, min(_PROBE_TOKENS, span.tokens), until)
            if basis.fits and self._clock() < until:  # The first one of a mode loads kernels.
                basis = self._run(span.mode, basis.tokens, until)
        while basis.fits and basis.mode == span.mode and basis.tokens < span.tokens:
            longer = (self._work.scaled(basis, tokens, span.mode) for tokens in _halves(span.tokens, basis.tokens))
            chosen = next((cost.tokens for cost in longer if self._is_possible(cost, until)), None)
            if chosen is None:
                break
            basis = self._run(span.mode, chosen, until)
        return basis

    def _is_possible(self, cost: RequestCost, until: float) -> bool:
        return cost.seconds <= until - self._clock() and cost.cache_bytes <= _FREE_SHARE * self._free_bytes

    def _run(self, mode: Mode, tokens: int, until: float) -> RequestCost:
        """Measures one request; it decodes no further than `until`."""
        new = max(1, min(_NEW_TOKENS, tokens // 2))
        prompt = np.random.default_rng(tokens).integers(0, self._vocabulary, tokens - new).tolist()
        # A high temperature, since the likeliest token may be one that ends the answer.
        request = GenerationRequest(prompt_ids=prompt, max_new_tokens=new, temperature=2.0, seed=0, mode=mode)
        began, steps, first = self._clock(), 0, 0.0
        with self._engine.start(request) as generation:
            try:
                while not generation.step() and not generation.is_done:
                    pass
                first = self._clock()
                while not generation.is_done and (not steps or self._clock() < until):
                    steps += len(generation.step())
            except Exception as error:
                if not (isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"):
                    raise
                return RequestCost(
                    mode=mode, tokens=tokens, first_token_seconds=0, token_seconds=None, cache_bytes=0, fits=False
                )
            done = self._clock()
            return RequestCost(
                mode=mode,
                tokens=tokens,
                first_token_seconds=first - began,
                token_seconds=(done - first) / steps if steps else None,
                cache_bytes=generation.stats.cache_bytes,
            )


def _halves(most: int, above: int) -> Iterator[int]:
    """`most`, half of it, and so on, while larger than `above`."""
    while most > above:
        yield most
        most //= 2


def reach(role: Role, backend: Backend) -> dict[Mode, int]:
    """The modes that the requests of a role's keys need, and the most tokens in each.

    The long mode is left out where the role's limit is so low that all its requests fit the short one.
    """
    reached: dict[Mode, int] = {}
    for name, model in backend.models.items():
        if role.models is not None and name not in role.models:
            continue
        most = min(model.window, role.max_context or model.window)
        # Without a mode, the length decides, among the modes that there are.
        for mode in backend.modes if model.mode is None else (model.mode,):
            if mode == "short":
                reached[mode] = max(reached.get(mode, 0), min(most, backend.original_window))
            elif model.mode is not None or most > backend.original_window or "short" not in backend.modes:
                reached[mode] = max(reached.get(mode, 0), most)
    if "short" in reached and reached.get("long", 0) <= backend.original_window:
        reached.pop("long", None)
    return reached
