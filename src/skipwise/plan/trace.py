"""What a training step and a prefill hold, told by running them on tensors that have shapes and no numbers.

A formula for activations must know every model class, and is wrong where the class does something of its own. Here the
user's own class runs, with the loss, the tuning and the checkpointing of a real run, on hollow tensors: nothing is
computed, nothing is stored, and a ledger counts what would be. Only what differs is run:

    layers       three; what the third adds is what every further one adds
    slices       of the loss, the first three and the last; from the third on each holds what the one before did
    gradients    whether or not an earlier micro-batch has left some: one run, of which the ledger has two readings
"""

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedConfig, masking_utils

from skipwise import loss
from skipwise.config import FullTuning, QloraTuning, Tuning
from skipwise.errors import UnsupportedModelError
from skipwise.hollow import HollowTensor
from skipwise.memory import Moment, StepProfile
from skipwise.model import four_bit_layers
from skipwise.model.source import quiet_transformers
from skipwise.plan.ledger import Bytes, Ledger
from skipwise.plan.shape import decoder_blocks
from skipwise.train.tuning import apply_tuning

# The second layer differs from the third: only where a layer is run after it is its input gone that none needs again.
_LAYERS = 3
_SLICES = 3


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


class StepProfiles(NamedTuple):
    """What the micro-batches of a step hold.

    Attributes:
        first: which makes the gradients.
        further: each other one, for which all gradients are there before.
    """

    first: StepProfile
    further: StepProfile


class Tracer:
    """Runs steps and prefills of one model without numbers.

    Args:
        config: of the model.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        self._config = config
        self._for_training: dict[tuple[Any, ...], Any] = {}

    def step(
        self,
        *,
        window_tokens: int,
        batch: int = 1,
        tuning: Tuning = FullTuning(),  # noqa: B008 - frozen
        checkpointing: bool = True,
        dtype: torch.dtype = torch.float32,
        autocast: torch.dtype | None = None,
        diluted: bool = False,
        library_loss: bool = False,
    ) -> StepProfiles:
        """What a training step of `extend` holds beside parameters and the optimizer's state.

        Args:
            window_tokens: length of a training example.
            batch: examples at a time.
            tuning: what is trained.
            checkpointing: layers are computed again in the backward pass.
            dtype: of the parameters.
            autocast: 16-bit type that the Trainer computes in, or None.
            diluted: attention is diluted, by a mask of all pairs (see `skipwise.loss.diluted_mask`).
            library_loss: the loss is the model class's own, of all logits at once.

        Raises:
            UnsupportedModelError: the model's code asks for numbers, as routers of experts do.
        """
        tuned = self._tuned(tuning, dtype, checkpointing=checkpointing, library_loss=library_loss)
        ledger, blocks = Ledger(hollow=True), decoder_blocks(_plain(tuned))
        with _without_numbers(tuned, ledger), _accumulated(tuned, ledger):
            ids = torch.zeros(batch, window_tokens, dtype=torch.long)
            positions = torch.arange(window_tokens).expand(batch, -1)
            ledger.mark()
            before = ledger.live.all
            with (
                _watched(blocks[-1], ledger) as last,
                _watched(blocks[-2], ledger) as below,
                _watched(blocks[0], ledger) as first,
            ):
                with torch.autocast("cpu", autocast) if autocast else nullcontext():
                    rows = {"diluted": torch.ones(batch, dtype=torch.bool)} if diluted else {}
                    mean = tuned(input_ids=ids, position_ids=positions, labels=ids, **rows)["loss"]
                after_layers = ledger.mark().all
                mean.backward()
        forward = max(after_layers, *(at.peak_at_output for at in (first, below, last))) - before
        # Each layer adds what the last one has added, and takes away in the backward pass what it made gradients of.
        added = last.live_after_forward - below.live_after_forward
        made = sum(p.nbytes for p in blocks[-1].parameters() if p.requires_grad)

        def profile(of: str, gradients: int) -> StepProfile:
            """By one reading of the ledger."""
            live, peak = ([getattr(at[i], of) for at in (last.at_gradient, below.at_gradient)] for i in (0, 1))
            moments = (
                (added, forward),
                (live[0] - live[1] + gradients, max(peak) - before),
                (gradients, getattr(ledger.peak, of) - before),
            )
            return StepProfile(
                moments=tuple(Moment(each, most - len(blocks) * each) for each, most in moments),
                gradients_held=of == "beside",
                loss_bytes=after_layers - last.live_after_forward,
            )

        return StepProfiles(first=profile("all", made), further=profile("beside", 0))

    def prefill(
        self,
        *,
        length_tokens: int,
        requests: int = 1,
        chunk_tokens: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> PrefillProfile:
        """What reading a prompt of `length_tokens` holds beside the weights.

        Args:
            length_tokens: of the prompt.
            requests: prompts read together.
            chunk_tokens: tokens of one pass; None reads all in one.
            dtype: of weights and cache.

        Raises:
            UnsupportedModelError: as `step`.
        """
        chunk = chunk_tokens or length_tokens
        (few, num_layers), (more, _) = (
            _prefill(_hollow_model(self._config, layers, dtype), length_tokens, requests, chunk)
            for layers in (_LAYERS, _LAYERS + 1)
        )
        return PrefillProfile(per_layer=more - few, outside_layers=few - num_layers * (more - few))

    def _tuned(self, tuning: Tuning, dtype: torch.dtype, *, checkpointing: bool, library_loss: bool) -> Any:
        """The model, readied for training as that is asked; made once."""
        key = (tuning.model_dump_json(), dtype, checkpointing, library_loss)
        if key not in self._for_training:
            tuned = _hollow_model(self._config, _LAYERS, dtype, tuning).train()
            if checkpointing:
                with warnings.catch_warnings():
                    # The Trainer switches checkpointing on by this name, too, whatever the library says of it.
                    warnings.simplefilter("ignore", FutureWarning)
                    tuned.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
                tuned.enable_input_require_grads()
            if not library_loss:
                loss.use_chunked_loss(_plain(tuned))
            self._for_training[key] = tuned
        return self._for_training[key]


def _plain(tuned: Any) -> Any:
    """The model inside its low-rank additions."""
    return tuned.get_base_model() if hasattr(tuned, "get_base_model") else tuned


@contextmanager
def _accumulated(model: nn.Module, ledger: Ledger) -> Iterator[None]:
    """Within, the ledger hears of gradients; they are gone afterwards."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    handles = [
        parameter.register_post_accumulate_grad_hook(lambda its: ledger.accumulated(its.grad)) for parameter in trained
    ]
    try:
        yield
    finally:
        for parameter, handle in zip(trained, handles, strict=True):
            handle.remove()
            parameter.grad = None


