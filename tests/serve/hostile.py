"""Inputs that no well-meaning client sends, as raw bytes, and the status that each gets.

PYTHONPATH=tests python -m serve      # from the repository's root: prints them as a table
"""

import contextlib
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from serve.running import Running, serving
from skipwise.serve.gate import Bounds
from skipwise.serve.keys import change_role, create_key, revoke_key

GOOD, WRONG, REVOKED, EXPIRED, SHORT = "GOOD-KEY", "WRONG-KEY", "REVOKED-KEY", "EXPIRED-KEY", "SHORT-KEY"
"""Stand for keys that are made when the table is run. The role of `SHORT` allows 32 tokens and the model `stand-in`."""

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
CLOSED = 0
"""Status of a connection that is closed without an answer."""


class Case(NamedTuple):
    name: str
    request: bytes
    status: int
    hint: str = ""


def http(
    body: bytes = b"", *, method: str = "POST", path: str = COMPLETIONS, key: str | None = GOOD, headers: str = ""
) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close"]
    lines += [f"Authorization: Bearer {key}"] if key is not None else []
    lines += [] if "Content-Type" in headers or method == "GET" else ["Content-Type: application/json"]
    lines += [] if "Content-Length" in headers or "Transfer-Encoding" in headers else [f"Content-Length: {len(body)}"]
    lines += [headers] if headers else []
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body


def get(path: str, **how: str | None) -> bytes:
    return http(method="GET", path=path, **how)  # type: ignore[arg-type]


def of(key: str = GOOD, **fields: object) -> bytes:
    """A request of completions, with these fields changed."""
    content = {"model": "stand-in", "prompt": "abc", "max_tokens": 2, **fields}
    return http(json.dumps(content).encode(), key=key)


def raw(text: str, prompt: str = '"abc"') -> bytes:
    """A request with these fields, spelled as they are."""
    return http(f'{{"model": "stand-in", "prompt": {prompt}, {text}}}'.encode())


def chat(content: object = "abc", *, role: str = "user", **fields: object) -> bytes:
    messages = [{"role": role, "content": content}]
    return http(json.dumps({"model": "stand-in", "messages": messages, "max_tokens": 2, **fields}).encode(), path=CHAT)


ROLES = "messages.0.role: did you mean 'user'? give 'system', 'developer', 'user' or 'assistant'"
PICTURE = [{"type": "text", "text": "?"}, {"type": "image_url"}]
CHUNKS = b"ffff\r\n" + b"x" * 65535 + b"\r\n" + b"fffff\r\n" + b"x" * 1048575
FORM = "Content-Type: application/x-www-form-urlencoded"
TOOLS = [{"type": "function", "function": {"name": "f"}}]
CHUNKED, UPGRADE = "Transfer-Encoding: chunked", "Connection: Upgrade\r\nUpgrade: websocket"

