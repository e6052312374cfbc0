"""The probe of every layer: a layer that hides chunk one is a fault even if other layers show it.

In the network as a whole, chunk two sees chunk one as soon as a single path does: one attention layer of many, or a
recurrent or convolutional path beside isolated attention. So each module that mixes tokens is tested on its own. Its
inputs are detached from the rest of the graph, and its output is traced back to them.
"""

import inspect
import re
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from skipwise.doctor.bench import Bench
from skipwise.loss import training_inputs
from skipwise.records.verdict import Verdict, judge

_NAMED_AT_MOST = 4


def layers(bench: Bench) -> Verdict:
    """Checks that in every module that mixes tokens, chunk two's output depends on chunk one's input."""
    modules = mixers(bench)
    if not modules:
        detail = "no module takes hidden states and attention_mask, so the layers are only tested as a whole (reach)"
        return Verdict(name="layers", status="note", detail=detail)
    skips = sorted({1, bench.longest_skip})
    over_skips = [shares(bench, modules, skip) for skip in skips]
    share = {path: min(found[path] for found in over_skips) for path in modules}
    # The gradient of a masked key is exactly zero. Heads that see chunk one may give it arbitrarily little weight.
    isolated = [path for path, found in share.items() if found == 0]
    over = f"over skips of {', '.join(map(str, skips))}"
    if isolated:
        detail = f"{over} {len(isolated)} of {len(share)} modules that mix tokens hide chunk one: {_listed(isolated)}"
    else:
        least = min(share, key=share.__getitem__)
        detail = (
            f"{over} chunk one has at least {share[least]:.2g} of chunk two's gradient in each of {len(share)} modules "
            f"that mix tokens (least in {least})"
        )
    if missing := _layers_without(bench.model, modules):
        detail += f"; no such module was found in {_listed(missing)}"
    cure = (
        "these layers would not learn the new distances: load the model with another attention (eager, sdpa), with "
        "another transformers version, or without its own code if that ignores attention_mask"
    )
    return judge("layers", not isolated, detail, cure)


def mixers(bench: Bench) -> dict[str, nn.Module]:
    """The modules that mix tokens, by path: attention, and its replacements if they take the attention mask.

    They are recognized by what they do, because names differ: such a module takes an `attention_mask`, maps hidden
    states to hidden states, and contains no other module that does both. (A decoder layer does both, but contains its
    attention.) Modules that only select keys for attention also take the mask, but return indices.
    """
    candidates = {path: module for path, module in bench.model.named_modules() if path and _takes_mask(module)}
    mixing: set[nn.Module] = set()

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if _hidden_states((*args, *kwargs.values()), bench.n) and _hidden_states(_as_tuple(output), bench.n):
            mixing.add(module)

    with ExitStack() as hooks:
        for module in candidates.values():
            hooks.callback(module.register_forward_hook(look, with_kwargs=True).remove)
        bench.logits(bench.positions(bench.longest_skip))
    return {
        path: module
        for path, module in candidates.items()
        if module in mixing and not mixing & set(module.modules()) - {module}
    }


def shares(bench: Bench, modules: dict[str, nn.Module], skip: int) -> dict[str, float]:
    """How much chunk one's inputs to a module contribute to its outputs of chunk two, relative to chunk two's inputs.

        max over tokens i of chunk one |g[i]| / max over tokens j of chunk two |g[j]|

    Here g is the gradient, at the inputs, of chunk two's outputs along a random direction. This takes one forward pass
    as in training, and one backward pass through each module alone. With gradient checkpointing, layers are recomputed
    as in training.

    Returns:
        Shares by path; zero if the backward pass finds no path from chunk two to chunk one.
    """
    # All inputs are kept: keys and values that a layer shares with an earlier layer lead back to that layer's inputs.
    leaves: list[Tensor] = []
    outputs: dict[nn.Module, Tensor] = {}
    recording = True

    def cut(value: Any) -> Any:
        if not _hidden_states((value,), bench.n):
            return value
        leaves.append(value.detach().requires_grad_())
        return leaves[-1]

    def cut_inputs(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return tuple(map(cut, args)), {name: cut(value) for name, value in kwargs.items()}

    def keep_output(module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        if recording:  # Recomputed layers run this hook again, but the graph to use is that of the first pass.
            outputs[module] = _hidden_states(_as_tuple(output), bench.n)[0]

    with ExitStack() as hooks, torch.enable_grad():
        for module in modules.values():
            hooks.callback(module.register_forward_pre_hook(cut_inputs, with_kwargs=True).remove)
            hooks.callback(module.register_forward_hook(keep_output).remove)
        bench.seed()
        with bench.autocast():
            bench.model(**training_inputs(bench.ids, bench.positions(skip)))
        recording = False
        return {path: _share(outputs[module], leaves, bench.half) for path, module in modules.items()}


def _share(output: Tensor, leaves: list[Tensor], half: int) -> float:
    two = output[:, half:]
    if not two.requires_grad:
        return 0.0
    gradients = torch.autograd.grad(two, leaves, torch.randn_like(two), retain_graph=True, allow_unused=True)
    lengths = [gradient[0].float().norm(dim=-1).cpu() for gradient in gradients if gradient is not None]
    strongest = torch.stack([torch.zeros(leaves[0].shape[1]), *lengths]).amax(dim=0)
    whole = strongest[half:].max().item()
    return strongest[:half].max().item() / whole if whole else 0.0


def _takes_mask(module: nn.Module) -> bool:
    return "attention_mask" in inspect.signature(module.forward).parameters


def _as_tuple(output: Any) -> tuple[Any, ...]:
    return output if isinstance(output, tuple) else (output,)


def _hidden_states(values: tuple[Any, ...], n: int) -> list[Tensor]:
    """The values that hold one vector per token of the probe: floating point tensors (1, n, width)."""
    return [
        value
        for value in values
        if isinstance(value, Tensor) and value.is_floating_point() and value.ndim == 3 and value.shape[:2] == (1, n)
    ]


def _layers_without(model: nn.Module, modules: dict[str, nn.Module]) -> list[str]:
    """Paths of layers that contain none of the modules, in layer lists in which other layers do."""
    layers = [match.groups() for path in modules if (match := re.match(r"(.*?)\.(\d+)\b", path))]
    lists = dict.fromkeys(path for path, _ in layers)
    return [
        f"{path}.{number}"
        for path in lists
        for number, _ in model.get_submodule(path).named_children()
        if (path, number) not in layers
    ]


def _listed(paths: list[str]) -> str:
    more = len(paths) - _NAMED_AT_MOST
    return ", ".join(paths[:_NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")
