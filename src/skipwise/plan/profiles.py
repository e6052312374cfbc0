"""What is found out about one model by running it without numbers, each thing once."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from skipwise.config import FullTuning, QloraTuning, Tuning
from skipwise.errors import UnsupportedModelError
from skipwise.memory import FLOAT32_BYTES, Moment, StepProfile, four_bit_bytes
from skipwise.model import four_bit_layers, without_weights
from skipwise.plan.shape import ModelShape
from skipwise.plan.trace import StepProfiles, Tracer
from skipwise.train.tuning import apply_tuning

# Beside short windows themselves, so many tokens are run, and what more hold is on the line through these: the loss
# goes in slices of one size from here on. With a mask of all pairs windows are run as they are, and those beyond the
# last of these are on the parabola through them.
_RUN_TOKENS = (2048, 4096)
_MASKED_TOKENS = (4096, 8192, 16384)
_LOGITS = 2**24
# Of one logit: in 16 bits, in float32, its softmax or gradient in float32, and the gradient in 16 bits.
_WHOLE_LOGITS_BYTES = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One micro-batch, as far as its memory goes.

    Attributes:
        window_tokens: of a training example.
        batch: examples at a time.
        tuning: what is trained.
        checkpointing: layers are computed again in the backward pass.
        gradients_held: an earlier micro-batch of the step has left all gradients.
        bits: that training computes in, 16 by autocast, or 32.
        in_half: parameters are in 16 bits where they are computed with, as an engine that splits them has them:
            autocast makes no copies of them.
        diluted: attention is diluted.
        library_loss: the loss makes all logits at once, as the model class's own does; skipwise's never does.
    """

    window_tokens: int
    batch: int
    tuning: Tuning
    checkpointing: bool = True
    gradients_held: bool = True
    bits: int = 16
    in_half: bool = False
    diluted: bool = False
    library_loss: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters."""
        in_float32 = self.bits == 32 or (self.tuning.kind == "full" and not self.in_half)
        return torch.float32 if in_float32 else torch.bfloat16


class FourBitWeights(NamedTuple):
    """The weights of a model that are in 4 bits.

    Attributes:
        numbers: how many.
        packed_bytes: of them, two in a byte.
        scale_bytes: of all else that they are made of again.
    """

    numbers: int
    packed_bytes: int
    scale_bytes: int

    @property
    def bytes(self) -> int:
        """All of it."""
        return self.packed_bytes + self.scale_bytes


class Profiles:
    """Step profiles and counts of trained parameters of one model.

    Args:
        shape: of the model.

    Attributes:
        by_formula: whether activations are by formula, as the model could not be run without numbers.
    """

    def __init__(self, shape: ModelShape) -> None:
        self.shape = shape
        # The router of a mixture of experts looks at numbers, and its first layers may have none.
        self.by_formula = shape.has_experts
        # Layers of a limited reach have a mask of all pairs, which grows with the square of the window.
        self._slides = any(layer.window_tokens is not None for layer in shape.layers)
        self._tracer = Tracer(shape.config)
        self._profiles: dict[object, StepProfiles] = {}
        self._trained: dict[str, tuple[int, int]] = {}
        self._prefill_work: dict[int, int] = {}
        self._four_bit_sizes: list[int] | None = None

    def step(self, step: Step) -> StepProfile:
        """What a micro-batch holds."""
        if self._slides or step.diluted:
            return self._masked_step(step)
        if step.batch == 1 and step.window_tokens <= _RUN_TOKENS[-1]:
            return self._run(step)
        # Memory cares for tokens in all alone, but of several windows some are copied that of one are looked at as they
        # are.
        batch = min(2, step.batch)
        runs = [self._run(replace(step, window_tokens=tokens // batch, batch=batch)) for tokens in _RUN_TOKENS]
        return _between(runs, [[1, tokens] for tokens in _RUN_TOKENS], [1, step.batch * step.window_tokens])

    def _masked_step(self, step: Step) -> StepProfile:
        """With a mask of all pairs, which grows with the square of the window."""
        n = step.window_tokens
        if n > _MASKED_TOKENS[-1]:
            runs = [self.step(replace(step, window_tokens=tokens)) for tokens in _MASKED_TOKENS]
            return _between(runs, [[1, tokens, tokens**2] for tokens in _MASKED_TOKENS], [1, n, n**2])
        if step.batch <= 2:
            return self._run(step)
        # Of several windows each further one adds what the third does.
        runs = [self._run(replace(step, batch=batch)) for batch in (2, 3)]
        return _between(runs, [[1, 2], [1, 3]], [1, step.batch])

    def prefill_work(self, chunk_tokens: int) -> int:
        """Bytes that one chunk of a prompt holds beside weights and cache while it is read, in 16 bits.

        Its last token's logits are among them.
        """
        if chunk_tokens not in self._prefill_work:
            self._prefill_work[chunk_tokens] = self._run_prefill(chunk_tokens)
        return self._prefill_work[chunk_tokens]

    def trained(self, tuning: Tuning) -> tuple[int, int]:
        """Numbers that are trained, and all numbers, as the real tuning makes them on a model without weights."""
        key = tuning.model_dump_json()
        if key not in self._trained:
            skeleton = without_weights(self.shape.config)
            with torch.device("meta"):
                tuned = apply_tuning(skeleton, tuning)
            sizes = [(parameter.numel(), parameter.requires_grad) for parameter in tuned.parameters()]
            self._trained[key] = sum(n for n, asked in sizes if asked), sum(n for n, _ in sizes)
        return self._trained[key]

    def in_four_bits(self, tuning: Tuning) -> FourBitWeights:
        """What of the model is in 4 bits under a tuning: the linear layers that bitsandbytes quantizes, or none."""
        if not isinstance(tuning, QloraTuning):
            return FourBitWeights(numbers=0, packed_bytes=0, scale_bytes=0)
        if self._four_bit_sizes is None:
            layers: dict[str, Any] = four_bit_layers(without_weights(self.shape.config))
            self._four_bit_sizes = [layer.weight.numel() for layer in layers.values()]
        packed = sum(-(-size // 2) for size in self._four_bit_sizes)
        whole = sum(four_bit_bytes(size, double_quant=tuning.double_quant) for size in self._four_bit_sizes)
        return FourBitWeights(numbers=sum(self._four_bit_sizes), packed_bytes=packed, scale_bytes=whole - packed)

    def _run(self, step: Step) -> StepProfile:
        # In equal terms: settings that come to the same are run once.
        equal = replace(step, tuning=FullTuning(), in_half=False, gradients_held=True)
        key = (equal, step.tuning.model_dump_json(), step.dtype)
        if key not in self._profiles:
            self._profiles[key] = self._run_anew(step)
        return self._profiles[key].further if step.gradients_held else self._profiles[key].first

    def _run_anew(self, step: Step) -> StepProfiles:
        if not self.by_formula:
            try:
                return self._tracer.step(
                    window_tokens=step.window_tokens,
                    batch=step.batch,
                    tuning=step.tuning,
                    checkpointing=step.checkpointing,
                    dtype=step.dtype,
                    autocast=torch.bfloat16 if step.bits == 16 else None,
                    diluted=step.diluted,
                    library_loss=step.library_loss,
                )
            except UnsupportedModelError:
                self.by_formula = True
        by_formula = formula_profile(self.shape, step)
        return StepProfiles(first=by_formula, further=by_formula)

    def _run_prefill(self, chunk_tokens: int) -> int:
        if not self.by_formula:
            try:
                profile = self._tracer.prefill(length_tokens=chunk_tokens, dtype=torch.bfloat16)
                return profile.outside_layers
            except UnsupportedModelError:
                pass
        return formula_prefill_work(self.shape, chunk_tokens)


def _between(runs: Sequence[StepProfile], rows: Sequence[Sequence[int]], asked: Sequence[int]) -> StepProfile:
    """The profile at the terms `asked` of the curve through `runs`, whose terms are the rows."""
    shares = np.linalg.solve(np.array(rows, dtype=np.float64).T, np.array(asked, dtype=np.float64))

    def at(values: Sequence[int]) -> int:
        return round(float(shares @ np.array(values, dtype=np.float64)))

    moments = tuple(
        Moment(*map(at, zip(*same, strict=True))) for same in zip(*(run.moments for run in runs), strict=True)
    )
    return StepProfile(
        moments=moments,
        gradients_held=runs[0].gradients_held,
        loss_bytes=at([run.loss_bytes for run in runs]),
    )


def formula_profile(shape: ModelShape, step: Step) -> StepProfile:
    """Activations by the formula for flash attention, for models that cannot be run without numbers.

        34 s h bytes a layer in 16 bits, 2 s h where layers are computed again, and one layer's peak

    Gradients are taken to be there throughout.

    Source: Korthikanti et al., arXiv 2205.05198, equation 2 without the attention matrix.
    """
    num_tokens = step.batch * step.window_tokens
    hidden = shape.text.hidden_size * num_tokens * (step.bits // 8) // 2
    layer = 34 * hidden
    kept = 2 * hidden if step.checkpointing else layer
    each, most = (_WHOLE_LOGITS_BYTES, None) if step.library_loss else (2 * FLOAT32_BYTES, _LOGITS)
    logits = num_tokens * shape.text.vocab_size
    logits = each * (logits if most is None else min(logits, most))
    mask = step.batch * step.window_tokens**2 * step.bits // 8 if step.diluted else 0
    work = layer if step.checkpointing else layer // 2
    moments = (Moment(kept, 4 * hidden + logits + mask), Moment(kept, 4 * hidden + work + mask))
    return StepProfile(moments=moments, gradients_held=True, loss_bytes=logits)


def formula_prefill_work(shape: ModelShape, chunk_tokens: int) -> int:
    """What a chunk of a prompt holds in 16 bits while it passes a layer, and the logits of a token in 32."""
    text = shape.text
    inside = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    return 2 * chunk_tokens * (4 * text.hidden_size + 3 * inside) + FLOAT32_BYTES * text.vocab_size
