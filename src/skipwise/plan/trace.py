"""Memory of a training step or a prefill, found by running it on tensors without data.

A formula for activations has to know every model class, and is wrong if a class does something special. Here the user's
own class runs with the loss, tuning and checkpointing of a real run, on hollow tensors (`skipwise.hollow`): nothing is
computed or stored, and a ledger counts what would be. Only the parts that differ are run:

    layers     three; each further layer adds what the third adds
    loss       the first three slices and the last; from the third on, each slice holds the same
    gradients  one run gives both readings: with and without gradients from an earlier micro-batch
"""

import copy
import gc
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedConfig

from skipwise import loss
from skipwise.config import FullTuning, QloraTuning, Tuning
from skipwise.errors import UnsupportedModelError
from skipwise.hollow import Bytes, Ledger, hollow_out
from skipwise.memory import Moment, StepProfile
from skipwise.model import four_bit_layers
from skipwise.model.source import quiet_transformers
from skipwise.plan.shape import decoder_blocks
from skipwise.runtime.caches import cache_name
from skipwise.train.tuning import apply_tuning

# The second layer differs from the third: the input of a layer that nobody needs again is freed by the next layer.
_LAYERS = 3
_SLICES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One micro-batch of training, as far as its memory depends on it.

    Attributes:
        window_tokens: length of a training example.
        batch: examples in the micro-batch.
        tuning: what is trained.
        checkpointing: gradient checkpointing.
        dtype: dtype of the parameters.
        autocast: dtype of mixed precision; None without it.
        diluted: diluted attention, whose mask covers all pairs of tokens (see `skipwise.loss.diluted_mask`).
        library_loss: the model class's own loss, which keeps all logits; skipwise computes its loss in slices.
    """

    window_tokens: int
    batch: int = 1
    tuning: Tuning = FullTuning()  # noqa: RUF009 - frozen
    checkpointing: bool = True
    dtype: torch.dtype = torch.float32
    autocast: torch.dtype | None = None
    diluted: bool = False
    library_loss: bool = False


class StepProfiles(NamedTuple):
    """Memory of the micro-batches of a step.

    Attributes:
        first: the micro-batch that creates the gradients.
        further: a later one, when all gradients exist.
    """

    first: StepProfile
    further: StepProfile


class Tracer:
    """Runs training steps and prefills of one model without data.

    Args:
        config: config of the model.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        self._config = config
        self._for_training: dict[Step, Any] = {}

    def step(self, step: Step) -> StepProfiles:
        """Memory of a micro-batch beside parameters and optimizer state.

        Raises:
            UnsupportedModelError: the model's code reads values, as routers of experts do.
        """
        tuned = self._tuned(step)
        ledger, blocks = Ledger(hollow=True), decoder_blocks(_without_adapters(tuned))
        last, below, first = blocks[-1], blocks[-2], blocks[0]
        # Live bytes and peak when a layer returns its output, and when the gradient of that output arrives.
        at_output: dict[nn.Module, tuple[int, int]] = {}
        at_gradient: dict[nn.Module, tuple[Bytes, Bytes]] = {}

        def returns(layer: nn.Module, _: Any, output: Any) -> None:
            if layer not in at_output:  # Checkpointing runs it again in the backward pass.
                at_output[layer] = ledger.live.all, ledger.mark().all
                hidden = output if isinstance(output, Tensor) else output[0]
                hidden.register_hook(lambda _: at_gradient.update({layer: (ledger.live, ledger.mark())}))

        with _without_data(tuned, ledger), _accumulated(tuned, ledger), ExitStack() as hooks:
            for layer in {last, below, first}:
                hooks.callback(layer.register_forward_hook(returns).remove)
            ids = torch.zeros(step.batch, step.window_tokens, dtype=torch.long)
            positions = torch.arange(step.window_tokens).expand(step.batch, -1)
            ledger.mark()
            before = ledger.live.all
            with torch.autocast("cpu", step.autocast) if step.autocast else nullcontext():
                rows = {"diluted": torch.ones(step.batch, dtype=torch.bool)} if step.diluted else {}
                mean = tuned(input_ids=ids, position_ids=positions, labels=ids, **rows)["loss"]
            after_layers = ledger.mark().all
            mean.backward()
        forward = max(after_layers, *(peak for _, peak in at_output.values())) - before
        # Each layer keeps as much as the last one, and releases as much in the backward pass beside its gradients.
        added = at_output[last][0] - at_output[below][0]
        made = sum(p.nbytes for p in last.parameters() if p.requires_grad)

        def profile(reading: str, gradients: int) -> StepProfile:
            live, peak = ([getattr(at_gradient[layer][i], reading) for layer in (last, below)] for i in (0, 1))
            moments = (
                (added, forward),
                (live[0] - live[1] + gradients, max(peak) - before),
                (gradients, getattr(ledger.peak, reading) - before),
            )
            return StepProfile(
                moments=tuple(Moment(each, most - len(blocks) * each) for each, most in moments),
                gradients_held=reading == "beside",
                loss_bytes=after_layers - at_output[last][0],
            )

        return StepProfiles(first=profile("all", made), further=profile("beside", 0))

    def prefill(
        self, length_tokens: int, *, chunk_tokens: int | None = None, dtype: torch.dtype = torch.float32
    ) -> Moment:
        """Peak of reading a prompt beside the weights: the cache per layer, and one layer's work with the last logits.

        Args:
            length_tokens: length of the prompt.
            chunk_tokens: tokens per forward pass; None for one pass.
            dtype: dtype of weights and cache.

        Raises:
            UnsupportedModelError: as `step`.
        """
        chunk = chunk_tokens or length_tokens
        (few, num_layers), (more, _) = (
            _prefill(_hollow_model(self._config, layers, dtype), length_tokens, chunk)
            for layers in (_LAYERS, _LAYERS + 1)
        )
        return Moment(per_layer=more - few, outside=few - num_layers * (more - few))

    def _tuned(self, step: Step) -> Any:
        """The model prepared for training, built once for all lengths."""
        key = replace(step, window_tokens=0, batch=0, autocast=None, diluted=False)
        if key not in self._for_training:
            tuned = _hollow_model(self._config, _LAYERS, step.dtype, step.tuning).train()
            if step.checkpointing:
                with warnings.catch_warnings():
                    # The Trainer uses this method too, although it is deprecated.
                    warnings.simplefilter("ignore", FutureWarning)
                    tuned.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
                tuned.enable_input_require_grads()
            if not step.library_loss:
                loss.use_chunked_loss(_without_adapters(tuned))
            self._for_training[key] = tuned
        return self._for_training[key]


