"""Counts and times for Prometheus, in their own registry. None is of a single key or a text."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)


class Metrics:
    """What a server counts."""

    content_type = CONTENT_TYPE_PLAIN_0_0_4

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "skipwise_requests", "Requests by route, status and mode", ["endpoint", "status", "mode"], registry=registry
        )
        self.tokens = Counter("skipwise_tokens", "Tokens read and written", ["kind", "mode"], registry=registry)
        self.first_token_seconds = Histogram(
            "skipwise_first_token_seconds", "Until the first text", ["mode"], buckets=_SECONDS, registry=registry
        )
        self.request_seconds = Histogram(
            "skipwise_request_seconds", "Until the last byte", ["mode"], buckets=_SECONDS, registry=registry
        )
        self.running = Gauge("skipwise_running_requests", "Requests being computed", registry=registry)
        self.waiting = Gauge("skipwise_waiting_requests", "Requests in the queue", registry=registry)

    def render(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self._registry)
