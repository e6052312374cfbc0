"""axolotl's rule of positions beside PoSE as published and the default recipe, trained on equal tokens.

A comparison of the embedded model at sixteen times its window: `benchmarks/comparisons/axolotl-x16.yaml`. One that is
there already is read, one that was interrupted goes on. axolotl itself is not run: `benchmarks/axolotl_positions.py`
draws as it does, so that nothing but the positions differs.
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.peers.installing import ROOT
from benchmarks.peers.plan import Plan
from benchmarks.peers.rows import OURS, Row, Skipped

COMPARISON = ROOT / "benchmarks" / "comparisons" / "axolotl-x16.yaml"
SHOWN = {"default": OURS}


def measure(plan: Plan) -> Iterator[Row | Skipped]:
    """Perplexity and passkeys by length."""
    from skipwise.compare import Comparison
    from skipwise.report.reading import read_records

    folder = ROOT / Comparison.from_yaml(COMPARISON).output
    resume = ["--resume"] if (folder / "comparison.yaml").is_file() else []
    command = [sys.executable, "-m", "skipwise", "compare", str(COMPARISON), *resume]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        yield Skipped(part="positions", side=OURS, reason=done.stderr.strip().splitlines()[-1])
        return
    for one in read_records(Path(folder) / "records.jsonl"):
        if one.metric in ("perplexity", "accuracy") and one.is_whole and one.task != "regression":
            name = str(one.details["compared"])
            yield Row(
                part="positions",
                case=f"{one.task}, {one.length_tokens} tokens",
                metric=one.metric,
                side=SHOWN.get(name, name),
                values=[one.value],
            )
