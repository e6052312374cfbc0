"""An oracle for traces: all slices of the loss and real gradients, on torch's own fake tensors."""

import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.weak import WeakIdKeyDictionary
from transformers import AutoModelForCausalLM, DynamicCache, masking_utils

from skipwise import loss
from skipwise.config import QloraTuning, Tuning
from skipwise.hollow import Ledger
from skipwise.memory import Moment, StepProfile
from skipwise.plan.shape import decoder_blocks
from skipwise.plan.trace import Step, run_in_four_bits, with_layers
from skipwise.train.tuning import apply_tuning

ANSWERS = {
    torch.ops.aten._local_scalar_dense.default: 1,
    torch.ops.aten.item.default: 1,
    torch.ops.aten.equal.default: True,
}


class FullLedger(TorchDispatchMode):
    """Bytes of all tensors that are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known = WeakIdKeyDictionary()

    def mark(self) -> int:
        before, self.peak = self.peak, self.live
        return before

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self._known:
            size = self._known[storage] = -(-storage.nbytes() // 64) * 64
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._forget, size)

    def _forget(self, size: int) -> None:
        self.live -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in ANSWERS:
            return ANSWERS[func]
        out = func(*args, **(kwargs or {}))
        for value in tree_iter(out):
            if isinstance(value, Tensor):
                self.add(value)
        return out


def prepare(tuned: Any, *, checkpointing: bool, library_loss: bool = False) -> Any:
    """Makes a model train as the Trainer does; the model without its adapters."""
    tuned.train()
    if checkpointing:
        tuned.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        tuned.enable_input_require_grads()
    plain = tuned.get_base_model() if hasattr(tuned, "get_base_model") else tuned
    if not library_loss:
        loss.use_chunked_loss(plain)
    return plain


def really_held(
    model: Any, tuning: Tuning, window_tokens: int, *, checkpointing: bool, autocast: torch.dtype | None
) -> list[int]:
    """Peaks of the first and the second micro-batch of a real model, beside its parameters; it stays tuned."""
    tuned: Any = apply_tuning(model, tuning)
    prepare(tuned, checkpointing=checkpointing)
    ledger, peaks = Ledger(), []
    for parameter in tuned.parameters():
        ledger.add(parameter)
    with ledger:
        ids = torch.randint(3, 200, (1, window_tokens))
        positions = torch.arange(window_tokens)[None]
        before = ledger.live.all
        for _ in range(2):
            ledger.mark()
            with torch.autocast("cpu", autocast) if autocast else nullcontext():
                mean = tuned(input_ids=ids, position_ids=positions, labels=ids)["loss"]
            mean.backward()
            peaks.append(ledger.peak.all - before)
            del mean
    return peaks


def full_step(config: Any, step: Step, *, gradients_held: bool) -> StepProfile:
    """What `Tracer.step` returns for one kind of micro-batch."""
    with fake_model(config, 3, step.dtype, step.tuning) as (tuned, ledger):
        plain = prepare(tuned, checkpointing=step.checkpointing, library_loss=step.library_loss)
        blocks = decoder_blocks(plain)
        made = 0 if gradients_held else sum(p.nbytes for p in blocks[-1].parameters() if p.requires_grad)
        with ledger:
            if gradients_held:
                for parameter in tuned.parameters():
                    parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
            ids = torch.zeros(step.batch, step.window_tokens, dtype=torch.long)
            positions = torch.arange(step.window_tokens).expand(step.batch, -1)
            ledger.mark()
            before = ledger.live
            # In the order in which layers put out: alive and peak there, and when their gradient comes back.
            at_output: dict[nn.Module, tuple[int, int]] = {}
            at_gradient: dict[nn.Module, tuple[int, int]] = {}

            def puts_out(layer: nn.Module, _: Any, output: Any) -> None:
                if layer not in at_output:
                    at_output[layer] = ledger.live, ledger.mark()
                    hidden = output if isinstance(output, Tensor) else output[0]
                    hidden.register_hook(lambda _: at_gradient.update({layer: (ledger.live, ledger.mark())}))

            for block in dict.fromkeys((blocks[-1], blocks[-2], blocks[0])):
                block.register_forward_hook(puts_out)
            with torch.autocast("cpu", step.autocast) if step.autocast else nullcontext():
                rows = {"diluted": torch.ones(step.batch, dtype=torch.bool)} if step.diluted else {}
                mean = tuned(input_ids=ids, position_ids=positions, labels=ids, **rows)["loss"]
            after_layers = ledger.mark()
            mean.backward()
        (last, _), (below, _) = at_output[blocks[-1]], at_output[blocks[-2]]
        (last_back, last_peak), (below_back, below_peak) = at_gradient[blocks[-1]], at_gradient[blocks[-2]]
        forward = max(after_layers, *(peak for _, peak in at_output.values())) - before
        moments = (
            (last - below, forward),
            (last_back - below_back + made, max(last_peak, below_peak) - before),
            (made, ledger.peak - before),
        )
        return StepProfile(
            moments=tuple(Moment(each, peak - len(blocks) * each) for each, peak in moments),
            gradients_held=gradients_held,
            loss_bytes=after_layers - last,
        )


def full_prefill(config: Any, length_tokens: int, chunk_tokens: int, dtype: torch.dtype) -> Moment:
    """What `Tracer.prefill` returns."""
    peaks = []
    for layers in (3, 4):
        with fake_model(config, layers, dtype) as (model, ledger), torch.no_grad():
            model.eval()
            cache = DynamicCache(config=model.config)
            with ledger:
                ledger.mark()
                before, num_layers = ledger.live, len(decoder_blocks(model))
                for start in range(0, length_tokens, chunk_tokens):
                    end = min(start + chunk_tokens, length_tokens)
                    ids, places = torch.zeros(1, end - start, dtype=torch.long), torch.arange(start, end).expand(1, -1)
                    model(input_ids=ids, position_ids=places, past_key_values=cache, use_cache=True, logits_to_keep=1)
                peaks.append((ledger.peak - before, num_layers))
    (few, num_layers), (more, _) = peaks
    return Moment(per_layer=more - few, outside=few - num_layers * (more - few))


def is_tracing(*_: Any) -> bool:
    """Not a mock, which would keep its arguments alive."""
    return False


@contextmanager
def fake_model(
    config: Any, num_layers: int, dtype: torch.dtype, tuning: Tuning | None = None
) -> Iterator[tuple[Any, FullLedger]]:
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(with_layers(config, num_layers), dtype=dtype)
        if isinstance(tuning, QloraTuning):
            run_in_four_bits(model)
        tuned: Any = model if tuning is None else apply_tuning(model, tuning)
    with (
        warnings.catch_warnings(),
        FakeTensorMode(allow_non_fake_inputs=True),
        mock.patch.object(masking_utils, "is_tracing", is_tracing),
        mock.patch.object(loss, "HollowTensor", FakeTensor),
    ):
        warnings.simplefilter("ignore", FutureWarning)
        fake: dict[int, Tensor] = {}
        for module in tuned.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    made = nn.Parameter(torch.empty_like(parameter, device="cpu"), parameter.requires_grad)
                    module._parameters[name] = fake.setdefault(id(parameter), made)
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = torch.empty_like(buffer, device="cpu")
        ledger = FullLedger()
        for parameter in tuned.parameters():
            ledger.add(parameter)
        yield tuned, ledger
