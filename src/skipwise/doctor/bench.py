"""The model under test, and the passes that probes run.

A probe is a short window of random tokens in two chunks with a skip between them. It runs exactly as in training: with
the arguments of `skipwise.loss.training_inputs`, in training mode, and with mixed precision and gradient checkpointing
if training uses them. Every pass starts from the same random seed, so that dropout drops the same units in all passes.
"""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from skipwise.loss import training_inputs
from skipwise.model.rotary import text_config
from skipwise.rope import Interpolation, RopeTable, float32_angle_error
from skipwise.window import Window

LOCAL_LAYERS = ("sliding_attention", "chunked_attention")

_PROBE_TOKENS = 32
_SHIFT_TOKENS = 1000
_ANGLE_POSITIONS = 256


class Bench:
    """A model, random tokens for it, and methods to run it.

    Attributes:
        config: the decoder's part of the model's config.
        n: number of tokens in a probe; few enough that with local attention the last token still sees the first.
        half: number of tokens in the first chunk.
        ids: (1, n) token ids, none of them special.
        longest_skip: skip that puts the last token at the last position of the target, in tokens.
        middle_skip: skip that leaves room for `shift` below the target, in tokens.
        shift: constant to add to positions, in tokens.
        dtype: dtype that passes compute in: that of mixed precision, else the model's own.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        window: Window,
        interpolation: Interpolation,
        tokenizer: PreTrainedTokenizerBase | None,
        seed: int,
        mixed_precision: torch.dtype | None = None,
    ) -> None:
        self.model, self.window, self.interpolation, self.tokenizer = model, window, interpolation, tokenizer
        self.config: Any = text_config(model.config)
        self.n = max(2, min(_PROBE_TOKENS, window.train, window.target // 2, local_span(self.config) or _PROBE_TOKENS))
        self.half = self.n // 2
        self.longest_skip = window.target - self.n
        self.middle_skip = self.longest_skip // 2
        self.shift = max(1, min(_SHIFT_TOKENS, self.longest_skip - self.middle_skip))
        self._seed, self._mixed_precision = seed, mixed_precision
        self.dtype = mixed_precision or model.dtype
        rng = np.random.default_rng(seed)
        allowed = rng.permutation(np.setdiff1d(np.arange(self.config.vocab_size), self._special_ids()))
        self._spare, *ids = np.resize(allowed, self.n + 1).tolist()
        self.ids = torch.tensor([ids], device=model.device)
        # A random direction, because the effects on all logits could cancel in their sum.
        self._direction = torch.from_numpy(rng.standard_normal(self.config.vocab_size)).float().to(model.device)

    def _special_ids(self) -> list[int]:
        if self.tokenizer is not None:
            return self.tokenizer.all_special_ids
        ids = [getattr(self.config, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")]
        return [one for given in ids if given is not None for one in (given if isinstance(given, list) else [given])]

    def positions(self, skip: int, start: int = 0) -> Tensor:
        """Positions (1, n) that start at `start` and skip `skip` positions between the two chunks."""
        positions = torch.arange(start, start + self.n, device=self.model.device)
        positions[self.half :] += skip
        return positions[None]

    def changed(self, index: int) -> Tensor:
        """The tokens (1, n) with the one at `index` replaced by a token that does not occur in the probe."""
        ids = self.ids.clone()
        ids[0, index] = self._spare
        return ids

    def logits(
        self,
        positions: Tensor,
        ids: Tensor | None = None,
        *,
        mask: bool = True,
        diluted: bool | None = None,
        model: PreTrainedModel | None = None,
    ) -> Tensor:
        """Float32 logits (batch, n, vocabulary) of one forward pass as in training.

        Args:
            positions: (batch, n).
            ids: (1, n) token ids to use instead of the bench's own.
            mask: whether to pass training's explicit attention mask.
            diluted: use the attention mask of a batch with diluted rows, in which all rows are diluted (True) or none
                is (False). None for the mask of ones.
            model: model to run instead of the model under test.
        """
        ids = (self.ids if ids is None else ids).expand_as(positions)
        rows = None if diluted is None else torch.full((len(ids),), diluted, device=ids.device)
        inputs = training_inputs(ids, positions, rows, self.model.dtype)
        if not mask:
            del inputs["attention_mask"]
        self.seed()
        with torch.no_grad(), self.autocast():
            return (model or self.model)(**inputs).logits.float()

    def autocast(self) -> torch.autocast:
        """The autocast context of training's mixed precision; disabled if training has none."""
        on = self._mixed_precision is not None
        return torch.autocast(self.model.device.type, self._mixed_precision, enabled=on)

    def seed(self) -> None:
        """Resets the random state, which every pass starts from."""
        torch.manual_seed(self._seed)

    def effect(self, skip: int, *, mask: bool = True) -> float:
        """The largest change in chunk two's logits when the last token of chunk one is replaced."""
        positions = self.positions(skip)
        before = self.logits(positions, mask=mask)
        after = self.logits(positions, self.changed(self.half - 1), mask=mask)
        return largest((after - before)[:, self.half :])

    def sensitivity(self, skip: int, index: int) -> Tensor:
        """How strongly the logits at `index` depend on each token: (n,) norms of the gradient at its embedding.

        The backward pass is that of training, so gradient checkpointing is tested as well.
        """
        self.seed()
        with self.embeddings_as_leaves() as leaves, torch.enable_grad():
            with self.autocast():
                outputs = self.model(**training_inputs(self.ids, self.positions(skip)))
            logits = outputs.logits[0, index].float()
            if not logits.requires_grad:
                return torch.zeros(self.n)
            (gradient,) = torch.autograd.grad(logits @ self._direction, leaves[:1], allow_unused=True)
        return torch.zeros(self.n) if gradient is None else gradient[0].float().norm(dim=-1).cpu()

    @contextmanager
    def embeddings_as_leaves(self) -> Iterator[list[Tensor]]:
        """Inside the context, each pass detaches its embeddings as leaf tensors and appends them to the list."""
        leaves: list[Tensor] = []

        def take_leaf(_module: nn.Module, _inputs: Any, embeddings: Tensor) -> Tensor:
            leaves.append(embeddings.detach().requires_grad_())
            return leaves[-1]

        hook = self.model.get_input_embeddings().register_forward_hook(take_leaf)
        try:
            yield leaves
        finally:
            hook.remove()

    @cached_property
    def noise(self) -> float:
        """Twice the largest change in the logits between two identical passes; zero on a CPU."""
        positions = self.positions(self.middle_skip)
        return 2 * largest(self.logits(positions) - self.logits(positions))

    def rounding(self, logits: Tensor, dtype: torch.dtype | None = None) -> float:
        """The largest change in such logits that rounding may cause, in a dtype (by default that of passes)."""
        return 8 * torch.finfo(dtype or self.dtype).eps * max(1.0, largest(logits)) + self.noise


