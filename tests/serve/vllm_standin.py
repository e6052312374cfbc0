"""What `vllm serve` answers, in so far as this project asks for it: /health and streams of /v1/completions.

It is started as vLLM is, with the same arguments and environment, checks them, and writes down what it was sent.
"""

import asyncio
import json
import os
import sys
import time
from pathlib import Path

from aiohttp import web

ARGUMENTS = sys.argv[1:]


def option(name: str) -> str:
    return ARGUMENTS[ARGUMENTS.index(name) + 1]


MODE, WINDOW = option("--served-model-name"), int(option("--max-model-len"))
LOG = Path(os.environ["STANDIN_LOG"])


def note(**what: object) -> None:
    with LOG.open("a") as file:
        file.write(json.dumps({"mode": MODE, **what}) + "\n")


def trusted(request: web.Request) -> None:
    if request.headers.get("Authorization") != f"Bearer {os.environ['VLLM_API_KEY']}":
        raise web.HTTPUnauthorized


async def health(_: web.Request) -> web.Response:
    return web.Response()


async def completions(request: web.Request) -> web.StreamResponse:
    trusted(request)
    body = await request.json()
    prompt, most = body["prompt"], body["max_tokens"]
    note(salt=body["cache_salt"], prompt_tokens=len(prompt), options=body["stream_options"])
    if body["model"] != MODE or len(prompt) + most > WINDOW:
        return web.json_response({"error": {"message": f"the model's maximum is {WINDOW} tokens"}}, status=400)
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    usage = {"prompt_tokens": len(prompt), "completion_tokens": 0}

    async def send(choices: list[dict[str, object]]) -> None:
        await response.write(b"data: " + json.dumps({"choices": choices, "usage": usage}).encode() + b"\n\n")

    try:
        for place in range(most):
            if bytes(prompt).startswith(b"die"):
                os._exit(3)
            await asyncio.sleep(0.01 if bytes(prompt).startswith(b"slow") else 0)
            usage["completion_tokens"] += 1
            text = chr(prompt[-1 - place % len(prompt)])
            last = "abort" if bytes(prompt).startswith(b"abort") else "length"
            await send([{"index": 0, "text": text, "finish_reason": last if place + 1 == most else None}])
        await send([])
        await response.write(b"data: [DONE]\n\n")
    except (ConnectionResetError, asyncio.CancelledError):
        note(left_after=usage["completion_tokens"])
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
