"""Tests which engines of context parallelism are correct on CPUs, and measures the memory of a part of a window.

    torchrun --standalone --nproc-per-node 2 benchmarks/context.py engines
    python benchmarks/context.py memory [--length 16384]
    torchrun --standalone --nproc-per-node 2 benchmarks/context.py memory [--length 16384]

`engines` computes loss and gradients of a random two-layer Llama (4 heads of queries, 2 of keys) at a window of 512
tokens in two chunks: whole in one process, and split over all processes by each engine of PyTorch and DeepSpeed. It
prints the error relative to the whole window, as a share of the loss and of the largest gradient, or the engine's own
error message. `memory` prints the peak of each process in one forward and backward pass of training, above what it held
before.
"""

import argparse
import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor.experimental import context_parallel
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from skipwise.loss import NextTokenLoss, use_chunked_loss
from skipwise.train.context import ContextGroup
from skipwise.train.process import peak_bytes
from skipwise.train.ring import use_ring_on_cpu

Columns = dict[str, Tensor]
Engine = Callable[[DeviceMesh, Columns], contextlib.AbstractContextManager[Columns]]


@contextlib.contextmanager
def ring(mesh: DeviceMesh, columns: Columns) -> Iterator[Columns]:
    """PyTorch's `context_parallel`, unchanged."""
    parts = {name: column.clone() for name, column in columns.items()}
    buffers = list(parts.values())
    with context_parallel(mesh, buffers=buffers, buffer_seq_dims=[1] * len(buffers), no_restore_buffers={*buffers}):
        yield parts


@contextlib.contextmanager
def ring_of_the_cpu(mesh: DeviceMesh, columns: Columns) -> Iterator[Columns]:
    """The same ring with the CPU's kernel, as in `extend`."""
    use_ring_on_cpu()
    with ring(mesh, columns) as parts:
        yield parts


@contextlib.contextmanager
def flex(mesh: DeviceMesh, columns: Columns) -> Iterator[Columns]:
    """PyTorch's context parallelism for flex attention, which gathers keys and values."""
    from torch.distributed.tensor.experimental._context_parallel import _attention as engine
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    n = columns["input_ids"].shape[1]
    mask = create_block_mask(lambda b, h, query, key: query >= key, None, None, n, n, device="cpu")
    names = list(columns)
    *parts, mask = engine._context_parallel_shard(mesh, [*columns.values(), mask], [1] * len(names) + [2])
    gather = engine._ContextParallel(2, engine._ContextParallel.AttentionType.FLEX).flex_input_fn

    def attend(_module: Any, query: Tensor, key: Tensor, value: Tensor, _mask: Any, **how: Any) -> tuple[Tensor, None]:
        (query, key, value), _ = gather(None, (query, key, value), {}, mesh)
        made = flex_attention(query, key, value, block_mask=mask, scale=how["scaling"], enable_gqa=True)  # pyright: ignore
        return made.transpose(1, 2), None  # pyright: ignore[reportAttributeAccessIssue]

    with attending(attend):
        yield dict(zip(names, parts, strict=True))  # pyright: ignore[reportReturnType]


@contextlib.contextmanager
def ulysses(mesh: DeviceMesh, columns: Columns) -> Iterator[Columns]:
    """DeepSpeed Ulysses, which exchanges parts of the window for some of the heads over the whole window."""
    import deepspeed.comm  # pyright: ignore[reportMissingImports]
    from deepspeed.runtime.sequence_parallel.ulysses_sp import (  # pyright: ignore[reportMissingImports]
        UlyssesSPAttentionHF,
    )

    deepspeed.comm.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)
    exchange = UlyssesSPAttentionHF(
        attn=ALL_ATTENTION_FUNCTIONS["sdpa"],
        batch_size=len(columns["input_ids"]),
        attn_head_count=4,
        attn_head_size=8,
        kv_head_count=2,
        num_hidden_layers=2,
        process_group=mesh.get_group(),  # pyright: ignore[reportArgumentType]
        seq_length_is_variable=True,
    )
    with attending(exchange.forward):
        yield {name: each.chunk(mesh.size(), 1)[mesh.get_local_rank()].contiguous() for name, each in columns.items()}


@contextlib.contextmanager
def attending(by: Callable[..., Any]) -> Iterator[None]:
    """Replaces the `sdpa` of transformers with this function inside the context."""
    ALL_ATTENTION_FUNCTIONS["sdpa"] = by
    try:
        yield
    finally:
        del ALL_ATTENTION_FUNCTIONS["sdpa"]


ENGINES: dict[str, Engine] = {
    "context_parallel as it comes": ring,
    "context_parallel with the CPU's kernel": ring_of_the_cpu,
    "context parallelism of flex attention": flex,
    "DeepSpeed Ulysses": ulysses,
}


def engines() -> None:
    """Compares each engine with the whole window."""
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    torch.manual_seed(0)
    model = tiny(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2)
    n = 512
    ids, positions = torch.randint(0, 64, (2, n)), torch.arange(n) + 100 * (torch.arange(n) >= n // 3)
    labels = torch.cat([ids[:, 1:], torch.full((2, 1), -100)], dim=1)
    whole = {"input_ids": ids, "position_ids": positions.expand(2, -1).contiguous(), "shift_labels": labels}
    loss = NextTokenLoss(model)

    def made(columns: Columns) -> tuple[Tensor, Tensor]:
        model.zero_grad()
        total = loss(**columns, num_items=2 * (n - 1))
        total.backward()
        return total.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    expected = made(whole)
    for name, engine in ENGINES.items():
        try:
            with engine(mesh, whole) as part:
                found = made(part)
            for each in found:
                dist.all_reduce(each)
            apart = [((a - b).abs().max() / b.abs().max()).item() for a, b in zip(found, expected, strict=True)]
            told = f"loss within {apart[0]:.1e}, gradients within {apart[1]:.1e}"
        except Exception as error:  # The message is the result.
            told = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        if dist.get_rank() == 0:
            print(f"{name}: {told}", flush=True)


def memory(length: int) -> None:
    """Measures one pass."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    torch.manual_seed(0)
    model = tiny(vocab_size=1024, hidden_size=256, intermediate_size=688, num_hidden_layers=8).train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    use_chunked_loss(model)
    ids = torch.randint(0, 1024, (1, length))
    batch = {"input_ids": ids, "position_ids": torch.arange(length)[None], "labels": ids}
    part_of: Any = contextlib.nullcontext
    if world > 1:
        dist.init_process_group("gloo")
        part_of = ContextGroup(world, torch.device("cpu")).training_part_of
    short = {name: column[:, :64].clone() for name, column in batch.items()}
    for columns in (short, batch):  # The short pass takes the memory that only a first pass needs.
        before = peak_bytes()
        with part_of(columns) as part:
            model(**part, num_items_in_batch=length)["loss"].backward()
    print(f"{length} tokens over {world}: {(peak_bytes() - before) / 2**20:.0f} MiB in each", flush=True)


def tiny(**shape: int) -> LlamaForCausalLM:
    """A random Llama of this shape."""
    config = LlamaConfig(**shape, num_attention_heads=4, num_key_value_heads=2)  # pyright: ignore[reportArgumentType]
    config._attn_implementation = "sdpa"
    return LlamaForCausalLM(config).float()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["engines", "memory"])
    parser.add_argument("--length", type=int, default=16384)
    asked = parser.parse_args()
    engines() if asked.what == "engines" else memory(asked.length)
    if dist.is_initialized():
        dist.destroy_process_group()
