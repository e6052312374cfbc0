"""Recipes: settings of a run that belong together, under whatever the run itself says.

A recipe says how positions, text and windows are chosen; steps, learning rate and batch remain the run's own. Which is
best was measured on a small model (docs/results/recipes-x16.md). A new recipe is one entry here.
"""

from collections.abc import Mapping
from typing import Any

RECIPES: Mapping[str, Mapping[str, Any]] = {
    # Positional skip-wise training as its paper has it (arXiv 2309.10400): nothing but the defaults.
    "paper": {},
    # Text as far apart as its positions, each key counted for those that the skip leaves out (diluted attention), and
    # windows that grow to a few times the training window: a query learns to find its way among ever more keys.
    "growing": {
        "sampler": {"kind": "pose", "skips": "flat", "text": "aligned", "start": "mixed"},
        "dilution": True,
        "growth": [{"window": "4x", "share": 0.7}, {"window": "8x", "share": 0.3}],
        "data": {"retrieval": 0.12},
    },
    # The same without wider windows and exercises, so that a step's memory is that of the training window whatever the
    # target, and the text is the user's alone.
    "diluted": {
        "sampler": {"kind": "pose", "skips": "flat", "text": "aligned", "start": "mixed"},
        "dilution": True,
    },
}

AUTO = "auto"
"""The recipe that measured best, `growing`. It is `diluted` where there is no memory for its widest windows, or too few
documents are as long; and `paper` where attention takes no mask of numbers, or the run says how positions are drawn."""