def _without_adapters(tuned: Any) -> Any:
    return tuned.get_base_model() if hasattr(tuned, "get_base_model") else tuned


@contextmanager
def _accumulated(model: nn.Module, ledger: Ledger) -> Iterator[None]:
    """Reports finished gradients to the ledger; they are removed afterwards."""
    with ExitStack() as hooks:
        for parameter in (parameter for parameter in model.parameters() if parameter.requires_grad):
            handle = parameter.register_post_accumulate_grad_hook(lambda its: ledger.accumulated(its.grad))
            hooks.callback(handle.remove)
            hooks.callback(setattr, parameter, "grad", None)
        yield


@torch.no_grad()
def _prefill(model: Any, length_tokens: int, chunk_tokens: int) -> tuple[int, int]:
    """Peak beside weights, and number of layers, of a model with few layers."""
    ledger = Ledger(hollow=True)
    cache = DynamicCache(config=model.config)
    with _without_data(model.eval(), ledger):
        before = ledger.live.all
        for start in range(0, length_tokens, chunk_tokens):
            end = min(start + chunk_tokens, length_tokens)
            ids = torch.zeros(1, end - start, dtype=torch.long)
            positions = torch.arange(start, end)[None]
            kept = {cache_name(model): cache, "use_cache": True}
            model(input_ids=ids, position_ids=positions, **kept, logits_to_keep=1)
        return ledger.peak.all - before, len(decoder_blocks(model))


def _hollow_model(config: PreTrainedConfig, num_layers: int, dtype: torch.dtype, tuning: Tuning | None = None) -> Any:
    """A model with few layers and without data, tuned if asked for."""
    with quiet_transformers(), torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(with_layers(config, num_layers), dtype=dtype)
        if isinstance(tuning, QloraTuning):
            run_in_four_bits(model)
        tuned: Any = model if tuning is None else apply_tuning(model, tuning)
    hollow_out(tuned)
    return tuned


@contextmanager
def _without_data(model: nn.Module, ledger: Ledger) -> Iterator[None]:
    """Runs a hollow model under the ledger, which already counts its parameters, and a few slices of the loss."""
    for parameter in model.parameters():
        ledger.add(parameter)
    ledger.mark()
    collects, slice_starts = gc.isenabled(), loss.slice_starts
    gc.disable()  # Thousands of short-lived tensors would start it again and again; none is part of a cycle.
    loss.slice_starts = _few_slices
    try:
        with quiet_transformers(), ledger:
            yield
    except (RuntimeError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot be run without data ({type(error).__name__}: {reason})"
        ) from error
    finally:
        loss.slice_starts = slice_starts
        if collects:
            gc.enable()


def _few_slices(num_tokens: int, rows: int) -> Sequence[int]:
    starts = range(0, num_tokens, rows)
    return [*starts[:_SLICES], *starts[_SLICES:][-1:]]


def run_in_four_bits(model: Any) -> None:
    """Makes linear layers hold what bitsandbytes' 4-bit layers hold in a forward and backward pass."""
    for layer in four_bit_layers(model).values():
        layer.forward = partial(_forward_in_four_bits, layer)


class _FourBitProduct(torch.autograd.Function):
    """Product with a 4-bit weight: each pass dequantizes the weight and frees it again; the input is not kept."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        # peft copies the output of a 4-bit layer.
        return nn.functional.linear(hidden, torch.empty_like(weight, dtype=hidden.dtype), bias).clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        return gradient @ torch.empty_like(ctx.weight).to(gradient.dtype), None, None


def _forward_in_four_bits(layer: Any, hidden: Tensor) -> Tensor:
    computes_in = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else hidden.dtype
    bias = None if layer.bias is None else layer.bias.to(computes_in)
    return _FourBitProduct.apply(hidden.to(computes_in), layer.weight, bias).to(hidden.dtype)  # pyright: ignore


def with_layers(config: PreTrainedConfig, num_layers: int) -> PreTrainedConfig:
    """The config of the same model with few layers.

    If layers attend in several ways, all are of the kind that sees the whole text, which holds most memory, after one
    layer of another kind for the mask that it adds.
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
