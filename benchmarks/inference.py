"""Two modes and long inference, measured: the tables of docs/results/inference.md.

    python benchmarks/inference.py bits RUN            short mode against the base model, on 1,000 prompts
    python benchmarks/inference.py low-rank RUN        error of low-rank differences of a run with full tuning, by rank
    python benchmarks/inference.py caches RUN          loss and time of kinds of cache; HQQ and quanto where installed
    python benchmarks/inference.py lengths RUN         speed and memory by length and kind, a process each
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Cache, DynamicCache, QuantizedCache

from skipwise.documents import open_documents
from skipwise.inference.caches import CACHES, make_cache
from skipwise.inference.engine import GenerationRequest
from skipwise.inference.generate import LocalEngine
from skipwise.inference.low_rank import low_rank_difference
from skipwise.inference.modes import TwoModes, tensor_bytes
from skipwise.inference.origin import read_origin
from skipwise.model import load_model

SCORED = 192


def held_out(tokenizer: Any, length: int, number: int) -> list[list[int]]:
    """The first `length` tokens of documents that training did not see."""
    raise NotImplementedError
