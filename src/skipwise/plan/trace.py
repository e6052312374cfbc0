"""What a training step and a prefill hold, told by running them on tensors that have shapes and no numbers.

A formula for activations must know every model class, and is wrong where the class does something of its own. Here the
user's own class runs, with the loss, the tuning and the checkpointing of a real run, on fake tensors: nothing is
computed, nothing is stored, and a ledger counts what would be. Three layers are run; what the third adds is what every
further one adds, so a model of 80 layers costs no more to plan for than one of 4.
"""

import copy
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.weak import WeakIdKeyDictionary
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedConfig, masking_utils

from skipwise.config import FullTuning, QloraTuning, Tuning
from skipwise.errors import UnsupportedModelError
from skipwise.loss import use_chunked_loss
from skipwise.memory import Moment, StepProfile
from skipwise.model import four_bit_layers
from skipwise.model.source import quiet_transformers
from skipwise.plan.shape import decoder_blocks
from skipwise.train.tuning import apply_tuning, is_adapted

# The second layer differs from the third: only where a layer is run after it is its input gone that none needs again.
_LAYERS = 3
_ALIGNMENT = 64  # bytes to which allocators round

# Whatever is asked about the numbers of a tensor without any is answered yes: no token is padding, every one is scored.
_QUESTIONS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default, torch.ops.aten.item.default)


