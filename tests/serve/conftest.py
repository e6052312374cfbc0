"""Tests of the server, where its extra is installed."""

from importlib.util import find_spec

if all(map(find_spec, ("fastapi", "uvicorn", "prometheus_client", "aiohttp"))):
    from serve.running import serve as serve
else:
    collect_ignore_glob = ["test_*.py"]
