"""Traces of one model, each made once, and curves between them."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from skipwise.config import LoraTuning, QloraTuning, Tuning
from skipwise.errors import UnsupportedModelError
from skipwise.memory import FLOAT32_BYTES, Moment, StepProfile, four_bit_bytes
from skipwise.model import four_bit_layers, without_weights
from skipwise.plan.shape import ModelShape
from skipwise.plan.trace import Step, StepProfiles, Tracer
from skipwise.train.tuning import apply_tuning

# Memory is linear in the tokens of a micro-batch from the first of these numbers on, where the loss works in slices of
# constant size. With a mask of all pairs it is quadratic beyond the last of `_MASKED_TOKENS`.
_LINEAR_TOKENS = (2048, 4096)
_MASKED_TOKENS = (4096, 8192, 16384)
_LOGITS = 2**24
# One logit of a loss that keeps all: 16-bit and float32 value, float32 softmax or gradient, 16-bit gradient.
_LIBRARY_LOGIT_BYTES = 12


class TunedParameters(NamedTuple):
    """Numbers of parameters of a tuned model.

    Attributes:
        total: all parameters, including low-rank adapters.
        trained: trained parameters.
        quantized: parameters in 4 bits.
        packed_bytes: bytes of those, two parameters in each.
        scale_bytes: bytes of their quantization scales and tables.
    """

    total: int
    trained: int
    quantized: int = 0
    packed_bytes: int = 0
    scale_bytes: int = 0


class Profiles:
    """Step profiles and parameter counts of one model.

    Args:
        shape: shape of the model.

    Attributes:
        by_formula: whether activations are computed by formula, because the model cannot be run without data.
    """

    def __init__(self, shape: ModelShape) -> None:
        self.shape = shape
        # The router of a mixture of experts reads values, and its first layers may be dense.
        self.by_formula = shape.counts.experts > 0
        self._slides = any(layer.window_tokens is not None for layer in shape.layers)
        self._tracer = Tracer(shape.config)
        self._profiles: dict[Step, StepProfiles] = {}
        self._parameters: dict[Tuning, TunedParameters] = {}
        self._prefill_work: dict[int, int] = {}

    def step(self, step: Step, *, gradients_held: bool = True) -> StepProfile:
        """Memory of a micro-batch, traced or on the curve through traces.

        Args:
            step: the micro-batch.
            gradients_held: whether an earlier micro-batch of the step has created all gradients.
        """
        n = step.window_tokens

        def at(**change: int) -> StepProfile:
            return self.run(replace(step, **change), gradients_held=gradients_held)

        if not self._slides and not step.diluted:
            if step.batch == 1 and n <= _LINEAR_TOKENS[-1]:
                return at()
            # Memory depends on the total number of tokens. But with several windows some tensors are copied that with
            # one are views.
            batch = min(2, step.batch)
            runs = [at(window_tokens=tokens // batch, batch=batch) for tokens in _LINEAR_TOKENS]
            return _between(runs, [[1, tokens] for tokens in _LINEAR_TOKENS], [1, step.batch * n])
        # Sliding layers and diluted attention have masks of all pairs.
        if n > _MASKED_TOKENS[-1]:
            longest = [self.step(replace(step, window_tokens=m), gradients_held=gradients_held) for m in _MASKED_TOKENS]
            return _between(longest, [[1, m, m**2] for m in _MASKED_TOKENS], [1, n, n**2])
        if step.batch <= 2:
            return at()
        # Each further window adds what the third adds.
        return _between([at(batch=2), at(batch=3)], [[1, 2], [1, 3]], [1, step.batch])

    def run(self, step: Step, *, gradients_held: bool = True) -> StepProfile:
        """Memory of a micro-batch, traced; by formula if the model cannot be run without data."""
        if step not in self._profiles:
            self._profiles[step] = self._trace(step)
        return self._profiles[step].further if gradients_held else self._profiles[step].first

    def _trace(self, step: Step) -> StepProfiles:
        if not self.by_formula:
            try:
                return self._tracer.step(step)
            except UnsupportedModelError:
                self.by_formula = True
        by_formula = formula_profile(self.shape, step)
        return StepProfiles(first=by_formula, further=by_formula)

    def prefill_work(self, chunk_tokens: int) -> int:
        """Bytes beside weights and cache while one chunk of a prompt is read in 16 bits, with its last logits."""
        if chunk_tokens not in self._prefill_work:
            work = formula_prefill_work(self.shape, chunk_tokens)
            if not self.by_formula:
                with suppress(UnsupportedModelError):
                    work = self._tracer.prefill(chunk_tokens, dtype=torch.bfloat16).outside
            self._prefill_work[chunk_tokens] = work
        return self._prefill_work[chunk_tokens]

    def parameters(self, tuning: Tuning) -> TunedParameters:
        """Parameter counts of the tuned model, from a model without weights."""
        if tuning not in self._parameters:
            self._parameters[tuning] = self._count(tuning)
        return self._parameters[tuning]

    def _count(self, tuning: Tuning) -> TunedParameters:
        skeleton = without_weights(self.shape.config)
        if isinstance(tuning, QloraTuning):
            # The same adapters, on quantized layers.
            same = LoraTuning(**{name: getattr(tuning, name) for name in LoraTuning.model_fields if name != "kind"})
            layers: dict[str, Any] = four_bit_layers(skeleton)
            sizes = [layer.weight.numel() for layer in layers.values()]
            packed = sum(-(-size // 2) for size in sizes)
            whole = sum(four_bit_bytes(size, double_quant=tuning.double_quant) for size in sizes)
            counts = self.parameters(same)
            return counts._replace(quantized=sum(sizes), packed_bytes=packed, scale_bytes=whole - packed)
        with torch.device("meta"):
            numbers = [(p.numel(), p.requires_grad) for p in apply_tuning(skeleton, tuning).parameters()]
        return TunedParameters(sum(n for n, _ in numbers), sum(n for n, trained in numbers if trained))


def _between(runs: Sequence[StepProfile], rows: Sequence[Sequence[int]], asked: Sequence[int]) -> StepProfile:
    """The profile at the terms `asked` on the curve through `runs`, whose terms are the rows."""
    shares = np.linalg.solve(np.array(rows, dtype=np.float64).T, np.array(asked, dtype=np.float64))

    def at(values: Sequence[int]) -> int:
        return round(float(shares @ np.array(values, dtype=np.float64)))

    moments = zip(*(run.moments for run in runs), strict=True)
    return StepProfile(
        moments=tuple(Moment(*map(at, zip(*same, strict=True))) for same in moments),
        gradients_held=runs[0].gradients_held,
        loss_bytes=at([run.loss_bytes for run in runs]),
    )


def formula_profile(shape: ModelShape, step: Step) -> StepProfile:
    """Activations by formula with flash attention, for models that cannot be run without data.

        34 s h bytes per layer in 16 bits; with checkpointing 2 s h, and one layer's peak

    Gradients are taken to exist throughout.

    Source: Korthikanti et al., arXiv 2205.05198, equation 2 without the attention matrix.
    """
    number_bytes = 2 if step.autocast else FLOAT32_BYTES
    num_tokens = step.batch * step.window_tokens
    hidden = shape.text.hidden_size * num_tokens * number_bytes // 2
    layer = 34 * hidden
    kept = 2 * hidden if step.checkpointing else layer
    logits = num_tokens * shape.text.vocab_size
    loss = _LIBRARY_LOGIT_BYTES * logits if step.library_loss else 2 * FLOAT32_BYTES * min(logits, _LOGITS)
    mask = step.batch * step.window_tokens**2 * number_bytes if step.diluted else 0
    work = layer if step.checkpointing else layer // 2
    moments = (Moment(kept, 4 * hidden + loss + mask), Moment(kept, 4 * hidden + work + mask))
    return StepProfile(moments=moments, gradients_held=True, loss_bytes=loss)


def formula_prefill_work(shape: ModelShape, chunk_tokens: int) -> int:
    """Bytes while a chunk of a prompt passes one layer in 16 bits, and the float32 logits of one token."""
    text = shape.text
    return 2 * chunk_tokens * (4 * text.hidden_size + 3 * shape.intermediate_size) + FLOAT32_BYTES * text.vocab_size
