"""What the runtime and inference use of transformers and torch without a public name.

`tests/inference/test_contracts.py` asks the libraries whether each is there and does what is assumed here.
"""

from typing import Any

import torch

flash_attention_for_cpu: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
"""The kernel of `scaled_dot_product_attention` on a CPU. It also returns the scores' log-sum-exp; None if absent."""


def calls_attention_by_name(model: Any) -> bool:
    """Whether the model's layers look their attention function up by the config's name at each pass."""
    return getattr(model, "_supports_attention_backend", False)
