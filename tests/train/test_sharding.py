"""Split models: FSDP of version 2 trains with the chunked loss what one process trains.

accelerate turns FSDP off on CPUs, so what it calls is called here: PyTorch's own `fully_shard`, over the gloo back end.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import launched

SCRIPT = """
import json, sys
import numpy as np, torch, torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from skipwise.config import LoraTuning, QloraTuning
from skipwise.loss import use_chunked_loss
from skipwise.model import four_bits, load_model
from skipwise.train.tuning import apply_tuning

checkpoint, kind, out = sys.argv[1:]
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)
four, dtype, policy = None, torch.float32, {}
if kind == "qlora16":
    dtype, policy = torch.bfloat16, {"mp_policy": MixedPrecisionPolicy(torch.bfloat16, torch.float32)}
if kind.startswith("qlora"):
    four = four_bits(QloraTuning(), torch.device("cpu"), compute=dtype, storage=dtype)
plain = load_model(checkpoint, dtype=dtype, quantization=four).model
if kind == "tied":
    plain.lm_head.weight = plain.base_model.embed_tokens.weight
use_chunked_loss(plain)
tuning = LoraTuning(rank=4, train_embeddings=True, train_norms=kind == "qlora16")
low_rank = kind in ("lora", "qlora", "qlora16")
model = apply_tuning(plain, tuning) if low_rank else plain
if kind in ("checkpointing", "qlora", "qlora16"):
    model.gradient_checkpointing_enable({"use_reentrant": False})
model.train()
if world > 1:
    # As accelerate does: the embedding by itself, the last norm with the head, or with both where they are one.
    for layer in plain.base_model.layers:
        fully_shard(layer, **policy)
    ends = [plain.base_model.norm, plain.lm_head]
    if kind == "tied":
        ends.insert(1, plain.base_model.embed_tokens)
    elif not low_rank:
        fully_shard(plain.base_model.embed_tokens)
    if not low_rank:
        fully_shard(ends, reshard_after_forward=False)
    fully_shard(model, **policy)
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
if world > 1:
    with torch.no_grad():  # As SkipwiseTrainer does before it validates, which enters by a part of the model.
        two = torch.zeros(1, 2, dtype=torch.int64)
        model(input_ids=two, position_ids=torch.arange(2)[None], labels=two)
        plain.base_model(input_ids=torch.arange(8)[None], use_cache=False)
rng, losses = np.random.default_rng(0), []
for _ in range(3):
    ids = torch.from_numpy(rng.integers(0, 90, (4, 32)))
    skips = torch.from_numpy(np.sort(rng.integers(0, 200, (4, 1)))) * (torch.arange(32) >= 16)
    mine = slice(rank * 4 // world, (rank + 1) * 4 // world)
    labels = ids.clone()
    labels[:, 16] = -100
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == "qlora16"):
        loss = model(input_ids=ids[mine], position_ids=(torch.arange(32) + skips)[mine], labels=labels[mine],
                     num_items_in_batch=4 * 30)["loss"]
    (loss * world).backward()  # FSDP takes the mean over processes
    optimizer.step()
    optimizer.zero_grad()
    total = loss.detach().clone()
    dist.all_reduce(total)
    losses.append(total.item())
state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
if rank == 0:
    torch.save({"losses": losses, "state": state}, out)
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
@pytest.mark.parametrize("kind", ["full", "tied", "checkpointing", "lora", "qlora", "qlora16"])
def test_fully_sharded_trains_what_one_process_trains(kind: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    if kind.startswith("qlora"):
        pytest.importorskip("bitsandbytes", reason="4-bit weights are the package bitsandbytes' (extra: qlora)")

    def run(processes: int) -> dict[str, Any]:
        out = tmp_path / f"{processes}.pt"
        launched(SCRIPT, tiny_checkpoint, kind, out, processes=processes)
        return torch.load(out)

    alone, split = run(1), run(2)
    narrow = kind == "qlora16"
    assert split["losses"] == pytest.approx(alone["losses"], rel=1e-2 if narrow else 1e-4)
    assert alone["losses"][2] < alone["losses"][0], json.dumps(alone["losses"])
    if kind.startswith("qlora"):
        # How weights were quantized is no parameter, and lost from what is gathered; `gathered` takes what was trained.
        for each in (alone, split):
            each["state"] = {name: weight for name, weight in each["state"].items() if ".base_layer." not in name}
    assert split["state"].keys() == alone["state"].keys()
    if narrow:
        # Of weights Adam's steps differ where gradients are next to none; all that is trained is in float32.
        trained = [weight for name, weight in split["state"].items() if "lora_" in name or "modules_to_save" in name]
        assert {weight.dtype for weight in trained} == {torch.float32}
        return
    for name, weight in alone["state"].items():
        assert torch.allclose(split["state"][name], weight, rtol=1e-3, atol=1e-4), name
