"""Prints what each hostile input gets: PYTHONPATH=tests python -m serve"""

import tempfile
from pathlib import Path

from serve.hostile import exchange, filled, table
from serve.test_hostile import start

with tempfile.TemporaryDirectory() as place:
    port, keys, running = start(Path(place))
    print(table(lambda request: exchange(port, filled(request, keys))))
    running.end()
