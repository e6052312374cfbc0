"""What is found out about one model by running it without numbers, each thing once."""

import torch

from skipwise.config import FullTuning, LoraTuning
from skipwise.errors import UnsupportedModelError
from skipwise.memory import FLOAT32_BYTES, Moment, StepProfile
from skipwise.model import without_weights
from skipwise.plan.shape import ModelShape
from skipwise.plan.trace import trace_prefill, trace_step
from skipwise.train.tuning import apply_tuning

# Beside a window itself, these numbers of tokens are run, and what lies between or beyond is on lines through them:
# layers hold as much of every token, and the loss goes in slices of one size from some thousand tokens on.
_RUN_TOKENS = (1024, 2048, 4096)
_LOGITS = 2**24


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
        self._masked = any(layer.window_tokens is not None for layer in shape.layers)
        self._profiles: dict[tuple[object, ...], StepProfile] = {}
        self._trained: dict[str, tuple[int, int]] = {}
        self._prefill_work: dict[int, int] = {}

    def step(
        self,
        window_tokens: int,
        batch: int,
        tuning: FullTuning | LoraTuning,
        *,
        checkpointing: bool,
        gradients_held: bool,
        bits: int,
        in_half: bool = False,
    ) -> StepProfile:
        """What a micro-batch holds.

        Args:
            window_tokens: of a training example.
            batch: examples at a time; without a mask of all pairs, memory cares for tokens in all alone.
            tuning: what is trained.
            checkpointing: layers are computed again in the backward pass.
            gradients_held: an earlier micro-batch of the step has left all gradients.
            bits: that training computes in, 16 by autocast, or 32.
            in_half: parameters are in 16 bits where they are computed with, as an engine that splits them has them:
                autocast makes no copies of them.
        """
        dtype = torch.float32 if bits == 32 or (tuning.kind == "full" and not in_half) else torch.bfloat16

        def run(window_tokens: int, batch: int = 1) -> StepProfile:
            key = (window_tokens, batch, tuning.model_dump_json(), checkpointing, gradients_held, bits, dtype)
            if key not in self._profiles:
                self._profiles[key] = self._run(
                    window_tokens, batch, tuning, checkpointing, gradients_held, bits, dtype
                )
            return self._profiles[key]

        num_tokens = window_tokens * batch
        if self._masked:
            return run(window_tokens, batch)
        if num_tokens in _RUN_TOKENS or (batch == 1 and num_tokens <= _RUN_TOKENS[-1]):
            return run(num_tokens)
        above = next((i for i, n in enumerate(_RUN_TOKENS) if n >= num_tokens), len(_RUN_TOKENS) - 1)
        # Below the least of them the window itself is the other end.
        ends = (_RUN_TOKENS[above - 1] if above else window_tokens, _RUN_TOKENS[above])
        low, high = map(run, ends)
        share = (num_tokens - ends[0]) / (ends[1] - ends[0])
        moments = tuple(
            Moment(*(round(few + share * (many - few)) for few, many in zip(at_low, at_high, strict=True)))
            for at_low, at_high in zip(low.moments, high.moments, strict=True)
        )
        loss = round(low.loss_bytes + share * (high.loss_bytes - low.loss_bytes))
        return StepProfile(moments=moments, gradients_held=gradients_held, loss_bytes=loss)

    def prefill_work(self, chunk_tokens: int) -> int:
        """Bytes that one chunk of a prompt holds beside weights and cache while it is read, in 16 bits.

        Its last token's logits are among them.
        """
        if chunk_tokens not in self._prefill_work:
            self._prefill_work[chunk_tokens] = self._run_prefill(chunk_tokens)
        return self._prefill_work[chunk_tokens]

    def trained(self, tuning: FullTuning | LoraTuning) -> tuple[int, int]:
        """Numbers that are trained, and all numbers, as the real tuning makes them on a model without weights."""
        key = tuning.model_dump_json()
        if key not in self._trained:
            skeleton = without_weights(self.shape.config)
            with torch.device("meta"):
                tuned = apply_tuning(skeleton, tuning)
            sizes = [(parameter.numel(), parameter.requires_grad) for parameter in tuned.parameters()]
            self._trained[key] = sum(n for n, asked in sizes if asked), sum(n for n, _ in sizes)
        return self._trained[key]

    def _run(
        self,
        window_tokens: int,
        batch: int,
        tuning: FullTuning | LoraTuning,
        checkpointing: bool,
        gradients_held: bool,
        bits: int,
        dtype: torch.dtype,
    ) -> StepProfile:
        if not self.by_formula:
            try:
                return trace_step(
                    self.shape.config,
                    window_tokens=window_tokens,
                    batch=batch,
                    tuning=tuning,
                    checkpointing=checkpointing,
                    gradients_held=gradients_held,
                    dtype=dtype,
                    autocast=torch.bfloat16 if bits == 16 else None,
                )
            except UnsupportedModelError:
                self.by_formula = True
        return formula_profile(self.shape, batch * window_tokens, checkpointing=checkpointing, bits=bits)

    def _run_prefill(self, chunk_tokens: int) -> int:
        if not self.by_formula:
            try:
                profile = trace_prefill(self.shape.config, length_tokens=chunk_tokens, dtype=torch.bfloat16)
                return profile.outside_layers
            except UnsupportedModelError:
                pass
        return formula_prefill_work(self.shape, chunk_tokens)


def formula_profile(shape: ModelShape, num_tokens: int, *, checkpointing: bool, bits: int) -> StepProfile:
    """Activations by the formula for flash attention, for models that cannot be run without numbers.

        34 s h bytes a layer in 16 bits, 2 s h where layers are computed again, and one layer's peak

    Gradients are taken to be there throughout.

    Source: Korthikanti et al., arXiv 2205.05198, equation 2 without the attention matrix.
    """
    hidden = shape.text.hidden_size * num_tokens * (bits // 8) // 2
    layer = 34 * hidden
    kept = 2 * hidden if checkpointing else layer
    logits = 2 * FLOAT32_BYTES * min(num_tokens * shape.text.vocab_size, _LOGITS)
    work = layer if checkpointing else layer // 2
    moments = (Moment(kept, 4 * hidden + logits), Moment(kept, 4 * hidden + work))
    return StepProfile(moments=moments, gradients_held=True, loss_bytes=logits)


def formula_prefill_work(shape: ModelShape, chunk_tokens: int) -> int:
    """What a chunk of a prompt holds in 16 bits while it passes a layer, and the logits of a token in 32."""
    text = shape.text
    inside = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    return 2 * chunk_tokens * (4 * text.hidden_size + 3 * inside) + FLOAT32_BYTES * text.vocab_size
