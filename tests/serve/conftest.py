"""Tests of the server, where its extra and OpenAI's client are installed."""

from importlib.util import find_spec

if all(map(find_spec, ("fastapi", "uvicorn", "prometheus_client", "aiohttp", "openai"))):
    from serve.running import client as client
    from serve.running import keys as keys
    from serve.running import serve as serve
else:
    collect_ignore_glob = ["test_*.py"]
