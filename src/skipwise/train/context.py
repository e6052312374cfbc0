"""Context parallelism: each window's tokens split over several processes, with PyTorch's ring attention.

Keys and values travel around the processes of a group while each process attends for its own tokens. Everything else in
a decoder looks at one token at a time, so a process holds only the activations of its part. A group is made of
consecutive processes, which all get the same items, each its part of them. Gradients are summed over all processes as
without groups, so a run trains what one process per group would train.
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

from skipwise.attention import SDPA, refusing_masks
from skipwise.config import RunConfig
from skipwise.doctor import Verdict
from skipwise.doctor.bench import local_span, rms, undisturbed
from skipwise.errors import ConfigError
from skipwise.loss import IGNORED, training_inputs
from skipwise.records.verdict import judge
from skipwise.train.ring import use_ring_on_cpu
from skipwise.window import Window

# Tokens of one part of the probe, and how far attention over parts may be from that over the whole. 1 is the distance
# if no part saw another; rounding in 16 bits makes about 0.01.
_PROBE_TOKENS = 16
_SMALL = 0.1


def check_context(
    config: RunConfig, base: transformers.PreTrainedConfig, windows: Sequence[Window], processes: int | None = None
) -> None:
    """Refuses windows that cannot be split, before weights or documents are read.

    Args:
        config: the run.
        base: the model's config.
        windows: of each stage.
        processes: of the run; by default the number in this process's group.

    Raises:
        ConfigError: an incomplete group of processes, parts of unequal length, or attention that cannot be split.
    """
    size = config.parallel.context
    if size == 1:
        return
    given = f"setting 'parallel.context' is {size}"
    processes = processes or _world_size()
    if processes % size:
        some = "1 process makes" if processes == 1 else f"{processes} processes make"
        raise ConfigError(
            f"{given}, and {some} no whole groups of as many: give --launch ddp --nproc {size}, or a multiple",
            page="parallel-run",
        )
    for tokens in (window.train for window in windows):
        if tokens % (2 * size):
            raise ConfigError(
                f"{given}, and a window of {tokens} tokens does not divide into two pieces for each of {size} "
                f"processes: give one of {tokens - tokens % (2 * size) or 2 * size}, or another multiple of {2 * size}",
                page="parallel-run",
            )
    if config.attention not in (None, SDPA):
        raise ConfigError(
            f"{given}, and 'attention' is {config.attention!r}; parts of a window attend to one another by "
            f"--set attention={SDPA} alone",
            page="parallel-run",
        )
    span, longest = local_span(base.get_text_config(decoder=True)), max(window.train for window in windows)
    if span is not None and span < longest:
        raise ConfigError(
            f"{given}, and layers of this model attend to {span} tokens alone, where windows have {longest}; PyTorch's "
            "context parallelism knows full attention only: leave it out",
            page="parallel-run",
        )


def num_groups(config: RunConfig) -> int:
    """Number of groups of processes; each trains one batch at a time."""
    return max(1, _world_size() // config.parallel.context)


def context_group(config: RunConfig, device: torch.device) -> "ContextGroup | None":
    """This process's group; None if each process has windows of its own. All processes call this."""
    return ContextGroup(config.parallel.context, device) if config.parallel.context > 1 else None


class ContextGroup:
    """The processes that hold each window together, this one among them.

    Args:
        size: number of them; it divides the number of all processes.
        device: of this process.

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
        """Context in which each process has a part of a window and attends over all of it, in the backward pass too.

        Args:
            columns: by name, one value per token (batch, n), the same in all processes of the group. They are padded
                with their last value to a length that divides.

        Yields:
            This process's part of each column (batch, m): a piece of the first half and its counterpart from the
            second, so that all processes have the same number of query-key pairs.
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
        """As `part_of`, for a batch of training; labels are shifted before they are split.

        Args:
            batch: `input_ids`, `position_ids` and `labels` (batch, n).
        """
        labels = batch["labels"]
        shifted = torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], IGNORED)], dim=1)
        kept = {name: batch[name] for name in ("input_ids", "position_ids")}
        with self.part_of(kept | {"shift_labels": shifted}) as part:
            yield part

    def summed(self, value: Tensor) -> Tensor:
        """The sum of a value over the group."""
        total = value.detach().clone()
        torch.distributed.all_reduce(total, group=self._mesh.get_group())
        return total


def probe_context(
    model: transformers.PreTrainedModel, window: Window, group: ContextGroup, precision: torch.dtype | None, seed: int
) -> Verdict:
    """Checks with the model, device and versions in use that parts of a window compute what the whole does.

        share = rms(parts - whole) / rms(alone - whole)

    for hidden states, and for gradients at the embeddings; `alone` is computed by parts that do not see one another.

    Args:
        model: whole, on the device and in the dtype of training.
        window: lengths of the run, in tokens.
        group: this process's.
        precision: 16-bit dtype of autocast in training; None without autocast.
        seed: of the random tokens, the same in all processes.

    Returns:
        The verdict, the same in all processes.
    """
    try:
        with undisturbed(model, gradient_checkpointing=False):
            # In training mode, dropout would drop other units of a part than of the whole.
            share = _share(model.eval(), window, group, precision, seed)
        found = f"parts of a window in {group.size} processes miss what the whole makes by {share:.1e} of their context"
    except Exception as error:  # Any error of the model's own code, or of PyTorch's kernels.
        share, message = np.nan, next(iter(str(error).strip().splitlines()), "no message")
        found = f"attention over parts of a window stopped with {type(error).__name__}: {message[:200]}"
    cure = f"leave parallel.context out, or try --set attention={SDPA} and, on an accelerator, training.bf16=true"
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
        """Hidden states, and gradients at the embeddings, of tokens at these places in the window."""
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
