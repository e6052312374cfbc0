"""Windows split over processes train what one process trains, by PyTorch's own ring; the rest is refused."""

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from forked import launched
from group_runs import as_if_killed, assert_trained_alike, trained
from refusals import refused
from tiny_runs import losses, record_of
from transformers import AutoTokenizer, MistralConfig

from skipwise.config import RunConfig
from skipwise.errors import ConfigError
from skipwise.train import check_run


def mark_processes(test: Any) -> Any:
    return pytest.mark.slow(pytest.mark.xdist_group("processes")(test))


@pytest.fixture
def by_groups(settings: dict[str, Any], tmp_path: Path) -> Any:
    """Trains by so many processes in groups of so many: two steps at a window of 32, and two at the target."""

    def train(
        name: str, processes: int, context: int, *, how: dict[str, Any] | None = None, **changes: Any
    ) -> tuple[Path, list[list[int]]]:
        training = settings["training"] | {
            "learning_rate": 1e-3,
            # Or Adam makes whole steps of gradients that are nothing but rounding, which is each CPU's own.
            "adam_epsilon": 1e-6,
            "gradient_accumulation_steps": 4 * context // processes,
            "gradient_checkpointing": True,
            "save_strategy": "steps",
            "save_steps": 2,
            "use_cpu": True,
        }
        own = {"output": str(tmp_path / name), "parallel": {"context": context}, "training": training}
        seen = tmp_path / f"seen-{len(list(tmp_path.iterdir()))}"
        run = {**settings, "growth": {"window": 256, "share": 0.5}, **own, **changes}
        folder = trained(processes, run, seen=str(seen), **(how or {}))
        probed = [verdict["status"] for verdict in record_of(folder)["preflight"] if verdict["name"] == "context"]
        assert probed == ["pass"] * (context > 1)
        return folder, [list(map(int, Path(f"{seen}-{rank}").read_text().split())) for rank in range(processes)]

    return train


@mark_processes
def test_two_processes_with_half_a_window_each_train_what_one_trains(by_groups: Any) -> None:
    alone, items = by_groups("alone", 1, 1)
    halves, places = by_groups("halves", 2, 2)
    assert places == [items[0]] * 2, "both have all items"
    assert_trained_alike(alone, halves)
    assert len(losses(alone)) >= 2
    # To the same bits.
    whole = (halves / "model.safetensors").read_bytes()
    for folder in (halves, alone):
        as_if_killed(folder, 2)
    resumed, places = by_groups("halves", 2, 2, how={"resume": True})
    assert (resumed / "model.safetensors").read_bytes() == whole
    assert places == [items[0][8:]] * 2
    # What one process began two go on with.
    moved, _ = by_groups("alone", 2, 2, how={"resume": True})
    assert_trained_alike(moved, halves)


@mark_processes
def test_two_groups_of_two_train_what_one_process_trains(by_groups: Any) -> None:
    alone, items = by_groups("alone", 1, 1)
    groups, places = by_groups("groups", 4, 2)
    assert places[0] == places[1] == items[0][::2], "a group has the same items, every other one"
    assert places[2] == places[3] == items[0][1::2]
    assert_trained_alike(alone, groups)
    # The model split as well.
    for engine in ("fsdp2", "zero3") if find_spec("deepspeed") else ("fsdp2",):
        assert_trained_alike(alone, by_groups(engine, 2, 2, how={"engine": engine})[0])


@mark_processes
def test_low_rank_additions_exercises_and_bad_steps(by_groups: Any, settings: dict[str, Any]) -> None:
    """Labels stand in one process's part alone; of a bad step each item is told once, with its own loss."""
    changes = {
        "tuning": {"kind": "lora", "rank": 4},
        "window": 256,
        "data": {**settings["data"], "retrieval": 0.5},
    }
    alone, _ = by_groups("alone", 1, 1, **changes)
    assert_trained_alike(alone, by_groups("halves", 2, 2, **changes)[0])
    spoilt, _ = by_groups("spoilt", 2, 2, how={"spoilt": 3}, **changes)
    told = json.loads((spoilt / "bad-items.json").read_text())["bad_steps"]
    assert [item["place"] for item in told["3"]["items"]] == [8, 9, 10, 11]
    assert {item["loss"] for item in told["3"]["items"]} == {"nan"}
    assert record_of(spoilt)["bad_steps"] == told