class Ledger(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive; a view counts with what it looks at.

    Attributes:
        live: bytes alive now.
        peak: the most since `mark` was called.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known = WeakIdKeyDictionary()

    def mark(self) -> int:
        """Begins a new peak; returns what is alive."""
        self.peak = self.live
        return self.live

    def mark_anew(self) -> int:
        """Begins a new peak; returns the one before."""
        before, self.peak = self.peak, self.live
        return before

    def add(self, tensor: Tensor) -> None:
        """Counts a tensor until it is gone."""
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        size = -(-storage.nbytes() // _ALIGNMENT) * _ALIGNMENT
        self._known[storage] = size
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, size)

    def _forget(self, size: int) -> None:
        self.live -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation and counts what it makes."""
        if func in _QUESTIONS:
            return 1 if func is not _QUESTIONS[1] else True
        out = func(*args, **(kwargs or {}))
        for value in tree_iter(out):
            if isinstance(value, Tensor):
                self.add(value)
        return out


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillProfile:
    """What reading a prompt holds beside weights, in bytes.

    Attributes:
        per_layer: what each layer adds to the peak: its cache.
        outside_layers: the rest of the peak: one layer's work, logits of the last token.
    """

    per_layer: int
    outside_layers: int

    def peak(self, num_layers: int) -> int:
        """The most that is held at once beside weights."""
        return self.outside_layers + num_layers * self.per_layer


def trace_step(
    config: PreTrainedConfig,
    *,
    window_tokens: int,
    batch: int = 1,
    tuning: Tuning = FullTuning(),  # noqa: B008 - frozen
    checkpointing: bool = True,
    gradients_held: bool = True,
    dtype: torch.dtype = torch.float32,
    autocast: torch.dtype | None = None,
    diluted: bool = False,
    library_loss: bool = False,
) -> StepProfile:
    """What a training step of `extend` holds beside parameters and the optimizer's state.

    Args:
        config: of the model.
        window_tokens: length of a training example.
        batch: examples at a time.
        tuning: what is trained.
        checkpointing: layers are computed again in the backward pass.
        gradients_held: an earlier micro-batch of the step has left all gradients; else this one is the first.
        dtype: of the parameters.
        autocast: 16-bit type that the Trainer computes in, or None.
        diluted: attention is diluted, by a mask of all pairs (see `skipwise.loss.diluted_mask`).
        library_loss: the loss is the model class's own, of all logits at once.

    Raises:
        UnsupportedModelError: the model's code asks for numbers, as routers of experts do.
    """
    with _fake_model(config, _LAYERS, dtype, tuning) as (tuned, ledger):
        tuned.train()
        if checkpointing:
            tuned.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            tuned.enable_input_require_grads()
        plain = tuned.get_base_model() if is_adapted(tuned) else tuned
        if not library_loss:
            use_chunked_loss(plain)
        first, below, last = (decoder_blocks(plain)[place] for place in (0, -2, -1))
        gradients = 0 if gradients_held else sum(p.nbytes for p in last.parameters() if p.requires_grad)
        with ledger:
            if gradients_held:
                for parameter in tuned.parameters():
                    parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
            ids = torch.zeros(batch, window_tokens, dtype=torch.long)
            positions = torch.arange(window_tokens).expand(batch, -1)
            before = ledger.mark()
            with (
                _watched(last, ledger) as at_last,
                _watched(below, ledger) as at_below,
                _watched(first, ledger) as at_first,
            ):
                with torch.autocast("cpu", autocast) if autocast else nullcontext():
                    rows = {"diluted": torch.ones(batch, dtype=torch.bool)} if diluted else {}
                    loss = tuned(input_ids=ids, position_ids=positions, labels=ids, **rows)["loss"]
                after_layers = ledger.mark_anew()
                loss.backward()
    forward = max(after_layers, *(at.peak_at_output for at in (at_first, at_below, at_last))) - before
    # Each layer adds what the last one has added, and takes away in the backward pass what it made gradients of.
    added = at_last.live_after_forward - at_below.live_after_forward
    held = at_last.live_at_gradient - at_below.live_at_gradient + gradients
    last_peak = max(at_last.peak_at_gradient, at_below.peak_at_gradient)
    moments = ((added, forward), (held, last_peak - before), (gradients, ledger.peak - before))
    num_layers = len(decoder_blocks(plain))
    return StepProfile(
        moments=tuple(Moment(per_layer, peak - num_layers * per_layer) for per_layer, peak in moments),
        gradients_held=gradients_held,
        loss_bytes=after_layers - at_last.live_after_forward,
    )


@dataclass(slots=True)
class _Watched:
    """What the ledger says when a layer has put out its hidden states, and when their gradient comes back to them."""

    live_after_forward: int = 0
    peak_at_output: int = 0
    live_at_gradient: int = 0
    peak_at_gradient: int = 0


@contextmanager
def _watched(layer: nn.Module, ledger: Ledger) -> Iterator[_Watched]:
    """Looks at the ledger on a layer's ways: a new peak begins where it puts out, and where the backward pass comes."""
    found = _Watched()

    def comes_back(_: Tensor) -> None:
        found.live_at_gradient, found.peak_at_gradient = ledger.live, ledger.mark_anew()

    def puts_out(_: nn.Module, __: Any, output: Any) -> None:
        hidden = output if isinstance(output, Tensor) else output[0]
        # Checkpointing comes by once more, in the backward pass.
        if not found.live_after_forward:
            found.live_after_forward, found.peak_at_output = ledger.live, ledger.mark_anew()
            hidden.register_hook(comes_back)

    handle = layer.register_forward_hook(puts_out)
    try:
        yield found
    finally:
        handle.remove()


def trace_prefill(
    config: PreTrainedConfig,
    *,
    length_tokens: int,
    requests: int = 1,
    chunk_tokens: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> PrefillProfile:
    """What reading a prompt of `length_tokens` holds beside the weights.

    Args:
        config: of the model.
        length_tokens: of the prompt.
        requests: prompts read together.
        chunk_tokens: tokens of one pass; None reads all in one.
        dtype: of weights and cache.

    Raises:
        UnsupportedModelError: as `trace_step`.
    """
    chunk = chunk_tokens or length_tokens
    (few, num_layers), (more, _) = (
        _prefill(config, layers, length_tokens, requests, chunk, dtype) for layers in (_LAYERS, _LAYERS + 1)
    )
    return PrefillProfile(per_layer=more - few, outside_layers=few - num_layers * (more - few))


@torch.no_grad()
def _prefill(
    config: PreTrainedConfig, num_layers: int, length_tokens: int, requests: int, chunk_tokens: int, dtype: torch.dtype
) -> tuple[int, int]:
    """The peak beside weights of a model with so many whole layers, and how many layers it has."""
    with _fake_model(config, num_layers, dtype) as (model, ledger):
        model.eval()
        cache = DynamicCache(config=model.config)
        with ledger:
            before = ledger.mark()
            for start in range(0, length_tokens, chunk_tokens):
                end = min(start + chunk_tokens, length_tokens)
                ids = torch.zeros(requests, end - start, dtype=torch.long)
                positions = torch.arange(start, end).expand(requests, -1)
                model(input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1)
            return ledger.peak - before, len(decoder_blocks(model))


@contextmanager
def _fake_model(
    config: PreTrainedConfig, num_layers: int, dtype: torch.dtype, tuning: Tuning | None = None
) -> Iterator[tuple[Any, Ledger]]:
    """A model of few layers without numbers, readied for training where that is asked, and a ledger of its tensors."""
    with quiet_transformers(), warnings.catch_warnings():
        # The Trainer switches checkpointing on by this name, too, whatever the library says of it.
        warnings.simplefilter("ignore", FutureWarning)
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(_with_layers(config, num_layers), dtype=dtype)
            four_bit = four_bit_layers(model) if isinstance(tuning, QloraTuning) else {}
            for layer in four_bit.values():
                layer.forward = partial(_as_in_four_bits, layer)
            tuned: Any = model if tuning is None else apply_tuning(model, tuning)
        with FakeTensorMode(allow_non_fake_inputs=True), _as_in_earnest():
            _leave_meta(tuned)
            ledger = Ledger()
            for parameter in tuned.parameters():
                ledger.add(parameter)
            try:
                yield tuned, ledger
            except (RuntimeError, NotImplementedError) as error:
                reason = " ".join(str(error).split())[:200]
                raise UnsupportedModelError(
                    f"{type(model).__name__} cannot be run without numbers ({type(error).__name__}: {reason})"
                ) from error


class _InFourBits(torch.autograd.Function):
    """A product with a weight in 4 bits, which is made whole for it in each pass and let go; its input is not kept."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        # peft copies what a 4-bit layer puts out.
        return nn.functional.linear(hidden, torch.empty_like(weight, dtype=hidden.dtype), bias).clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        return gradient @ torch.empty_like(ctx.weight).to(gradient.dtype), None, None


def _as_in_four_bits(layer: Any, hidden: Tensor) -> Tensor:
    """The forward pass of a linear layer as bitsandbytes makes it, in what autocast computes in."""
    computes_in = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else hidden.dtype
    bias = None if layer.bias is None else layer.bias.to(computes_in)
    return _InFourBits.apply(hidden.to(computes_in), layer.weight, bias).to(hidden.dtype)  # pyright: ignore


@contextmanager
def _as_in_earnest() -> Iterator[None]:
    """Within, the library makes masks for fake tensors as for real ones: none where all tokens count.

    It takes fake tensors for an export, where it may not look at numbers, and would hold a mask of all pairs.
    """
    before = masking_utils.is_tracing
    masking_utils.is_tracing = lambda *_: False
    try:
        yield
    finally:
        masking_utils.is_tracing = before


def _leave_meta(model: nn.Module) -> None:
    """Puts fake tensors of the CPU in the place of those on the meta device, tied ones still tied."""
    fake: dict[int, Tensor] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                made = nn.Parameter(torch.empty_like(parameter, device="cpu"), parameter.requires_grad)
                module._parameters[name] = fake.setdefault(id(parameter), made)  # pyright: ignore
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty_like(buffer, device="cpu")


def _with_layers(config: PreTrainedConfig, num_layers: int) -> PreTrainedConfig:
    """The config of the same model with its last layers only: of mixtures and of sliding windows the usual ones.

    Where layers attend in several ways, they are such as see the whole text, which hold the most, and before them one
    of another kind for the mask that it adds.
    """
    cut = copy.deepcopy(config)
    text: Any = cut.get_text_config(decoder=True)
    kinds = list(dict.fromkeys(getattr(text, "layer_types", None) or ()))
    whole = "full_attention" if "full_attention" in kinds else next(iter(kinds), None)
    others = [kind for kind in kinds if kind != whole][:1]
    text.num_hidden_layers = num_layers + len(others)
    if whole is not None:
        text.layer_types = [*others, *[whole] * num_layers]
    return cut
