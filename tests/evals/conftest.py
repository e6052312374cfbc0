"""Small models, a tokenizer of bytes, and documents for the evaluations' tests."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from skipwise.evals.tasks.passkey_prompt import QUESTION

BOS = 256


class ByteTokenizer:
    """One token a byte; puts 256 before a text, as Llama's does with its own."""

    def __init__(self, *, adds_bos: bool = True) -> None:
        self.bos_token_id = BOS
        self._adds_bos = adds_bos

    def get_vocab(self) -> dict[str, int]:
        return {chr(token): token for token in range(257)}

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return [BOS] * (self._adds_bos and add_special_tokens) + list(text.encode())

    def decode(self, ids: list[int]) -> str:
        return bytes(token for token in ids if token < 256).decode("latin1")


class KeyReader(torch.nn.Module):
    """Answers passkey questions by looking the key up; `wrong_digit` spoils that digit of every answer."""

    def __init__(self, wrong_digit: int | None = None) -> None:
        super().__init__()
        self.config = LlamaConfig(vocab_size=257, num_hidden_layers=1, max_position_embeddings=4096)
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self._wrong_digit = wrong_digit
        self._seen = torch.empty(0, 0, dtype=torch.long)

    def forward(
        self, input_ids: Any, position_ids: Any, past_key_values: Any, use_cache: bool, logits_to_keep: Any
    ) -> Any:
        self._seen = input_ids if position_ids[0, 0] == 0 else torch.cat([self._seen, input_ids], dim=1)
        chunk = input_ids.shape[1]
        rows = range(chunk) if isinstance(logits_to_keep, int) else []
        logits = torch.zeros(len(input_ids), len(rows), 257)
        for sample, ids in enumerate(self._seen.tolist()):
            text = ByteTokenizer().decode(ids)
            for row in rows:
                read = text[: len(text) - chunk + row + 1]
                if QUESTION in read:
                    key = read.split("The pass key is ")[1][:5]
                    done = len(read.split(QUESTION)[1])
                    logits[sample, row, ord(f" {key}."[done])] = 1.0
                    if done - 1 == self._wrong_digit:
                        logits[sample, row, ord("x")] = 2.0
        return SimpleNamespace(logits=logits)


@pytest.fixture(scope="session")
def tokenizer() -> ByteTokenizer:
    return ByteTokenizer()


@pytest.fixture
def tiny_llama() -> LlamaForCausalLM:
    return make_llama()


def make_llama(**changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    settings = {
        "vocab_size": 257,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.3,
    }
    return LlamaForCausalLM(LlamaConfig(**(settings | changes))).eval()


def with_adapters(model: Any) -> Any:
    """The model, wrapped by PEFT, with low-rank additions that change its logits."""
    torch.manual_seed(1)
    wrapped: Any = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "up_proj"]))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    return wrapped.eval()


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
