"""Context parallelism: each window's tokens over several processes, by PyTorch's own ring attention.

Keys and values go round among the processes of a group while each attends for its own tokens. All else of a decoder
looks at one token at a time, so a process holds the activations of its part alone. Groups are made of consecutive
processes. All of a group get the same items, each its part of them, and gradients are summed over all processes as
without groups; so what a run trains is what as many processes as there are groups would train.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.experimental import context_parallel
from torch.utils.data import Sampler

from skipwise.attention import SDPA, refusing_masks
from skipwise.config import RunConfig
from skipwise.doctor import Verdict
from skipwise.doctor.bench import local_span, rms, undisturbed
from skipwise.errors import ConfigError
from skipwise.loss import IGNORED, training_inputs
from skipwise.records.verdict import judge
from skipwise.train.ring import use_ring_on_cpu
from skipwise.window import Window

# Of a part of the probe, and how far attention over parts may be from that over the whole, where 1 is what it would be
# if no part saw another: in 16 bits rounding makes about a hundredth of it.
_PROBE_TOKENS = 16
_SMALL = 0.1


def check_context(
    config: RunConfig, base: transformers.PreTrainedConfig, windows: Sequence[Window], processes: int | None = None
) -> None:
    """Refuses windows that cannot be split, without a look at weights or documents.

    Args:
        config: the run.
        base: the model's config.
        windows: of each stage.
        processes: of the run; by default as many as this process is one of.

    Raises:
        ConfigError: no whole groups of processes, parts of unequal length, or attention that cannot go round.
    """
    size = config.parallel.context
    if size == 1:
        return
    given = f"setting 'parallel.context' is {size}"
    processes = processes or _world_size()
    if processes % size:
        some = "1 process makes" if processes == 1 else f"{processes} processes make"
        raise ConfigError(
            f"{given}, and {some} no whole groups of as many: give --launch ddp --nproc {size}, or a multiple"
        )
    for tokens in (window.train for window in windows):
        if tokens % (2 * size):
            raise ConfigError(
                f"{given}, and a window of {tokens} tokens does not divide into two pieces for each of {size} "
                f"processes: give one of {tokens - tokens % (2 * size) or 2 * size}, or another multiple of {2 * size}"
            )
    if config.attention not in (None, SDPA):
        raise ConfigError(
            f"{given}, and 'attention' is {config.attention!r}; parts of a window attend to one another by "
            f"--attention {SDPA} alone"
        )
    span, longest = local_span(base.get_text_config(decoder=True)), max(window.train for window in windows)
    if span is not None and span < longest:
        raise ConfigError(
            f"{given}, and layers of this model attend to {span} tokens alone, where windows have {longest}; PyTorch's "
            "context parallelism knows full attention only: leave it out"
        )


def num_groups(config: RunConfig) -> int:
    """How many batches are trained at a time, by as many groups of processes."""
    return max(1, _world_size() // config.parallel.context)


def context_group(config: RunConfig, device: torch.device) -> "ContextGroup | None":
    """This process's group; None where each process has windows of its own. All processes call this."""
    return ContextGroup(config.parallel.context, device) if config.parallel.context > 1 else None


