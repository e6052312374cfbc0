"""A loaded model as a model of lm-evaluation-harness; importing this needs the extra `bench`.

The only file that overrides methods of the harness's adapter, one of them private.
"""

import copy
from collections.abc import Callable
from typing import Any

from accelerate.utils import gather_object
from lm_eval.models.huggingface import HFLM

from skipwise.distributed import process_state
from skipwise.errors import DataError
from skipwise.model import longest_input

# The harness's decorator hides the class's own type.
_Adapter: Any = HFLM


class LoadedLM(_Adapter):
    """The harness's adapter to transformers models, except that it refuses prompts longer than the model's window.

    The harness itself would cut off their beginning and score the rest.

    Args:
        model: a causal language model of the transformers library, on its device.
        tokenizer: its tokenizer; the harness adds a padding token to a copy.
        batch_size: number of inputs run together.
        progress: whether to show a bar of requests.
    """

    def __init__(self, model: Any, tokenizer: Any, *, batch_size: int, progress: bool) -> None:
        super().__init__(
            pretrained=model,
            backend="causal",
            tokenizer=copy.deepcopy(tokenizer),
            max_length=longest_input(model.config),
            batch_size=batch_size,
        )
        self._progress = progress and process_state().is_main_process
        self.longest_tokens = 0

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
        """Log-likelihoods of continuations."""
        return self._shared_out(super().loglikelihood, requests, disable_tqdm)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
        """Greedy continuations."""
        return self._shared_out(super().generate_until, requests, disable_tqdm)

    def _shared_out(self, compute: Callable[..., list[Any]], requests: list[Any], disable_tqdm: bool) -> list[Any]:
        """Answers to all requests, on every rank; each is computed by one.

        The harness can share questions by itself, but its shots would then depend on the number of ranks.
        """
        state = process_state()
        # Choices of one question stay together, as they may share a pass.
        mine = [
            index
            for index, request in enumerate(requests)
            if request.doc_id % state.num_processes == state.process_index
        ]
        shown = self._progress and not disable_tqdm
        computed = compute([requests[index] for index in mine], disable_tqdm=not shown) if mine else []
        answers = list(zip(mine, computed, strict=True))
        if state.num_processes > 1:
            answers = gather_object(answers)
            self.longest_tokens = max(gather_object([self.longest_tokens]))
        by_index = dict(answers)
        return [by_index[index] for index in range(len(requests))]

    def _loglikelihood_tokens(self, requests: list[Any], *args: Any, **kwargs: Any) -> list[Any]:
        longest = max(len(context) + len(continuation) for _, context, continuation in requests)
        # The last token is scored and not read.
        self._check_fits(longest, self.max_length + 1)
        return super()._loglikelihood_tokens(requests, *args, **kwargs)

    def tok_batch_encode(
        self, strings: list[str], padding_side: str = "left", left_truncate_len: int | None = None, **kwargs: Any
    ) -> Any:
        """Token ids and attention mask of prompts for generation."""
        encoded = super().tok_batch_encode(strings, padding_side=padding_side, **kwargs)
        self._check_fits(encoded[0].shape[1], left_truncate_len or self.max_length)
        return encoded

    def _check_fits(self, num_tokens: int, limit: int) -> None:
        if num_tokens > limit:
            raise DataError(
                f"a prompt of this benchmark has {num_tokens} tokens and the model's window leaves room for {limit}, "
                "so its beginning would be cut off; leave this benchmark out for this model, or give a definition with "
                "fewer shots",
                page="length-does-not-fit",
            )
        self.longest_tokens = max(self.longest_tokens, num_tokens)