PARTS = """
import sys
import torch, torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM, MistralConfig, MistralForCausalLM
from skipwise.loss import use_chunked_loss
from skipwise.train.context import ContextGroup, probe_context
from skipwise.window import Window

dist.init_process_group("gloo")
checkpoint, window = sys.argv[1], Window(train=32, original=64, target=256)
group = ContextGroup(2, torch.device("cpu"))

def load(attention):
    return AutoModelForCausalLM.from_pretrained(checkpoint, attn_implementation=attention, dtype=torch.float32)

# The probe sees parts that do not see one another, and masks.
for attention, dtype, status in (("sdpa", None, "pass"), ("sdpa", torch.bfloat16, "pass"), ("eager", None, "fail")):
    verdict = probe_context(load(attention), window, group, dtype, 0)
    assert verdict.status == status, verdict
assert "miss what the whole makes by 1.0e+00" in verdict.line, verdict
small = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
narrow = MistralForCausalLM(MistralConfig(**small, num_key_value_heads=2, sliding_window=8, attn_implementation="sdpa"))
assert "attends under a mask of its own" in probe_context(narrow, window, group, None, 0).line

# Loss and gradients, of a length that does not divide, whole and in parts; the model whole in each, or split by FSDP.
torch.manual_seed(1)
ids = torch.randint(0, 256, (2, 75))
positions = torch.arange(75) + 100 * (torch.arange(75) >= 30)
batch = {"input_ids": ids, "position_ids": positions.expand(2, -1), "labels": ids.masked_fill(ids < 40, -100)}
count = (batch["labels"][:, 1:] != -100).sum()
whole = load("sdpa")
use_chunked_loss(whole)
loss = whole(**batch)["loss"]
loss.backward()
expected = {name: parameter.grad for name, parameter in whole.named_parameters()}
for split in (False, True):
    model = load("sdpa")
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    use_chunked_loss(model)
    if split:
        for layer in model.model.layers:
            fully_shard(layer)
        fully_shard(model)
    with group.training_part_of(batch) as part:
        assert part["input_ids"].shape == (2, 38), "76 tokens, half of them"
        own = model(**part, num_items_in_batch=count)["loss"]
        own.backward()
    torch.testing.assert_close(group.summed(own), loss.detach(), rtol=1e-5, atol=0)
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        if split:
            # FSDP has averaged over both processes.
            gradient = gradient.full_tensor() * 2
        else:
            dist.all_reduce(gradient)
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)
dist.destroy_process_group()
"""


@mark_processes
def test_parts_make_the_loss_and_gradients_of_the_whole(tiny_checkpoint: Path) -> None:
    launched(PARTS, tiny_checkpoint, processes=2)


@pytest.mark.parametrize(
    ("changes", "processes", "named"),
    [
        ({}, 1, "'parallel.context' is 2, and 1 process .*--nproc 2"),
        ({}, 3, "3 processes"),
        ({"window": 30}, 2, "30 .* 28.* 4"),
        ({"growth": {"window": 250}}, 2, "250 .* 248"),
        ({"attention": "eager"}, 2, "'attention' is 'eager'.*attention=sdpa"),
        ({"dilution": True}, 2, "'dilution' is true and 'parallel.context' is 2"),
        ({"parallel": {"context": 0}}, 2, "'parallel.context' is 0"),
        ({"parallel": {"contxt": 2}}, 2, "'parallel.contxt' .*'context'"),
        ({"training": {"parallelism_config": {}}}, 2, "parallel.context"),
        ({"model": 16}, 2, "16 tokens .* 32"),
    ],
)
def test_what_cannot_be_split_gets_one_line_before_any_work(
    settings: dict[str, Any], changes: dict[str, Any], processes: int, named: str, attending: Callable[[int], str]
) -> None:
    if "model" in changes:
        changes = {"model": attending(changes["model"])}
    with refused(ConfigError, named):
        check_run(RunConfig.from_mapping({**settings, "parallel": {"context": 2}, **changes}), processes=processes)


@pytest.fixture
def attending(settings: dict[str, Any], tmp_path: Path) -> Callable[[int], str]:
    """Writes a model without weights whose layers attend to so many tokens."""

    def attending(span: int) -> str:
        AutoTokenizer.from_pretrained(settings["model"]).save_pretrained(tmp_path)
        MistralConfig(vocab_size=256, max_position_embeddings=64, sliding_window=span).save_pretrained(tmp_path)
        return str(tmp_path)

    return attending


def test_layers_that_look_as_far_as_a_window_may_be_split(
    settings: dict[str, Any], attending: Callable[[int], str]
) -> None:
    config = RunConfig.from_mapping({**settings, "model": attending(256), "parallel": {"context": 2}})
    check_run(config, processes=2)
