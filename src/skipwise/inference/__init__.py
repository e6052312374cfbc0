"""Inference: a model in two modes, long prompts within memory, and the engine that servers and the command use.

    engine.py    the Protocol of engines, and what goes in and comes out
    modes.py     the base model and the extended one around the same weights
    origin.py    where both come from
    low_rank.py  the difference that full tuning made, as an adapter
    caches.py    kinds of KV cache
    prefix.py    caches of earlier requests on the same document
    text.py      text of tokens as they come
    generate.py  the engine of this process
"""

from skipwise.inference.caches import CACHES
from skipwise.inference.engine import MODES, Engine, Generation, GenerationRequest, GenerationStats, Mode
from skipwise.inference.generate import LocalEngine
from skipwise.inference.low_rank import low_rank_difference
from skipwise.inference.modes import TwoModes

__all__ = [
    "CACHES",
    "MODES",
    "Engine",
    "Generation",
    "GenerationRequest",
    "GenerationStats",
    "LocalEngine",
    "Mode",
    "TwoModes",
    "low_rank_difference",
]
