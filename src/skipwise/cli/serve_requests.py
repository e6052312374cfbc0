"""What `skipwise serve` says at its start: which requests go to which model, what they cost here, and whose may."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from skipwise.inference.engine import Mode
from skipwise.names import first_line
from skipwise.report.quantities import ABSENT, bytes_text, digits_text, seconds_text
from skipwise.serve.backends import Backend, Embedded
from skipwise.serve.first_costs import SECONDS, Bench, RequestCost, Span, Work, reach, spans
from skipwise.serve.keys import Keyring

_MODELS: dict[Mode, str] = {"short": "base", "long": "extended"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestsTold:
    """Lengths of requests, with the cost of the longest of each span, or why it was not measured; and roles.

    Attributes:
        model_bytes: of the weights; None if they are another program's.
        roles: by name, the modes that they reach and the most tokens in each.
    """

    spans: Sequence[Span]
    costs: Sequence[RequestCost]
    unmeasured: str
    model_bytes: int | None
    roles: dict[str, dict[Mode, int]]

    def lines(self) -> Iterator[str]:
        """The table and what is said beneath, for the terminal."""
        header = ("requests, answer included", "model", "first token", "tokens a second", "memory")
        rows = [header, *(_cells(span, cost) for span, cost in self._rows)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            left = (cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True))
            right = (cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True))
            yield "  ".join((*left, *right)).rstrip()
        if self.costs:
            beside = "" if self.model_bytes is None else f" beside the model's {bytes_text(self.model_bytes)}"
            yield f"of the longest request of each row, alone on this machine; memory is what it holds{beside}"
        if any(cost.estimated for cost in self.costs):
            yield "* estimated from a shorter request"
        if self.unmeasured:
            yield f"not measured: {self.unmeasured}"
        for role, reached in self.roles.items():
            models = ", ".join(
                f"{_MODELS[mode]} up to {tokens:,} tokens" for mode, tokens in sorted(reached.items())[::-1]
            )
            yield f"role {role}: {models or 'no model'}"

    def to_json(self) -> dict[str, Any]:
        """The same as JSON values."""
        requests = [
            {"above": span.above, "mode": span.mode, "tokens": span.tokens, **({} if cost is None else asdict(cost))}
            for span, cost in self._rows
        ]
        return {"requests": requests, "model_bytes": self.model_bytes, "roles": self.roles}

    @property
    def _rows(self) -> Sequence[tuple[Span, RequestCost | None]]:
        return list(zip(self.spans, self.costs or [None] * len(self.spans), strict=True))


def requests_told(backend: Backend, keyring: Keyring | None, *, measure: bool) -> RequestsTold:
    """What to say of requests to a backend that has not started yet; measures on an embedded engine."""
    wanted = spans(backend.original_window, backend.target, backend.modes)
    costs: Sequence[RequestCost] = ()
    unmeasured, model_bytes = "", None
    if not isinstance(backend, Embedded):
        unmeasured = backend.unmeasured
    elif not measure:
        unmeasured = "--no-measure was given"
    else:
        print(f"measuring what requests cost here, about {SECONDS:g} seconds; --no-measure skips it", file=sys.stderr)
        try:
            model_bytes, costs = _measured(backend, wanted)
        except Exception as error:  # Whatever it is, requests may still be answered.
            unmeasured = first_line(error)
    roles = {} if keyring is None else {name: reach(role, backend) for name, role in sorted(keyring.roles.items())}
    return RequestsTold(spans=wanted, costs=costs, unmeasured=unmeasured, model_bytes=model_bytes, roles=roles)


def _measured(backend: Embedded, wanted: Sequence[Span]) -> tuple[int, Sequence[RequestCost]]:
    """Bytes of the weights of all modes, and what requests cost."""
    from skipwise.model import embedding_rows
    from skipwise.runtime.chunks import free_bytes
    from skipwise.runtime.thread import in_own_thread

    engine: Any = backend.engine
    models = [engine.modes.model(mode) for mode in engine.modes.modes]
    weights = {id(one): one.numel() * one.element_size() for model in models for one in model.parameters()}
    model = models[0]
    vocabulary = min(embedding_rows(one.config) for one in models)
    bench = Bench(engine, Work.of(model), vocabulary, free_bytes=free_bytes(model.device))
    return sum(weights.values()), in_own_thread(lambda: bench.measure(wanted))


def _cells(span: Span, cost: RequestCost | None) -> tuple[str, ...]:
    length = f"{span.above + 1:,} to {span.tokens:,} tokens" if span.above else f"up to {span.tokens:,} tokens"
    if cost is None:
        return (length, _MODELS[span.mode], ABSENT, ABSENT, ABSENT)
    if not cost.fits:
        return (length, _MODELS[span.mode], "memory ran out", ABSENT, ABSENT)
    mark = "*" if cost.estimated else " "
    speed = ABSENT if not cost.token_seconds else digits_text(1 / cost.token_seconds, 2) + mark
    return (
        length,
        _MODELS[span.mode],
        seconds_text(cost.first_token_seconds) + mark,
        speed,
        bytes_text(cost.cache_bytes),
    )
