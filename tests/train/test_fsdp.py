"""`extend --launch fsdp2`: a model split over processes trains, stops, resumes and is written as a whole one is.

What one process does with the whole model is what is expected.
"""

import contextlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import launched
from group_runs import as_if_killed, assert_trained_alike, begun, trained
from safetensors.torch import load_file
from tiny_models import FAMILIES, tiny_config, tiny_model
from tiny_runs import losses, record_of, weights
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

ROOM = 900 * 10**6
"""Bytes of memory that a process may take in one of the tests."""

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes")]


@pytest.fixture
def run(group_settings: dict[str, Any], tmp_path: Path) -> Any:
    """Trains by so many processes, split if they are several; returns the folder."""

    def run(name: str, processes: int, *, training: Any = None, how: Any = None, **changes: Any) -> Path:
        training = {
            **group_settings["training"], "gradient_accumulation_steps": 4 // processes, **(training or {})
        }  # fmt: skip
        settings = {**group_settings, "output": str(tmp_path / name), **changes, "training": training}
        settings["data"] = {**settings["data"], "held_out": 0.3}
        settings["validation"] = {"every_steps": 2, "num_documents": 3, "lengths": [32, 64]}
        return trained(processes, settings, engine="fsdp2" if processes > 1 else "ddp", **(how or {}))

    return run


