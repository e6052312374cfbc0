"""Prints what each hostile input gets: PYTHONPATH=tests python -m serve"""

import tempfile
from pathlib import Path

from serve.hostile import exchange, filled, start, table

with tempfile.TemporaryDirectory() as place, start(Path(place)) as (running, keys):
    print(table(lambda request: exchange(running.port, filled(request, keys))))