CASES = [
    Case("the ordinary request beside them", of(), 200),
    # bodies
    Case("a body longer than allowed, announced", http(headers="Content-Length: 99999999999"), 413, "are allowed"),
    Case("a body longer than allowed, in chunks", http(headers=CHUNKED) + CHUNKS, 413, "are allowed"),
    Case("a body with GET", http(b"x" * 100, method="GET", path="/v1/models"), 413),
    Case("a body to an unknown path", http(b"{}", path="/v1/embeddings"), 404, "nothing at this path"),
    Case("a body of 1 MB to an unknown path", http(b"x" * 10**6, path="/v1/embeddings"), 404, "nothing at this path"),
    Case("a body to a path that takes none", http(b"{}", path="/health"), 405, "this path takes another method"),
    Case("half a surrogate pair as a model", of(model="\ud800"), 400, "model: give text without lone surrogates"),
    Case("half a surrogate pair as a field", raw('"\\ud800": 1'), 400, "the body: give text without"),
    Case("no body", http(b""), 400),
    Case("not JSON", http(b"{{{"), 400),
    Case("JSON that is not an object", http(b"[1, 2]"), 400),
    Case("bytes that are not UTF-8", http(b'{"model": "stand-in", "prompt": "\xff\xfe\x80"}'), 400),
    Case("half a surrogate pair", raw('"seed": 1', prompt='"\\udfff"'), 400, "give one text"),
    Case("a NUL byte in a text", raw('"max_tokens": 2', prompt='"a\\u0000b"'), 200),
    Case("100,000 brackets, one in another", http(b"[" * 100_000), 400),
    Case("another type of content", http(b'{"model": "stand-in"}', headers="Content-Type: text/plain"), 400),
    Case("a form, as a web page could send it", http(b"a=b", headers=FORM), 400),
    # values
    Case("a prompt that is a number", of(prompt=7), 400, "prompt"),
    Case("a prompt that is empty", of(prompt=""), 400, "prompt"),
    Case("a prompt of several texts", of(prompt=["a", "b"]), 400, "prompt"),
    Case("token ids below zero", of(prompt=[-1]), 400, "prompt"),
    Case("token ids beyond the vocabulary", of(prompt=[256]), 400, "below 256"),
    Case("token ids that are true and false", of(prompt=[True]), 400, "prompt"),
    Case("max_tokens below zero", of(max_tokens=-5), 400, "max_tokens"),
    Case("max_tokens of zero", of(max_tokens=0), 400, "max_tokens"),
    Case("max_tokens of 10^30", of(max_tokens=10**30), 400, "max_tokens"),
    Case("max_tokens of 2^31 - 1", of(max_tokens=2**31 - 1), 400, "holds 4096 tokens"),
    Case("max_tokens with 5,000 digits", raw('"max_tokens": ' + "9" * 5000), 400),
    Case("max_tokens as a text", of(max_tokens="5"), 400, "max_tokens: give a whole number"),
    Case("max_tokens as a fraction", of(max_tokens=1.5), 400, "max_tokens"),
    Case("a temperature of NaN", raw('"temperature": NaN'), 400, "temperature"),
    Case("a temperature of Infinity", raw('"temperature": Infinity'), 400, "temperature"),
    Case("a temperature of 1e400", raw('"temperature": 1e400'), 400, "temperature"),
    Case("a temperature below zero", of(temperature=-0.1), 400, "temperature"),
    Case("top_p of zero", of(top_p=0), 400, "top_p"),
    Case("a seed of 2^64", of(seed=2**64), 400, "seed"),
    Case("five stop texts", of(stop=list("abcde")), 400, "stop"),
    Case("an empty stop text", of(stop=[""]), 400, "stop"),
    Case("two answers at once", of(n=2), 400, "n: a request gets one answer"),
    Case("a temperature next to zero", raw('"temperature": 1e-320'), 200),
    Case("two maxima", chat(max_completion_tokens=3), 400, "not both"),
    Case("an unknown field", of(cache_salt="mine"), 400, "cache_salt"),
    Case("the same field twice", raw('"max_tokens": 1, "max_tokens": 2'), 200),
    Case("more tokens than the window", of(prompt="x" * 5000), 400, "holds 4096 tokens"),
    Case("messages that are empty", chat(messages=[]), 400, "messages"),
    Case("a message of an unknown role", chat(role="users"), 400, ROLES),
    Case("a message with a picture", chat(PICTURE), 400, "messages.0.content: part 1 is of type 'image_url'"),
    Case("a message without content", chat(None), 400, "messages.0.content: it is null; give text"),
    Case("a part whose text is a number", chat([{"type": "text", "text": 7}]), 400, "messages.0.content.0.text: give"),
    Case("5,000 messages", chat(messages=[{"role": "user", "content": "x"}] * 5000), 400, "messages"),
    Case("tools", chat(tools=TOOLS), 400, "calls no tools"),
    Case("a form of answer that is not offered", chat(response_format={"type": "json_object"}), 400, "plain text"),
    Case("a model by a path", of(model="../../etc/passwd"), 404, "this key may use"),
    # keys
    Case("no key", http(b"{}", key=None), 401, "no API key"),
    Case("a wrong key", http(b"{}", key=WRONG), 401, "not known"),
    Case("a revoked key", http(b"{}", key=REVOKED), 401, "revoked"),
    Case("an expired key", http(b"{}", key=EXPIRED), 401, "expired"),
    Case("a key of 20,000 letters", http(b"{}", key="k" * 20_000), 401),
    Case("a key in the query", http(b"{}", path=COMPLETIONS + f"?api_key={GOOD}", key=None), 401),
    Case("another kind of authorization", http(b"{}", key=None, headers="Authorization: Basic YTpi"), 401),
    Case("a wrong key with a huge body: it is not read", http(key=WRONG, headers="Content-Length: 99999999999"), 401),
    Case("metrics without a key", get("/metrics", key=None), 401),
    Case("more context than the role allows", of(SHORT, max_tokens=100), 403, "may ask for 32"),
    Case("a model that the role does not allow", of(SHORT, model="stand-in:long"), 404),
    # HTTP
    Case("not HTTP", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    Case("a header line of 60,000 bytes", http(b"{}", headers="X-Long: " + "a" * 60_000), 431),
    Case("two keys", http(b"{}", headers="Authorization: Bearer other"), 400, "send each once"),
    Case("a line break in a header: it ends there", http(b"{}", headers="X-A: b\nSet-Cookie: c"), 400),
    Case("a NUL byte in a header", http(b"{}", headers="X-A: b\0c"), 400),
    Case("a line break in the path, encoded", get("/v1/%0d%0aSet-Cookie:%20a=b"), 404),
    Case("two lengths that differ", http(b"{}", headers="Content-Length: 2\r\nContent-Length: 3"), 400),
    Case("a length below zero", http(b"{}", headers="Content-Length: -2"), 400),
    Case("a length and chunks", http(b"0\r\n\r\n", headers="Content-Length: 2\r\n" + CHUNKED), 400, "send one"),
    Case("HTTP 9.9", b"GET /v1/models HTTP/9.9\r\nHost: localhost\r\nConnection: close\r\n\r\n", 401),
    Case("an unknown method", http(method="BREW", path="/v1/models"), 405),
    Case("DELETE", http(method="DELETE", path="/v1/models"), 405, "allow: GET"),
    Case("an upgrade to WebSocket", get("/v1/models", headers=UPGRADE), 200),
    # paths
    Case("a way up", get("/../../etc/passwd"), 404),
    Case("a way up, encoded", get("/%2e%2e/%2e%2e/etc/passwd"), 404),
    Case("a way around the key", http(b"{}", path="//v1/completions", key=None), 401),
    Case("a way around the key, encoded", http(b"{}", path="/%76%31/completions", key=None), 401),
    Case("a way around the key, with dots", http(b"{}", path="/health/../v1/completions", key=None), 401),
    Case("a way around the key, by a slash at the end", http(b"{}", path="/v1/completions/", key=None), 401),
    Case("a slash at the end: no key is sent on", get("/health/"), 404),
    Case("a model's path that leads up", get("/v1/models/../../metrics"), 404, "this key may use"),
    Case("a whole address as the path", http(b"{}", path="http://other.example/v1/completions", key=None), 401),
    Case("a path of 40,000 letters", get("/" + "a" * 40_000), 414),
]


@contextlib.contextmanager
def start(folder: Path) -> Iterator[tuple[Running, dict[str, str]]]:
    """A server with keys of all kinds, and the keys."""
    path = folder / "keys.json"
    change_role(path, "short", {"max_context": 32, "models": ["stand-in"]})
    good = create_key(path, "good")
    keys = {
        GOOD: good,
        WRONG: good[:-4] + ("0000" if not good.endswith("0000") else "1111"),
        REVOKED: create_key(path, "gone"),
        EXPIRED: create_key(path, "late", seconds=0),
        SHORT: create_key(path, "small", role="short"),
    }
    revoke_key(path, keys[REVOKED])
    bounds = Bounds(body_bytes=300_000, body_seconds=0.7)
    with serving(folder, keys=path, bounds=bounds, head_seconds=0.5, grace_seconds=2) as running:
        yield running, keys


def exchange(port: int, request: bytes, seconds: float = 20) -> bytes:
    """What comes back until the server closes."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as one:
        # Some are refused before all of it was sent.
        with contextlib.suppress(OSError):
            one.sendall(request)
        with contextlib.suppress(ConnectionResetError):
            while part := one.recv(65536):
                answer += part
    return answer


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else CLOSED


def filled(request: bytes, keys: dict[str, str]) -> bytes:
    """The request with real keys in it."""
    for name, key in keys.items():
        request = request.replace(name.encode(), key.encode())
    return request


def table(send: Callable[[bytes], bytes]) -> str:
    """All of it, as it went."""
    lines = ["| sent | status | told |", "|---|---|---|"]
    for case in CASES:
        answer = send(case.request)
        content = answer.partition(b"\r\n\r\n")[2].decode("utf-8", "replace")
        told = json.loads(content)["error"]["message"] if content.startswith('{"error"') else ""
        told = told or ("the answer" if status_of(answer) == 200 else content)
        short = told if len(told) <= 120 else told[:117] + "..."
        lines.append(f"| {case.name} | {status_of(answer)} | {short.replace('|', '/')} |")
    return "\n".join(lines)
