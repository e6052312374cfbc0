"""Next-token loss that never holds the logits of a whole window.

A window of `n` tokens over a vocabulary of `V` makes `n x V` logits; with their float32 copy and gradients they
outweigh everything else of a small model with a large vocabulary. Here the head runs over a few hundred tokens at a
time, and the gradients of hidden states and head are made in the same pass, so that nothing is computed twice. Where
the head is one matrix in float32, as most are on a CPU, slices also share their memory (`_LinearCrossEntropy`).

torch has a `linear_cross_entropy` of its own since 2.13, which works alike where it is given chunking options. It takes
hidden states and one matrix, so it cannot cap the logits (Gemma), scale them (Cohere, Granite) or train an adapter on
the head, and older versions lack it. Here the model's own head runs, whatever it is, on every version.
"""

import functools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from skipwise.attention import mark_causal
from skipwise.hollow import HollowTensor

IGNORED = -100
"""Label of a token that is not scored, as everywhere in the transformers library."""

_CHUNK_BYTES = 64 * 2**20


def training_inputs(
    input_ids: Tensor, position_ids: Tensor, diluted: Tensor | None = None, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    """The decoder's arguments exactly as training passes them.

    With neither mask nor cache, the transformers library takes any step of the positions other than 1 for the start of
    another document and hides the chunks from each other. A mask of ones, said explicitly, keeps them in one document.

    Args:
        input_ids: token ids (batch, n).
        position_ids: positions of the same shape, with skips.
        diluted: bool (batch,), rows whose attention is diluted as `diluted_mask` says; None where that is not in use.
        dtype: of the model, for that mask.
    """
    mask = torch.ones_like(input_ids) if diluted is None else diluted_mask(position_ids, diluted, dtype)
    return {"input_ids": input_ids, "position_ids": position_ids, "attention_mask": mask, "use_cache": False}


def diluted_mask(position_ids: Tensor, diluted: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """A causal mask under which the keys of a chunk stand for those that the skip behind it leaves out.

        mask[query, key] = log(span of the key's chunk / its tokens)    if the query is in a later chunk
                           0                                            if it is in the same one
                           lowest number of the dtype                   if the query comes before the key

    where a chunk's span reaches from its first position to that of the next chunk. Added to attention's logits, it
    counts each key that many times: a query finds as much to attend to as it would among all positions of the target,
    although the window holds few of them. Where the text is as far apart as the positions, the keys shown are a sample
    of those left out, and the sum over them has the right mean.

    Args:
        position_ids: (batch, n), with skips.
        diluted: bool (batch,); False leaves a row with the plain causal mask.
        dtype: of the mask; attention wants that of its queries.

    Returns:
        (batch, 1, n, n).
    """
    n = position_ids.shape[1]
    place = torch.arange(n, device=position_ids.device)
    begins = torch.ones_like(position_ids, dtype=torch.bool)
    begins[:, 1:] = position_ids.diff(dim=1) != 1
    chunk = begins.cumsum(dim=1)
    # Of each token: the place where its chunk begins, and that where the next one does (n for the last chunk).
    first = torch.where(begins, place, 0).cummax(dim=1).values
    ends = torch.where(begins, place, n).roll(-1, dims=1)
    ends[:, -1] = n
    following = ends.flip(1).cummin(dim=1).values.flip(1)
    span = position_ids.gather(1, following.clamp(max=n - 1)) - position_ids.gather(1, first)
    weight = (span.clamp(min=1) / (following - first)).log() * diluted[:, None]
    later = chunk[:, :, None] > chunk[:, None, :]
    mask = torch.where(later, weight[:, None, :], torch.zeros((), device=weight.device)).to(dtype)
    return mark_causal(mask.masked_fill(place[:, None] < place, torch.finfo(dtype).min)[:, None])


class NextTokenLoss:
    """Mean next-token loss of a causal language model, equal to the model's own and lighter.

    Means the same as::

        logits = model(input_ids=input_ids, position_ids=position_ids, attention_mask=ones).logits.float()
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)

    Whatever the model does between decoder and logits (a bias, a scale, a soft cap) is the model's own code: its
    forward runs on slices of the hidden states with the decoder standing still. A router loss of a mixture of experts,
    which counts only where its config asks for router logits, is not part of this one.

    With `distill` above 0, each label has another term, where p is the prediction and q that of the same model for the
    same tokens at positions 0, 1, 2, ... without skips or dilution::

        loss = cross entropy + distill * KL(q || p)

    No gradient flows through q, so this costs a forward pass more.

    Args:
        model: a causal language model of the transformers library, not wrapped.
        chunk_bytes: about how large one slice of float32 logits may be; by default 64 MiB, and a quarter of the head
            where that is trained and larger, as each slice reads and writes its whole gradient.
    """

    def __init__(self, model: Any, chunk_bytes: int | None = None, *, distill: float = 0.0) -> None:
        self._model, self._distill = model, distill
        self._decoder: nn.Module = model.base_model
        self._vocabulary = model.config.get_text_config().vocab_size
        # The class's own forward, whatever has been put in its place on this object.
        self._forward = type(model).forward
        self._chunk_bytes = chunk_bytes

    def __call__(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        labels: Tensor | None = None,
        num_items: Tensor | int | None = None,
        diluted: Tensor | None = None,
        shift_labels: Tensor | None = None,
        label_weights: Tensor | None = None,
    ) -> Tensor:
        """Computes the loss, ready for `backward`.

        Args:
            input_ids: token ids (batch, n).
            position_ids: positions (batch, n).
            labels: token ids (batch, n), not shifted; -100 where a token is not scored.
            num_items: what to divide the sum by; by default the number of scored tokens.
            diluted: bool (batch,), rows whose attention is diluted; None where that is not in use.
            shift_labels: in place of `labels`, each at the token before it already, as the transformers library calls
                them; they must be where tokens are parts of a window.
            label_weights: float32 (batch, n), the factor on each of `labels`; None for 1.

        Returns:
            0-d float32 loss; 0 where nothing is scored. `backward` can go through it once.
        """
        outputs = self._decoder(**training_inputs(input_ids, position_ids, diluted, self._model.dtype))
        hidden, targets = outputs.last_hidden_state, shift_labels
        if targets is None:
            assert labels is not None, "a loss needs labels"
            hidden, targets = hidden[:, :-1], labels[:, 1:]
        hidden, targets = hidden.flatten(0, 1), targets.flatten()
        scored = targets != IGNORED
        count = scored.sum() if num_items is None else torch.as_tensor(num_items, device=hidden.device)
        weights = None if label_weights is None else label_weights[:, 1:].flatten()
        short = self._without_skips(input_ids) if self._distill else None

        if not bool(scored.all()):
            hidden, targets = hidden[scored], targets[scored]
            weights, short = (None if each is None else each[scored] for each in (weights, short))
        # Slices of one size: a rest of a few rows would cost the head's whole gradient again.
        beside = self._head_parameters()
        size = 4 * self._vocabulary * len(hidden)
        num_slices = min(max(1, round(size / max(1, self._slice_bytes(beside)))), max(1, len(hidden)))
        rows = max(1, -(-len(hidden) // num_slices))
        with self._standing_decoder(type(outputs)) as head:
            if weights is not None or short is not None:
                loss_of = _weighted_loss(head, targets, weights, short, self._distill)
                total = _ChunkedLoss.apply(head, loss_of, rows, hidden, *beside)
            elif (weight := self._plain_weight(head, hidden, beside)) is not None:
                total = _LinearCrossEntropy.apply(rows, hidden, targets, weight)
            else:
                total = _ChunkedLoss.apply(head, _cross_entropy(targets), rows, hidden, *beside)
        return total / count.clamp(min=1)

    @torch.no_grad()
    def _without_skips(self, input_ids: Tensor) -> Tensor:
        """Hidden states (batch * (n - 1), width) of the same tokens at positions 0, 1, 2, ..., but for the last one."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        inputs = training_inputs(input_ids, positions)
        return self._decoder(**inputs).last_hidden_state[:, :-1].flatten(0, 1)

    def _slice_bytes(self, beside: list[nn.Parameter]) -> int:
        if self._chunk_bytes is not None:
            return self._chunk_bytes
        return max(_CHUNK_BYTES, sum(parameter.nbytes for parameter in beside) // 4)

    @torch.no_grad()
    def _plain_weight(
        self, head: Callable[[Tensor], Tensor], hidden: Tensor, beside: list[nn.Parameter]
    ) -> Tensor | None:
        """The head's weight (vocabulary, width) where logits are this one product in float32; else None."""
        layer = self._model.get_output_embeddings()
        if type(layer) is not nn.Linear or layer.bias is not None or any(p is not layer.weight for p in beside):
            return None
        # Hooks gather what is sharded or elsewhere, or watch; then the layer itself must be called.
        weight, watched = layer.weight, _has_hooks(layer) or "forward" in vars(layer)
        # A class of its own may be sharded or packed; a tensor without numbers, for planning, stands for a plain one.
        if watched or type(weight) not in (nn.Parameter, HollowTensor) or weight.shape[-1:] != hidden.shape[-1:]:
            return None
        if {hidden.dtype, weight.dtype} != {torch.float32} or torch.is_autocast_enabled(hidden.device.type):
            return None
        if weight.device != hidden.device or not len(hidden):
            return None
        # Not what the class is called but what it computes: no scale and no soft cap leaves two rows as they are.
        few = hidden[:2].detach()
        same = torch.equal(head(few), nn.functional.linear(few, weight))
        return weight if same else None

    def _head_parameters(self) -> list[nn.Parameter]:
        """What is trained beside the decoder; asked for anew each time, as an adapter may have been put around it."""
        beside = [module for module in self._model.children() if module is not self._decoder]
        return [p for p in nn.ModuleList(beside).parameters() if p.requires_grad]

    @contextmanager
    def _standing_decoder(self, output_class: type) -> Iterator[Callable[[Tensor], Tensor]]:
        """Within, a function from hidden states (n, width) to logits (n, vocabulary) by the model's own forward."""
        decoder, replaced = self._decoder, self._decoder.__dict__.get("forward")
        layer: Any = self._model.get_output_embeddings()

        def logits(hidden: Tensor) -> Tensor:
            decoder.forward = lambda *_, **__: output_class(last_hidden_state=hidden[None])
            return self._forward(self._model, inputs_embeds=hidden[None], use_cache=False).logits[0]

        try:
            # FSDP splits the head together with the last norm, which has gathered both by now; its hooks around the
            # head would take the gradient made in here for that of the whole step, and split them again before it.
            with _without_hooks(layer) if _is_split(layer) else nullcontext():
                yield logits
        finally:
            decoder.__dict__.pop("forward", None)
            if replaced is not None:
                decoder.forward = replaced


def use_chunked_loss(model: Any, *, distill: float = 0.0) -> None:
    """Makes `model(..., labels=...)` return `{"loss": ...}` by `NextTokenLoss`, until `del model.forward`.

    As in the transformers library, `shift_labels` in place of `labels` are those that are shifted already.

    The loss is taken inside the forward pass, where whatever wraps the model (an adapter, data parallelism, sharding)
    expects it.
    """
    loss, forward = NextTokenLoss(model, distill=distill), model.forward

    @functools.wraps(forward)
    def forward_or_loss(
        *args: Any,
        labels: Tensor | None = None,
        shift_labels: Tensor | None = None,
        num_items_in_batch: Any = None,
        diluted: Tensor | None = None,
        label_weights: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if labels is None and shift_labels is None:
            return forward(*args, **kwargs)
        inputs = kwargs["input_ids"], kwargs["position_ids"]
        return {"loss": loss(*inputs, labels, num_items_in_batch, diluted, shift_labels, label_weights)}

    model.forward = forward_or_loss


def slice_starts(num_tokens: int, rows: int) -> Sequence[int]:
    """Where the slices of a loss begin that takes `rows` tokens at a time."""
    return range(0, num_tokens, rows)


def _is_split(layer: nn.Module) -> bool:
    """Whether FSDP (of version 2) has split this layer, by itself or with others."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(layer, FSDPModule)


def _has_hooks(layer: nn.Module) -> bool:
    """Whether something gathers, moves or watches what goes through this layer."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks)


@contextmanager
def _without_hooks(layer: nn.Module) -> Iterator[None]:
    """Context in which a layer's forward hooks do not run. torch has no public way to suspend them."""
    hooks = layer._forward_pre_hooks, layer._forward_hooks
    layer._forward_pre_hooks, layer._forward_hooks = OrderedDict(), OrderedDict()
    try:
        yield
    finally:
        layer._forward_pre_hooks, layer._forward_hooks = hooks


def _widened(grad: Tensor) -> Tensor:
    """In float32 what is 16-bit, as each sum in 16 bits rounds anew, and the error grows with the slices."""
    return grad.to(torch.promote_types(grad.dtype, torch.float32))


class _LinearCrossEntropy(torch.autograd.Function):
    """Sum of cross entropies of `hidden @ weight.T`, as `_ChunkedLoss` has it, without its copies.

    One slice of logits is made in place of the last one and becomes its own gradient, and the weight's gradient is
    summed by the product itself: on a CPU, new memory costs more than what is computed in it.
    """

    @staticmethod
    def forward(ctx: Any, rows: int, hidden: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        hidden_grad = torch.empty_like(hidden) if any(ctx.needs_input_grad) else None
        weight_grad = torch.zeros_like(weight) if ctx.needs_input_grad[3] else None
        logits = hidden.new_empty(min(rows, len(hidden)), len(weight))
        for start in slice_starts(len(hidden), rows):
            piece, target = hidden[start : start + rows], targets[start : start + rows, None]
            scores = torch.mm(piece, weight.T, out=logits[: len(piece)])
            largest = scores.amax(1, keepdim=True)
            chosen = scores.gather(1, target)
            sums = scores.sub_(largest).exp_().sum(1, keepdim=True)
            total += (sums.log() + largest - chosen).sum()
            if hidden_grad is not None:
                # d loss / d logits = softmax(logits) - one_hot(target)
                scores.div_(sums).scatter_add_(1, target, scores.new_full(target.shape, -1.0))
                torch.mm(scores, weight, out=hidden_grad[start : start + rows])
                if weight_grad is not None:
                    weight_grad.addmm_(scores.T, piece)
        ctx.save_for_backward(hidden_grad, weight_grad)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        hidden_grad, weight_grad = (None if g is None else g.mul_(grad_output) for g in ctx.saved_tensors)
        return None, hidden_grad, None, weight_grad


SliceLoss = Callable[[Tensor, slice], Tensor]
"""The summed loss of a slice of tokens, from their float32 logits (n, vocabulary)."""


def _cross_entropy(targets: Tensor) -> SliceLoss:
    return lambda logits, piece: nn.functional.cross_entropy(logits, targets[piece], reduction="sum")


def _weighted_loss(
    head: Callable, targets: Tensor, weights: Tensor | None, short: Tensor | None, distill: float
) -> SliceLoss:
    """Cross entropies, with `distill` times the divergence from what the hidden states `short` predict; weighted."""

    def loss_of(logits: Tensor, piece: slice) -> Tensor:
        losses = nn.functional.cross_entropy(logits, targets[piece], reduction="none")
        if short is not None:
            with torch.no_grad():
                wanted = head(short[piece]).float().log_softmax(-1)
            found = logits.log_softmax(-1)
            divergence = nn.functional.kl_div(found, wanted, reduction="none", log_target=True).sum(-1)
            losses = losses + distill * divergence
        return (losses if weights is None else losses * weights[piece]).sum()

    return loss_of


class _ChunkedLoss(torch.autograd.Function):
    """Sum of losses over slices; gradients are made slice by slice in the forward pass."""

    @staticmethod
    def forward(ctx: Any, head: Callable, loss_of: SliceLoss, rows: int, hidden: Tensor, *parameters: Tensor) -> Tensor:
        needed = any(ctx.needs_input_grad)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        hidden_grad = torch.zeros_like(hidden) if needed else None
        grads = [] if len(hidden) else [torch.zeros_like(parameter) for parameter in parameters]
        for start in slice_starts(len(hidden), rows):
            piece = hidden[start : start + rows].detach().requires_grad_(needed)
            with torch.set_grad_enabled(needed):
                loss = loss_of(head(piece).float(), slice(start, start + rows))
            total += loss.detach()
            if hidden_grad is not None:
                piece_grad, *fresh = torch.autograd.grad(loss, (piece, *parameters))
                hidden_grad[start : start + rows] = piece_grad
                if not grads:
                    grads = [_widened(grad) for grad in fresh] if rows < len(hidden) else fresh
                else:
                    grads = [torch.add(a, b, out=a) for a, b in zip(grads, fresh, strict=True)]
        for i, parameter in enumerate(parameters):
            grads[i] = grads[i].to(parameter.dtype)
        ctx.save_for_backward(hidden_grad, *grads)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        # In place: the head's gradient is as large as the head, and a copy would stand at the very peak of memory.
        hidden_grad, *grads = (grad.mul_(grad_output) for grad in ctx.saved_tensors)
        return None, None, None, hidden_grad, *grads
