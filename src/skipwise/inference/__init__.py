"""Inference: a model in two modes, long prompts within memory, and the engine that servers and the command use.

engine.py    what an engine is: requests in, steps of tokens out
modes.py     the base model and the extended one around the same weights
origin.py    where both come from
low_rank.py  the difference that full tuning made, as an adapter
prefix.py    caches of earlier requests on the same document
text.py      text of tokens as they come
generate.py  the engine of this process

This file imports nothing heavy: a server in front of another engine needs no torch.
"""

from skipwise.inference.engine import MODES, Engine, Generation, GenerationRequest, GenerationStats, Mode

__all__ = ["MODES", "Engine", "Generation", "GenerationRequest", "GenerationStats", "Mode"]