class ContextGroup:
    """The processes that hold each window together, this one among them.

    Args:
        size: how many; it divides the number of all processes.
        device: that this one computes on.

    Attributes:
        size: as given.
        is_first: whether this process is the group's first.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        shape = (torch.distributed.get_world_size() // size, size)
        self._mesh = init_device_mesh(device.type, shape, mesh_dim_names=("group", "context"))["context"]
        self.size = size
        self.is_first = self._mesh.get_local_rank() == 0
        if device.type == "cpu":
            use_ring_on_cpu()

    @contextmanager
    def part_of(self, columns: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        """Within, attention is over the whole window, though each process has a part of it; the backward pass, too.

        Args:
            columns: by name, a value a token (batch, n), alike in all processes of the group. What is missing to a
                length that divides is filled up with their last value.

        Yields:
            Of each column this process's part (batch, m): a piece from the first half and its counterpart from the
            second, so that all have as many pairs of query and key.
        """
        n = next(iter(columns.values())).shape[1]
        missing = -n % (2 * self.size)
        parts = {name: torch.cat([own, own[:, -1:].expand(-1, missing)], dim=1) for name, own in columns.items()}
        buffers = list(parts.values())
        with (
            context_parallel(
                self._mesh, buffers=buffers, buffer_seq_dims=[1] * len(buffers), no_restore_buffers={*buffers}
            ),
            refusing_masks(),
        ):
            yield parts

    @contextmanager
    def training_part_of(self, batch: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        """Within, this process's part of a batch, as `part_of`; labels are shifted before they are split.

        Args:
            batch: `input_ids`, `position_ids` and `labels` (batch, n).
        """
        labels = batch["labels"]
        shifted = torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], IGNORED)], dim=1)
        kept = {name: batch[name] for name in ("input_ids", "position_ids")}
        with self.part_of(kept | {"shift_labels": shifted}) as part:
            yield part

    def summed(self, value: Tensor) -> Tensor:
        """The sum of a value over the group; the value itself stays."""
        total = value.detach().clone()
        torch.distributed.all_reduce(total, group=self._mesh.get_group())
        return total


class GroupSampler(Sampler):
    """Places in order, each batch once for every process of a group, as batches are dealt to processes in turn.

    Args:
        num_items: places, whole batches of them.
        batch: places of a batch.
        size: processes of a group.
    """

    def __init__(self, num_items: int, batch: int, size: int) -> None:
        self._num_items, self._batch, self._size = num_items, batch, size

    def __len__(self) -> int:
        return self._num_items * self._size

    def __iter__(self) -> Iterator[int]:
        for start in range(0, self._num_items, self._batch):
            for _ in range(self._size):
                yield from range(start, start + self._batch)


def probe_context(
    model: transformers.PreTrainedModel, window: Window, group: ContextGroup, precision: torch.dtype | None, seed: int
) -> Verdict:
    """Proves on the model, the device and the versions in use that parts of a window make what the whole makes.

        share = rms(parts - whole) / rms(alone - whole)

    of hidden states, and of gradients at the embeddings, where `alone` is what parts make that do not see one another.

    Args:
        model: whole, on the device and in the dtype that training uses.
        window: lengths of the run, in tokens.
        group: this process's.
        precision: 16-bit type that training computes in by autocast; None where it has none.
        seed: of the random tokens, the same in all processes.

    Returns:
        The verdict, the same in all processes.
    """
    try:
        with undisturbed(model, gradient_checkpointing=False):
            # Dropout draws other units for a part than for the whole.
            share = _share(model.eval(), window, group, precision, seed)
        found = f"parts of a window in {group.size} processes miss what the whole makes by {share:.1e} of their context"
    except Exception as error:  # The model's code is anyone's, and PyTorch's kernels refuse in words of their own.
        share, message = np.nan, next(iter(str(error).strip().splitlines()), "no message")
        found = f"attention over parts of a window stopped with {type(error).__name__}: {message[:200]}"
    cure = f"leave parallel.context out, or try --attention {SDPA} and, on an accelerator, training.bf16=true"
    return judge("context", share < _SMALL, found, cure)


def _share(model: Any, window: Window, group: ContextGroup, precision: torch.dtype | None, seed: int) -> float:
    rng, device, n = np.random.default_rng(seed), model.device, _PROBE_TOKENS * group.size
    decoder: nn.Module = model.base_model
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    places = torch.arange(n, device=device)[None]
    skip = window.target - n if n < window.target else 0
    whole = {
        "input_ids": torch.from_numpy(rng.integers(vocabulary, size=(1, n))).to(device),
        "position_ids": places + skip * (places >= n // 2),
    }
    direction: Tensor | None = None

    def made(input_ids: Tensor, position_ids: Tensor, at: Tensor) -> list[Tensor]:
        """Hidden states, and gradients at the embeddings, of tokens that stand at these places in the window."""
        nonlocal direction
        leaves: list[Tensor] = []

        def take_leaf(_module: nn.Module, _inputs: Any, embeddings: Tensor) -> Tensor:
            leaves.append(embeddings.detach().requires_grad_())
            return leaves[-1]

        hook = model.get_input_embeddings().register_forward_hook(take_leaf)
        try:
            with torch.enable_grad(), torch.autocast(device.type, precision, enabled=precision is not None):
                hidden = decoder(**training_inputs(input_ids, position_ids)).last_hidden_state.float()
        finally:
            hook.remove()
        if direction is None:
            direction = torch.from_numpy(rng.standard_normal((n, hidden.shape[-1]))).to(hidden)
        (gradient,) = torch.autograd.grad((hidden[0] * direction[at[0]]).sum(), leaves[:1])
        return [hidden[0].detach(), gradient[0].float()]

    expected = made(**whole, at=places)
    with group.part_of(whole | {"at": places}) as part:
        found = made(**part)
    alone = made(**part)
    shares = [
        rms(a - b[part["at"][0]]) / rms(c - b[part["at"][0]]) for a, b, c in zip(found, expected, alone, strict=True)
    ]
    worst = torch.tensor(max(shares) if np.isfinite(shares).all() else np.inf, device=device)
    torch.distributed.all_reduce(worst, op=torch.distributed.ReduceOp.MAX)
    return worst.item()


def _world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))