def local_span(config: Any) -> int | None:
    """Number of tokens that layers of local attention see, or None if there are no such layers."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and not set(kinds) & set(LOCAL_LAYERS):
        return None
    return getattr(config, "sliding_window", None) or getattr(config, "attention_chunk_size", None)


def largest(difference: Tensor) -> float:
    """The largest absolute value."""
    return difference.abs().max().item()


def rms(difference: Tensor) -> float:
    """Root mean square. A single token that rounding routes to another expert does not dominate it."""
    return difference.square().mean().sqrt().item()


def angle_error(tables: Iterable[RopeTable], last: int) -> float:
    """The largest float32 angle error at the last positions up to `last`, in radians.

    Several positions are used, because the error at a single one may be small by chance.
    """
    first = max(0, last - _ANGLE_POSITIONS + 1)
    return max(float32_angle_error(table, position) for table in tables for position in range(first, last + 1))


@contextmanager
def undisturbed(model: PreTrainedModel, *, gradient_checkpointing: bool) -> Iterator[None]:
    """Puts a model into training mode, without gradients for its parameters, and restores its state afterwards.

    It restores modes, gradient checkpointing, buffers (including rotary tables that depend on the length),
    `requires_grad`, and the state of the random number generators.
    """
    modules = list(model.modules())
    attributes = [dict(vars(module)) for module in modules]
    buffers = [
        (module, name, buffer.clone()) for module in modules for name, buffer in module.named_buffers(recurse=False)
    ]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    checkpointing_before = any(getattr(module, "gradient_checkpointing", False) for module in modules)
    device = model.device
    with torch.random.fork_rng(
        devices=[] if device.type == "cpu" else [device], device_type="cuda" if device.type == "cpu" else device.type
    ):
        try:
            model.train().requires_grad_(False)
            if gradient_checkpointing and not checkpointing_before:
                with warnings.catch_warnings(
                    action="ignore", category=FutureWarning
                ):  # The method is deprecated, but not every 5.x version has its replacement.
                    model.gradient_checkpointing_enable({"use_reentrant": False})
            yield
        finally:
            if hasattr(model, "_require_grads_hook") and "_require_grads_hook" not in attributes[0]:
                model.disable_input_require_grads()  # Enabling checkpointing has put a hook on the embeddings.
            for module, saved in zip(modules, attributes, strict=True):
                vars(module).clear()
                vars(module).update(saved)
            for module, name, value in buffers:
                setattr(module, name, value)
            for parameter in trained:
                parameter.requires_grad_(True)
