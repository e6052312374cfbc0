"""Fixtures of the evaluations' tests."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from .tiny import BOS, ByteTokenizer, make_llama


@pytest.fixture(scope="session")
def tokenizer() -> ByteTokenizer:
    return ByteTokenizer()


@pytest.fixture
def tiny_llama() -> LlamaForCausalLM:
    return make_llama()


@pytest.fixture(scope="session")
def documents() -> list[np.ndarray]:
    """Random bytes of several lengths; some begin with the tokenizer's own token, as in a store."""
    rng = np.random.default_rng(0)
    bodies = [rng.integers(0, 256, size, dtype=np.uint16) for size in (90, 200, 130, 128, 300, 40)]
    return [np.concatenate([[BOS], body]).astype(np.uint16) if i % 2 else body for i, body in enumerate(bodies)]


@pytest.fixture(scope="session")
def naive_nlls() -> Callable[..., np.ndarray]:
    """NLL of every token but the first, from all logits at once in float64."""

    def nlls(model: Any, ids: list[int]) -> np.ndarray:
        inputs = torch.tensor([ids[:-1]])
        with torch.no_grad():
            logits = model(input_ids=inputs, attention_mask=torch.ones_like(inputs), use_cache=False).logits
        scores = logits[0].double().log_softmax(-1)
        return np.array([-scores[i, ids[i + 1]].item() for i in range(len(ids) - 1)])

    return nlls