def family(tmp_path: Path, like: Path, name: str, **changes: Any) -> str:
    """A tiny model of another family, with the tokenizer of the checkpoint."""
    folder = tmp_path / name
    tokenizer = AutoTokenizer.from_pretrained(like)
    tiny_model(tiny_config(name, vocab_size=len(tokenizer), **changes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    "how",
    [
        {"training": {"gradient_checkpointing": True}},
        {"training": {"gradient_checkpointing": False}, "tuning": {"kind": "lora", "train_norms": True}},
        {"tuning": {"kind": "lora", "train_embeddings": True}},
    ],
    ids=["checkpointing", "norms beside additions", "embeddings beside additions"],
)
def test_what_is_trained_is_the_same(how: dict[str, Any], run: Any) -> None:
    assert_trained_alike(run("alone", 1, **how), run("split", 2, **how))


@pytest.mark.parametrize(
    ("name", "changes"),
    [("llama", {"tie_word_embeddings": True}), ("gemma2", {}), ("qwen3_moe", {}), ("gpt_neox", {})],
    ids=["tied", "gemma2", "mixture of experts", "gpt_neox"],
)
def test_families(name: str, changes: dict[str, Any], run: Any, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Among them names that a folder has otherwise than the model, and weights that are one."""
    model = family(tmp_path, tiny_checkpoint, name, **changes)
    assert_trained_alike(alone := run("alone", 1, model=model), split := run("split", 2, model=model))
    # Plain transformers reads both alike.
    ids = torch.arange(20)[None]
    logits = [AutoModelForCausalLM.from_pretrained(folder)(ids).logits for folder in (alone, split)]
    torch.testing.assert_close(*logits, rtol=1e-3, atol=1e-3)


def test_gates_kept_in_float32_and_buffers_of_a_checkpoint(run: Any, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Layers with weights of two dtypes, and a buffer that no gradient reaches and every reader needs."""
    model = family(tmp_path, tiny_checkpoint, "deepseek_v3", **FAMILIES["deepseek_v3"])
    split = run("buffers", 2, model=model)
    kept = {name: tensor for name, tensor in weights(model).items() if "e_score_correction_bias" in name}
    assert kept
    assert {name: weights(split)[name].tolist() for name in kept} == {
        name: each.tolist() for name, each in kept.items()
    }
    assert set(weights(split)) == set(weights(model))
    changes = {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 32, "moe_layer_start_index": 0}
    model = family(tmp_path, tiny_checkpoint, "ernie4_5_moe", **changes)
    split = run("gates", 2, model=model, dtype="bfloat16")
    assert set(weights(split)) == set(weights(model))
    assert {weights(split)[name].dtype for name in weights(split) if "gate.weight" in name} == {torch.float32}
    assert losses(split)[-1] < losses(split)[0]


def test_what_whole_processes_began_is_not_split(run: Any, group_settings: dict[str, Any]) -> None:
    whole = run("whole", 1)
    as_if_killed(whole, 2)
    settings = {**group_settings, "output": str(whole), "data": {**group_settings["data"], "held_out": 0.3}}
    settings["validation"] = {"every_steps": 2, "num_documents": 3, "lengths": [32, 64]}
    refused = begun(2, settings, engine="fsdp2", resume=True)
    assert refused.wait() == 2
    assert "checkpoint-2 was not written by --launch fsdp2" in refused.stderr


def test_in_16_bits(run: Any, tiny_checkpoint: Path) -> None:
    training = {"bf16": True}
    alone, split = run("alone", 1, training=training), run("split", 2, training=training)
    assert losses(split) == pytest.approx(losses(alone), rel=2e-2)
    # Weights are optimized and saved in float32.
    assert {weight.dtype for weight in weights(split).values()} == {torch.float32}
    base = weights(tiny_checkpoint)
    off = sum(float((weights(split)[name] - weight).square().sum()) for name, weight in weights(alone).items())
    moved = sum(float((weight - base[name]).square().sum()) for name, weight in weights(alone).items())
    assert off < 0.05 * moved


@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("processes", [2, 4])
def test_a_killed_run_goes_on_with_any_number_of_processes(processes: int, tuning: str, run: Any) -> None:
    whole = run("whole", 2, tuning=tuning)
    expected, before = losses(whole), weights(whole)
    as_if_killed(whole, 2)
    again = run("whole", processes, tuning=tuning, how={"resume": True})
    assert record_of(again)["resumed_at_step"] == 2
    assert losses(again) == pytest.approx(expected, rel=1e-5)
    for name, weight in weights(again).items():
        if processes == 2:
            assert torch.equal(weight, before[name]), name
        torch.testing.assert_close(weight, before[name], rtol=1e-4, atol=1e-5)


def test_one_process_goes_on_with_what_several_began(run: Any) -> None:
    whole = run("whole", 2)
    expected = losses(whole)
    as_if_killed(whole, 2)
    assert losses(run("whole", 1, how={"resume": True})) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", ["lora", "qlora"])
def test_additions_to_a_base_in_16_bits(kind: str, run: Any, checkpoint_of_blocks: Path) -> None:
    """The base is gathered in bfloat16; additions and norms are trained in float32."""
    if kind == "qlora":
        pytest.importorskip("bitsandbytes", reason="4-bit weights are the package bitsandbytes' (extra: qlora)")
    tuning = {"kind": kind, "train_norms": True}
    how = {"tuning": tuning, "dtype": "bfloat16", "training": {"bf16": True}, "model": str(checkpoint_of_blocks)}
    alone, split = run("alone", 1, **how), run("split", 2, **how)
    assert losses(split) == pytest.approx(losses(alone), rel=1e-2)
    assert {name: each.dtype for name, each in weights(split).items()} == {
        name: each.dtype for name, each in weights(alone).items()
    }


def test_additions_leave_the_names_of_the_base(run: Any, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Buffers that belong to a checkpoint, and none that are computed."""
    model = family(tmp_path, tiny_checkpoint, "deepseek_v3", **FAMILIES["deepseek_v3"])
    assert set(weights(run("split", 2, model=model, tuning="lora"))) == set(weights(model))


def test_a_models_own_code_is_written_with_it(run: Any, tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder, code = (
        tmp_path / "own",
        "from transformers import LlamaForCausalLM\n\nclass Own(LlamaForCausalLM):\n    pass\n",
    )
    shutil.copytree(tiny_checkpoint, folder)
    (folder / "modeling_own.py").write_text(code)
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["Own"], "auto_map": {"AutoModelForCausalLM": "modeling_own.Own"}}
    (folder / "config.json").write_text(json.dumps(config))
    split = run("split", 2, model=str(folder), trust_remote_code=True)
    assert (split / "modeling_own.py").read_text() == code
    assert type(AutoModelForCausalLM.from_pretrained(split, trust_remote_code=True)).__name__ == "Own"


def test_rows_fewer_than_processes(run: Any, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A router of two experts, over four processes of which two have no row of it."""
    changes = {"num_experts": 2, "num_experts_per_tok": 1, "decoder_sparse_step": 1, "moe_intermediate_size": 24}
    model = family(tmp_path, tiny_checkpoint, "qwen3_moe", **changes)
    assert_trained_alike(run("alone", 1, model=model), run("split", 4, model=model))


def test_a_bad_step_is_skipped_and_told(run: Any) -> None:
    split = run("split", 2, how={"spoilt": 3})
    bad = json.loads((split / "bad-items.json").read_text())["bad_steps"]
    assert [item["place"] for item in bad["3"]["items"]] == [9, 11]
    assert {weight.isfinite().all().item() for weight in weights(split).values()} == {True}


def test_each_process_writes_its_part_of_a_checkpoint(run: Any) -> None:
    split = run("split", 2)
    checkpoint = split / "checkpoint-2"
    index = json.loads((checkpoint / "model.safetensors.index.json").read_text())
    files = sorted({*index["weight_map"].values()})
    # Two layers, and what is outside of them.
    assert files == [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    held = {name for file in files for name in load_file(checkpoint / file)}
    assert held == set(index["weight_map"])
    assert index["metadata"]["total_size"] == sum(
        tensor.nbytes for file in files for tensor in load_file(checkpoint / file).values()
    )
    assert {file.name for file in (checkpoint / "optimizer").iterdir()} >= {".metadata", "__0_0.distcp", "__1_0.distcp"}
    sealed = json.loads((checkpoint / "seal.json").read_text())
    assert {f"optimizer/__{rank}_0.distcp" for rank in (0, 1)} <= set(sealed)


@pytest.mark.skipif(not os.access("/sys/fs/cgroup/memory", os.W_OK), reason="no right to make control groups here")
def test_a_model_larger_than_a_process_is_extended_by_four(
    group_settings: dict[str, Any], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """1.0 GB of weights in float32 where a control group leaves 0.9: too much for one process, not for four."""
    shape = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 15, "num_attention_heads": 8}
    config = AutoConfig.for_model("llama", **shape, vocab_size=1000, max_position_embeddings=64, head_dim=128)
    with torch.random.fork_rng():
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path / "large")
    AutoTokenizer.from_pretrained(tiny_checkpoint).save_pretrained(tmp_path / "large")
    training = {**group_settings["training"], "max_steps": 2, "gradient_accumulation_steps": 1}
    settings = {**group_settings, "model": str(tmp_path / "large"), "tuning": "lora", "training": training}

    def run(processes: int) -> Any:
        engine = "fsdp2" if processes > 1 else "ddp"
        return begun(processes, {**settings, "output": str(tmp_path / f"by-{processes}")}, engine=engine, room=ROOM)

    alone = run(1)
    assert alone.wait() == 2
    numbers = re.search(r"take ([\d.]+) MiB and this process has memory for ([\d.]+) MiB", alone.stderr)
    assert numbers, alone.stderr
    with torch.device("meta"):
        parameters = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    assert float(numbers[1]) == pytest.approx(parameters * 4 / 2**20, rel=0.01)
    assert float(numbers[2]) < ROOM / 2**20
    four = run(4)
    assert four.wait() == 0, four.stderr
    for group in Path("/sys/fs/cgroup/memory").glob("skipwise-*"):
        with contextlib.suppress(OSError):
            group.rmdir()
    made = AutoModelForCausalLM.from_pretrained(tmp_path / "by-4", dtype=torch.float32)
    own = AutoModelForCausalLM.from_pretrained(tmp_path / "large", dtype=torch.float32)
    changed = [not torch.equal(one, other) for one, other in zip(made.parameters(), own.parameters(), strict=True)]
    assert sum(changed) == 15 * 7, "the linear layers"


READ = """
import sys, torch, torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from skipwise.model import apart, load_model
dist.init_process_group("gloo")
folder, out = sys.argv[1:]
model, rows = apart(load_model(folder, dtype="float32", in_shards=True).model)
held = sum(p.untyped_storage().nbytes() for p in {id(p): p for p in model.parameters()}.values())
torch.save({"rows": rows, "held": held, "buffers": dict(model.named_buffers())}, f"{out}-{dist.get_rank()}")
dist.destroy_process_group()
"""


def test_each_process_reads_its_rows(tiny_checkpoint: Path, tmp_path: Path) -> None:
    launched(READ, tiny_checkpoint, tmp_path / "read", processes=3)
    plain = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    read = [torch.load(f"{tmp_path / 'read'}-{rank}") for rank in range(3)]
    for name, parameter in plain.named_parameters():
        rows = torch.cat([each["rows"][name] for each in read])
        assert torch.equal(rows, parameter), name
        assert max(len(each["rows"][name]) for each in read) == -(-len(parameter) // 3)
    for each in read:
        assert each["held"] < 1000, "stand-ins take no memory"
        for name, buffer in plain.named_buffers():
            assert torch.equal(each["buffers"][name], buffer), "tables are computed, and not left as memory was"
