"""Recipes: settings of a run that belong together, under whatever the run itself says.

A recipe says how positions, text and windows are chosen; steps, learning rate and batch remain the run's own. Which is
best was measured on a small model (docs/results/recipes-x16.md). A new recipe is one entry here.
"""

from collections.abc import Mapping
from typing import Any

_DILUTED: Mapping[str, Any] = {
    "sampler": {"kind": "pose", "skips": "flat", "text": "aligned", "start": "mixed"},
    "dilution": True,
    "data": {"retrieval": 0.25},
}

RECIPES: Mapping[str, Mapping[str, Any]] = {
    # Positional skip-wise training as its paper has it (arXiv 2309.10400): nothing but the defaults.
    "paper": {},
    # Text as far apart as its positions, a quarter of it from the beginnings of documents; each key counted for those
    # that the skip leaves out (diluted attention); a quarter of retrieval exercises; and windows that grow to a few
    # times the training window: a query learns to find its way among ever more keys.
    "growing": {
        **_DILUTED,
        "growth": [{"window": "4x", "share": 0.7}, {"window": "8x", "share": 0.3}],
        "keep_tokens": True,
    },
    # The same without wider windows, so that a step's memory is that of the training window whatever the target.
    "diluted": _DILUTED,
}

AUTO = "auto"
"""The recipe that measured best, `growing`. It is `diluted` where there is no memory for its widest windows, or too few
documents are as long; and `paper` where attention takes no mask of numbers, or the run says how positions are drawn.
Of several processes it is `diluted`."""
