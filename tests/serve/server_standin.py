"""What `vllm serve` and `llama-server` answer, as far as this project asks: /health and streams of /v1/completions.

It is started as one of them is, with the same arguments and environment, checks them, and writes down what it was sent.
"""

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from weakref import WeakSet

from aiohttp import web

ARGUMENTS = sys.argv[1:]
IS_VLLM = ARGUMENTS[0] == "serve"


def option(name: str) -> str:
    return ARGUMENTS[ARGUMENTS.index(name) + 1]


if IS_VLLM:
    MODE, WINDOW, TOKEN = option("--served-model-name"), int(option("--max-model-len")), os.environ["VLLM_API_KEY"]
else:
    MODE, TOKEN = option("--alias"), os.environ["LLAMA_API_KEY"]
    WINDOW = int(option("--ctx-size")) // int(option("--parallel"))
USED: WeakSet[asyncio.Transport] = WeakSet()
LOG = Path(os.environ["STANDIN_LOG"])


def note(**what: object) -> None:
    with LOG.open("a") as file:
        file.write(json.dumps({"mode": MODE, **what}) + "\n")


def trusted(request: web.Request) -> None:
    if request.headers.get("Authorization") != f"Bearer {TOKEN}":
        raise web.HTTPUnauthorized


async def health(_: web.Request) -> web.Response:
    return web.Response()


def checked(body: dict[str, object]) -> None:
    """Fields without which the engine would not do as this project says."""
    if IS_VLLM:
        assert body["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    else:
        assert (body["timings_per_token"], body["cache_prompt"]) == (True, False)


async def completions(request: web.Request) -> web.StreamResponse:
    trusted(request)
    assert request.transport is not None
    if request.transport in USED:
        # Both programs close a connection that was idle for some seconds, perhaps as the next request is sent.
        request.transport.abort()
    USED.add(request.transport)
    body = await request.json()
    checked(body)
    prompt, most = body["prompt"], body["max_tokens"]
    note(salt=body.get("cache_salt"), prompt_tokens=len(prompt))
    if body["model"] != MODE or len(prompt) + most > WINDOW:
        return web.json_response({"error": {"message": f"the model's maximum is {WINDOW} tokens"}}, status=400)
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    written = 0

    async def send(choices: list[dict[str, object]]) -> None:
        counted = {"usage": {"completion_tokens": written}} if IS_VLLM else {"timings": {"predicted_n": written}}
        await response.write(b"data: " + json.dumps({"choices": choices, **counted}).encode() + b"\n\n")

    try:
        for place in range(most):
            if bytes(prompt).startswith(b"die"):
                os._exit(3)
            await asyncio.sleep(0.01 if bytes(prompt).startswith(b"slow") else 0)
            written += 1
            text = chr(prompt[-1 - place % len(prompt)])
            last = "abort" if bytes(prompt).startswith(b"abort") else "length"
            await send([{"index": 0, "text": text, "finish_reason": last if place + 1 == most else None}])
        if IS_VLLM:
            await send([])
        await response.write(b"data: [DONE]\n\n")
    except (ConnectionResetError, asyncio.CancelledError):
        note(left_after=written)
        raise
    return response


if __name__ == "__main__":
    note(arguments=ARGUMENTS, quiet=os.environ.get("VLLM_NO_USAGE_STATS"))
    if "--fail" in ARGUMENTS:
        sys.exit(7)
    time.sleep(float(os.environ.get("STANDIN_SLOW", "0")))
    app = web.Application(client_max_size=1 << 26)
    app.add_routes([web.get("/health", health)])
    app.add_routes([web.post("/v1/completions", completions)])
    web.run_app(app, host=option("--host"), port=int(option("--port")), print=None, handler_cancellation=True)
