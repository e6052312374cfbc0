"""A model that writes what a function says, for tests of tasks that generate."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from transformers import GenerationConfig, LlamaConfig

from .conftest import ByteTokenizer

END = 0


class Oracle(torch.nn.Module):
    """Continues a text with what `continuation` returns for it; then, or where that is empty, with the end token 0.

    It reads through the KV cache and the mask, as real models do, and counts what it reads.

    Args:
        continuation: takes all that was read of a row, prompt and own output, as text.
        window: its `max_position_embeddings`.
    """

    def __init__(self, continuation: Callable[[str], str], window: int = 65536) -> None:
        super().__init__()
        self.config = LlamaConfig(vocab_size=257, num_hidden_layers=1, max_position_embeddings=window)
        self.generation_config = GenerationConfig(eos_token_id=END)
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.tokens_read = 0
        self._continuation = continuation

    def forward(
        self,
        input_ids: Any,
        position_ids: Any,
        past_key_values: Any,
        use_cache: bool,
        logits_to_keep: Any,
        attention_mask: Any = None,
    ) -> Any:
        rows, count = input_ids.shape
        self.tokens_read += rows * count
        ids, _ = past_key_values.update(input_ids[:, None, :, None].float(), input_ids[:, None, :, None].float(), 0)
        if attention_mask is None:
            attention_mask = torch.ones(rows, ids.shape[2])
        asked = range(count)[-logits_to_keep:] if isinstance(logits_to_keep, int) else []
        logits = torch.zeros(rows, len(asked), 257)
        for row in range(rows):
            read = [int(token) for token, real in zip(ids[row, 0, :, 0], attention_mask[row], strict=True) if real]
            for place, column in enumerate(asked):
                text = ByteTokenizer().decode(read[: len(read) - (count - 1 - column)])
                following = self._continuation(text)
                logits[row, place, following.encode()[0] if following else END] = 1.0
        return SimpleNamespace(logits=logits)