@dataclass(slots=True)
class _Watched:
    """What the ledger says when a layer has put out its hidden states, and when their gradient comes back to them.

    Attributes:
        live_after_forward: when it has put them out.
        peak_at_output: until then.
        at_gradient: alive when the gradient comes, and the peak until then.
    """

    live_after_forward: int = 0
    peak_at_output: int = 0
    at_gradient: tuple[Bytes, Bytes] = (Bytes(0, 0), Bytes(0, 0))


@contextmanager
def _watched(layer: nn.Module, ledger: Ledger) -> Iterator[_Watched]:
    """Looks at the ledger on a layer's ways: a new peak begins where it puts out, and where the backward pass comes."""
    found = _Watched()

    def comes_back(_: Tensor) -> None:
        found.at_gradient = ledger.live, ledger.mark()

    def puts_out(_: nn.Module, __: Any, output: Any) -> None:
        hidden = output if isinstance(output, Tensor) else output[0]
        # Checkpointing comes by once more, in the backward pass.
        if not found.live_after_forward:
            found.live_after_forward, found.peak_at_output = ledger.live.all, ledger.mark().all
            hidden.register_hook(comes_back)

    handle = layer.register_forward_hook(puts_out)
    try:
        yield found
    finally:
        handle.remove()


@torch.no_grad()
def _prefill(model: Any, length_tokens: int, requests: int, chunk_tokens: int) -> tuple[int, int]:
    """The peak beside weights of a model of few layers, and how many it has."""
    ledger = Ledger(hollow=True)
    cache = DynamicCache(config=model.config)
    with _without_numbers(model.eval(), ledger):
        before = ledger.live.all
        for start in range(0, length_tokens, chunk_tokens):
            end = min(start + chunk_tokens, length_tokens)
            ids = torch.zeros(requests, end - start, dtype=torch.long)
            positions = torch.arange(start, end).expand(requests, -1)
            model(input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return ledger.peak.all - before, len(decoder_blocks(model))


def _hollow_model(config: PreTrainedConfig, num_layers: int, dtype: torch.dtype, tuning: Tuning | None = None) -> Any:
    """A model of few layers without numbers, tuned where that is asked."""
    with quiet_transformers(), torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(_with_layers(config, num_layers), dtype=dtype)
        four_bit = four_bit_layers(model) if isinstance(tuning, QloraTuning) else {}
        for layer in four_bit.values():
            layer.forward = partial(_as_in_four_bits, layer)
        tuned: Any = model if tuning is None else apply_tuning(model, tuning)
    hollow: dict[int, Tensor] = {}
    for module in tuned.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                made = nn.Parameter(HollowTensor(parameter.data), parameter.requires_grad)
                # Tied ones stay tied.
                module._parameters[name] = hollow.setdefault(id(parameter), made)  # pyright: ignore
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = HollowTensor(buffer)
    return tuned


@contextmanager
def _without_numbers(model: nn.Module, ledger: Ledger) -> Iterator[None]:
    """Within, a hollow model runs, and the ledger counts; parameters are counted already."""
    for parameter in model.parameters():
        ledger.add(parameter)
    ledger.mark()
    with quiet_transformers(), _as_in_earnest(), ledger:
        try:
            yield
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
    """Within, the library makes masks as for real tensors, and the loss goes over a few of its slices.

    The library takes tensors without numbers for an export, where it may not look at numbers, and would hold a mask of
    all pairs where all tokens count and none is needed.
    """
    is_tracing, slice_starts = masking_utils.is_tracing, loss.slice_starts
    masking_utils.is_tracing = lambda *_: False
    loss.slice_starts = _few_slices
    try:
        yield
    finally:
        masking_utils.is_tracing, loss.slice_starts = is_tracing, slice_starts


def _few_slices(num_tokens: int, rows: int) -> Sequence[int]:
    starts = range(0, num_tokens, rows)
    return [*starts[:_SLICES], *starts[_SLICES:][-1:]]


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
