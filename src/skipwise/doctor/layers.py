"""The probe of every layer: one that hides chunk one is not made good by another that shows it.

The network as a whole lets chunk two see chunk one as soon as a single path does, be it one attention layer of many, or
a recurrent or convolutional path beside attention that is isolated. So each module that mixes tokens is asked for
itself: its inputs are cut off from what made them, and its own output is traced back to them.
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
    """In every module that mixes tokens, chunk two's output depends on chunk one's input to that module."""
    modules = mixers(bench)
    if not modules:
        detail = "no module takes hidden states and attention_mask, so the layers are proved as a whole only (reach)"
        return Verdict(name="layers", status="note", detail=detail)
    skips = sorted({1, bench.longest_skip})
    over_skips = [shares(bench, modules, skip) for skip in skips]
    share = {path: min(found[path] for found in over_skips) for path in modules}
    # A key that is masked out has no gradient at all, while heads that see chunk one may look away to any degree.
    isolated = [path for path, found in share.items() if found == 0]
    over = f"over skips of {', '.join(map(str, skips))}"
    if isolated:
        detail = f"{over} {len(isolated)} of {len(share)} modules that mix tokens hide chunk one: {_named(isolated)}"
    else:
        least = min(share, key=share.__getitem__)
        detail = (
            f"{over} chunk one has {share[least]:.2g} or more of chunk two's gradient in each of {len(share)} modules "
            f"that mix tokens (least in {least})"
        )
    if untold := _without(bench.model, modules):
        detail += f"; no such module could be told apart in {_named(untold)}"
    cure = (
        "these layers would not learn the new distances: load the model with another attention (eager, sdpa), with "
        "another transformers version, or without its own code where that ignores attention_mask"
    )
    return judge("layers", not isolated, detail, cure)


def mixers(bench: Bench) -> dict[str, nn.Module]:
    """The modules that mix tokens, by path: attention, and where it is given the mask, what stands in its place.

    They are told by what they do, as names differ: a module that takes an `attention_mask` and turns hidden states into
    hidden states, and holds no other that does so as well (a decoder layer does both, and holds its attention). What
    merely chooses keys for attention takes the mask too, but gives indices.
    """
    candidates = {path: module for path, module in bench.model.named_modules() if path and _takes_mask(module)}
    mixing: set[nn.Module] = set()

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if _hidden((*args, *kwargs.values()), bench.n) and _hidden(_several(output), bench.n):
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
    """What chunk one's inputs to a module contribute to its outputs of chunk two, beside what chunk two's do.

        max over tokens i of chunk one |g[i]| / max over tokens j of chunk two |g[j]|

    where g is the gradient, at the inputs, of the outputs of chunk two along a random direction. One pass as training
    makes it, and one backward pass through each module alone; where training recomputes its layers, so do these.

    Returns:
        By path; zero where the backward pass finds no way from chunk two to chunk one.
    """
    # Keys and values that a layer has from an earlier one lead back to that one's inputs, which is why all are kept.
    leaves: list[Tensor] = []
    outputs: dict[nn.Module, Tensor] = {}
    recording = True

    def cut(value: Any) -> Any:
        if not _hidden((value,), bench.n):
            return value
        leaves.append(value.detach().requires_grad_())
        return leaves[-1]

    def cut_inputs(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return tuple(map(cut, args)), {name: cut(value) for name, value in kwargs.items()}

    def keep_output(module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        if recording:  # Layers that are recomputed come by again, and their graph is that of the first time.
            outputs[module] = _hidden(_several(output), bench.n)[0]

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


def _several(output: Any) -> tuple[Any, ...]:
    return output if isinstance(output, tuple) else (output,)


def _hidden(values: tuple[Any, ...], n: int) -> list[Tensor]:
    """Those of the values that hold a vector for each token of the probe: (1, n, width), real numbers."""
    return [
        value
        for value in values
        if isinstance(value, Tensor) and value.is_floating_point() and value.ndim == 3 and value.shape[:2] == (1, n)
    ]


def _without(model: nn.Module, modules: dict[str, nn.Module]) -> list[str]:
    """Paths of layers that hold none of the modules, in lists of layers where others do."""
    layers = [match.groups() for path in modules if (match := re.match(r"(.*?)\.(\d+)\b", path))]
    lists = dict.fromkeys(path for path, _ in layers)
    return [
        f"{path}.{number}"
        for path in lists
        for number, _ in model.get_submodule(path).named_children()
        if (path, number) not in layers
    ]


def _named(paths: list[str]) -> str:
    more = len(paths) - _NAMED_AT_MOST
    return ", ".join(paths[:_NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")
