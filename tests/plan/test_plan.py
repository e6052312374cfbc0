"""The plan and its verb: published settings, advice that holds, bad input in one line."""

import json
import re
import socket
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from transformers import AutoConfig

from skipwise import cli
from skipwise.config import FullTuning, LoraTuning, QloraTuning, RunConfig
from skipwise.errors import ConfigError
from skipwise.memory import Sharding
from skipwise.model import scaled_by, without_weights
from skipwise.model.extend import extended_config
from skipwise.plan import Deployment, Job, Plan, check_plan, plan
from skipwise.plan.cards import HUB_NAMES, MODEL_CARDS
from skipwise.plan.engines import engine_commands, llama_cpp_command, vllm_command
from skipwise.plan.machines import MACHINES, Utilisation, machine_of
from skipwise.plan.profiles import Profiles, Step
from skipwise.plan.serving import cache_copies, fewest_accelerators, longest_context, serving_estimate
from skipwise.plan.shape import model_shape, shape_of
from skipwise.plan.training import Approach, TrainingPlanner, approaches
from skipwise.rope import interpolation_from
from skipwise.train.tuning import apply_tuning
from skipwise.window import Window

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "vocab_size": 300,
    "max_position_embeddings": 256,
}


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A config alone."""
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return str(folder)


@pytest.mark.parametrize(("target", "fits"), [(8192, True), (16384, False), (32768, False)])
def test_the_papers_machine_holds_skip_wise_training_and_no_full_length_of_16k(target: int, fits: bool) -> None:
    """LLaMA-7B on 8 V100 of 32 GB by ZeRO-3 with checkpointing, global batch 16 (arXiv 2309.10400, figure 3).

    As its authors' script has it, nothing is accumulated: two windows at a time on each, and the library's own loss.
    """
    planner = TrainingPlanner(Profiles(model_shape("llama-7b")), MACHINES["v100-32"], Utilisation())
    job, sharding = Job(steps=1000, global_batch=16), Sharding(processes=8, kind="zero3")
    ways = {way.name: way for way in approaches(2048, target, LoraTuning(), whole_logits=True)}
    job = replace(job, micro_batch=2)
    assert planner.largest_batch(ways["skip-wise"], job, sharding).fits, "as at every target"
    full = planner.largest_batch(ways["full length"], job, sharding)
    assert (full.micro_batch, full.accumulation) == (2, 1)
    assert full.fits == fits
    assert abs(full.total_bytes - full.limit_bytes) > 2**30, "by more than is assumed here and there"
    spared = planner.estimate(replace(ways["full length"], whole_logits=False), job, sharding, 2)
    # What all logits take in 16 bits and in 32, at the least, is spared.
    assert full.loss_bytes - spared.loss_bytes > 6 * 2 * target * 32000


def test_serving_holds_weights_and_the_cache_of_every_request() -> None:
    profiles, h100 = Profiles(model_shape("llama-3-8b")), Deployment(machine=MACHINES["h100"])
    one, four = (serving_estimate(profiles, h100, Utilisation(), 32768, requests=n) for n in (1, 4))
    assert one.weight_bytes == 2 * profiles.shape.counts.total
    assert one.kv_bytes == 4 * 2**30
    assert four.kv_bytes == 4 * one.kv_bytes
    assert four.token_seconds > one.token_seconds
    assert one.most_requests == (one.limit_bytes - one.weight_bytes - one.work_bytes) // one.kv_bytes
    longest = longest_context(profiles, h100, Utilisation())
    assert serving_estimate(profiles, h100, Utilisation(), longest).fits
    assert not serving_estimate(profiles, h100, Utilisation(), round(1.01 * longest)).fits
    eighth = longest_context(profiles, Deployment(machine=MACHINES["h100"], kv_bits=8), Utilisation())
    assert eighth == pytest.approx(longest * 16 / 8.5, rel=0.01)


def test_a_model_of_70b_takes_several_accelerators() -> None:
    profiles, one = Profiles(model_shape("llama-3-70b")), Deployment(machine=MACHINES["h100"])
    assert fewest_accelerators(profiles, Utilisation(), 131072, one) == 4


def test_money_grows_with_the_length_that_is_served() -> None:
    profiles, machine = Profiles(model_shape("llama-3-8b")), Deployment(machine=MACHINES["h100"])
    costs = [serving_estimate(profiles, machine, Utilisation(), n, price=2.0).cost_per_million for n in (8192, 131072)]
    assert costs[0] is not None
    assert costs[1] is not None
    assert costs[1] > costs[0] > 0


def test_a_plan_says_what_to_do_and_writes_a_run(model: str, tmp_path: Path, capsys, monkeypatch) -> None:
    run, page = tmp_path / "run.yaml", tmp_path / "plan.html"
    command = ["plan", model, "--target", "2k", "--machine", "l4", "--price", "1", "--global-batch", "1", "--json"]
    module, made = sys.modules["skipwise.plan"], list[Plan]()
    monkeypatch.setattr(module, "plan", lambda *args, **options: made.append(plan(*args, **options)) or made[0])
    assert cli.main([*command, "--write-config", str(run), "--out", str(page)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [one["approach"] for one in told["training"]] == [
        *("skip-wise", "skip-wise, LoRA", "skip-wise, QLoRA"),
        *("full length", "full length, LoRA", "full length, QLoRA"),
    ]
    assert all(one["fits"] and one["smallest"]["count"] == 1 for one in told["training"])
    short, full = told["training"][0], told["training"][3]
    assert short["activation_bytes"] < full["activation_bytes"]
    assert full["total_bytes"] == sum(
        full[f"{part}_bytes"] for part in ("parameter", "gradient", "optimizer", "in_transit", "activation", "other")
    )
    assert [one["length_tokens"] for one in told["serving"]] == [256, 512, 1024, 2048]
    assert told["config"]["window"] == "256"
    config = RunConfig.from_yaml(run)
    assert (config.target, config.window, config.training["bf16"]) == (2048, 256, True)
    text = page.read_text()
    assert "from 256 to 2k tokens: a plan" in text
    assert text.count("<svg") == 5

    monkeypatch.setattr(module, "plan", lambda *_, **__: made[0])
    assert cli.main(command[:-1]) == 0
    out = capsys.readouterr().out
    assert "Train by skip-wise and the recipe growing" in " ".join(out.split())
    assert "vllm serve CHECKPOINT --max-model-len 2048 --gpu-memory-utilization 0.92" in out
    shown, tables = out[: out.index("settings of engines")], out[out.index("Memory of each") :]
    tables = tables[: tables.index("settings of engines")]
    assert max(map(len, shown.splitlines())) <= 80, "for terminals of 80 columns"
    assert "\N{HORIZONTAL ELLIPSIS}" not in tables


@pytest.mark.slow
def test_what_is_too_small_says_by_how_much_and_what_would_do() -> None:
    found = plan("llama-3-70b", target=32768, machine="l4", count=2)
    words = found.advice.words[0]
    assert "Nothing that `skipwise extend` trains fits on 2 x L4 24 GB by fsdp" in words
    assert "too much. The nearest that fits: skip-wise on " in words
    assert re.search(r"skip-wise, LoRA on \d+ x L4 24 GB by fsdp", words)
    assert "Nothing is to be run yet" in found.advice.words[-1]
    machine, estimate = found.smallest[0] or pytest.fail("a thousand accelerators hold it")
    assert estimate.fits
    assert estimate.sharding.processes * machine.memory_gib > 70e9 * 16 / 2**30


def test_engines_get_what_their_files_do_not_carry(model: str) -> None:
    window = Window(train=256, original=256, target=1024)
    extended = extended_config(model_shape(model).config, interpolation_from("yarn"), window)
    engines = engine_commands("m", 1024, Deployment(machine=MACHINES["h100"], count=2), extended)
    stretched = engines["vLLM, the base model stretched"]
    assert "--tensor-parallel-size 2" in stretched
    assert '"rope_type": "yarn"' in stretched
    assert "--hf-overrides" not in engines["vLLM, the extended checkpoint"]
    flags = "--rope-scaling yarn --rope-scale 4 --yarn-orig-ctx 256"
    assert flags in engines["llama.cpp of September 2026 and later, the base model's file stretched"]
    eight = Deployment(machine=machine_of("h100"), kv_bits=8)
    assert vllm_command("m", 1024, eight).endswith("--kv-cache-dtype fp8")
    assert "--cache-type-k q8_0 --cache-type-v q8_0" in llama_cpp_command("m.gguf", 1024, eight)
    assert "-c 4096 -np 4" in llama_cpp_command("m.gguf", 1024, eight, requests=4), "a context is of all slots"
    assert "--dtype half" in vllm_command("m", 1024, Deployment(machine=MACHINES["v100-32"]))


@pytest.mark.slow
def test_cards_name_their_weights_and_old_machines_get_what_they_compute_in() -> None:
    assert set(HUB_NAMES) == set(MODEL_CARDS)
    found = plan("smollm2-135m", target=16384, window=256, machine="v100-32", job=Job(global_batch=1))
    assert found.advice.config["model"] == "HuggingFaceTB/SmolLM2-135M"
    assert found.advice.config["training"]["fp16"]
    assert "bf16" not in found.advice.config["training"]


@pytest.mark.parametrize(
    ("kind", "rope", "expected"),
    [
        # Llama 3.1: 8 for 16 times the window; twice as far, twice as much.
        (
            "llama",
            {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
            {"kind": "llama3", "factor": 16.0},
        ),
        ("llama", {"rope_type": "yarn", "factor": 16.0}, {"kind": "yarn"}),
        ("llama", {"rope_type": "yarn", "factor": 16.0, "mscale": 1.0, "mscale_all_dim": 1.0}, {"mscale": 1.0}),
        ("llama", {"rope_type": "linear", "factor": 16.0}, {"kind": "linear"}),
    ],
)
def test_a_model_that_is_scaled_is_planned_with_more_of_the_same(
    kind: str, rope: dict[str, Any], expected: dict[str, Any]
) -> None:
    settings = {**CONFIG, "max_position_embeddings": 4096, "original_max_position_embeddings": 256}
    rope = {"rope_theta": 1e4, "original_max_position_embeddings": 256, **rope}
    settings.pop("model_type")
    shape = shape_of(AutoConfig.for_model(kind, **settings, rope_parameters=rope))
    asked = scaled_by(shape.config, 8192)
    assert asked is not None
    assert asked.items() >= expected.items()
    window = check_plan(shape, MACHINES["l4"], target=8192)
    written = extended_config(shape.config, interpolation_from(asked), window)
    assert written.max_position_embeddings == 8192


@pytest.mark.parametrize("card", MODEL_CARDS)
def test_states_of_training_are_those_of_the_real_modules(card: str) -> None:
    shape = model_shape(card)
    planner = TrainingPlanner(Profiles(shape), MACHINES["h100"], Utilisation())
    numbers = sum(parameter.numel() for parameter in without_weights(shape.config).parameters())
    full = planner.state(Approach(name="full", window_tokens=1, tuning=FullTuning()))
    assert (full.parameters, full.gradients, full.optimizer) == (4 * numbers, 4 * numbers, 8 * numbers)


def test_low_rank_additions_train_what_peft_makes() -> None:
    shape = model_shape("smollm2-135m")
    planner = TrainingPlanner(Profiles(shape), MACHINES["h100"], Utilisation())
    lora = Approach(name="lora", window_tokens=1, tuning=LoraTuning(rank=8))
    tuned = apply_tuning(without_weights(shape.config), lora.tuning)
    added = sum(p.numel() for p in tuned.parameters() if p.requires_grad)
    state = planner.state(lora)
    assert (state.gradients, state.optimizer) == (4 * added, 8 * added)
    assert state.parameters == 2 * shape.counts.total + 4 * added
    quantized = planner.state(replace(lora, tuning=QloraTuning(rank=8)))
    in_four = shape.counts.attention + shape.counts.mlp
    # Seven weights in each of 30 layers have a table of 16 numbers, one of 256, and a mean.
    tables = 7 * 30 * 4 * (16 + 256 + 1)
    assert quantized.parameters == pytest.approx(state.parameters - (2 - 4.127 / 8) * in_four + tables, rel=1e-4)


def test_heads_are_shared_out_and_a_compressed_state_is_not() -> None:
    llama, deepseek = model_shape("llama-3-8b"), model_shape("deepseek-v3")
    h200 = [Deployment(machine=MACHINES["h200"], count=count) for count in (8, 16)]
    assert [cache_copies(llama, one) for one in h200] == [1, 2], "it has 8 heads of keys"
    assert [cache_copies(deepseek, one) for one in h200] == [8, 16]


@pytest.mark.slow
def test_masks_of_sliding_layers_grow_with_the_square_of_the_window() -> None:
    profiles = Profiles(model_shape("gemma-3-27b"))
    at = Step(window_tokens=0, batch=1, tuning=FullTuning(), in_half=True)
    held = [profiles.step(replace(at, window_tokens=n)).peak(62, 0) for n in (4096, 8192, 16384)]
    # Of c + a n + b n^2 at n, 2n and 4n this leaves 6 b n^2.
    assert held[2] - 3 * held[1] + 2 * held[0] > 4096**2
    # Several windows have a mask each, as a longer one has not.
    several = profiles.step(replace(at, window_tokens=4096, batch=4)).peak(62, 0)
    assert several < held[2]


def test_a_mixture_of_experts_is_planned_by_formula_and_says_so() -> None:
    found = plan("deepseek-v3", target=327680, machine="h200", count=512, job=Job(global_batch=512))
    assert all(one.formula for one in found.training)
    assert any("by formula" in words for words in found.advice.words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--target", "128"], "the target is 128 tokens and the original window of"),
        (
            ["--target", "4k", "--machine", "A100"],
            "the machine is 'A100'; did you mean 'a100-40' or 'a100-80'? give one of v100-32",
        ),
        (["--target", "4k", "--machine", "rtx4090"], "did you mean 'rtx-4090'? give one of"),
        (["--target", "4k", "--window", "8k"], "the training window is 8192 tokens and the target 4096"),
        (["--target", "4k", "--sharding", "zero3"], "zero3 shards over several accelerators, but there is 1"),
        (["--target", "4k", "--count", "2", "--sharding", "zero5"], "the sharding is 'zero5'; did you mean 'zero3'?"),
        (["--target", "4k", "--share", "speed=1"], "--share is 'speed=1'; write NAME=SHARE"),
        (["--target", "4k", "--share", "training=2"], "utilisation.training is 2.0; give a share"),
        (["--target", "4k", "--count", "65"], "there are 65 accelerators for 64 windows of a step"),
        (["--target", "4k", "--machine", "cpu", "--count", "2"], "the machine is the CPU here, and the count 2"),
        (["--target", "4k", "--window", "1"], "window has train=1, original=256, target=4096"),
        (["--target", "128", "--machine", "cpu", "--calibrate"], "the target is 128 tokens and the original window"),
        (["--target", "4k", "--price", "nan"], "greater than or equal to 0"),
        (["--target", "4k", "--length", "1k,"], "length is ''; give a whole number of tokens"),
        (["--target", "4k", "--micro-batch", "65"], "there is 1 accelerator with 65 windows at a time for 64"),
        (["--target", "4k", "--kv-bits", "5"], "kv_bits is 5; give one of 16, 8, 4"),
        (["--target", "4k", "--write-config", "."], "'.', which cannot be written: it is a folder"),
        (["--target", "4k", "--out", "no/such/plan.html"], "there is no folder 'no/such'"),
    ],
)
def test_bad_input_gets_one_line(model: str, options: list[str], words: str, capsys) -> None:
    assert cli.main(["plan", model, *options]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert words in err


@pytest.mark.parametrize("kind", ["gpt2", "mamba", "bert"])
def test_kinds_of_model_without_rotary_positions_are_refused(kind: str, tmp_path: Path, capsys) -> None:
    AutoConfig.for_model(kind).save_pretrained(tmp_path)
    assert cli.main(["plan", str(tmp_path), "--target", "32k"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_file_that_cannot_be_written_gets_one_line(model: str, capsys) -> None:
    assert cli.main(["plan", model, "--target", "512", "--write-config", name := "x" * 300]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert f"'{name}', which cannot be written: File name too long" in err


def test_a_name_that_is_no_card_is_told_the_cards(capsys) -> None:
    assert cli.main(["plan", "llama-3-9b", "--target", "32k"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "did you mean 'llama-3-8b'? give a built-in card: llama-7b, llama-2-7b, llama-3-8b" in err


@pytest.mark.parametrize(("name", "cards"), [("lama-3-8b", True), ("owner/lama-3-8b", False)])
def test_a_hub_that_cannot_be_reached_is_asked_once(
    name: str, cards: bool, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one:
        hub = f"http://127.0.0.1:{one.getsockname()[1]}"
    # By now nobody listens there.
    for setting, value in {
        "HF_HUB_OFFLINE": False,
        "ENDPOINT": hub,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub + "/{repo_id}/resolve/{revision}/{filename}",
    }.items():
        monkeypatch.setattr(huggingface_hub.constants, setting, value)
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    assert cli.main(["plan", name, "--target", "32k"]) == 2
    err = capfd.readouterr().err
    assert pauses == [], "before it is asked again"
    assert err.count("\n") == 1
    assert "the hub cannot be reached" in err
    assert ("did you mean 'llama-3-8b'?" in err) == cards


def test_a_card_has_no_weights_to_calibrate_by(capsys) -> None:
    assert cli.main(["plan", "llama-2-7b", "--target", "32k", "--machine", "cpu", "--calibrate"]) == 2
    assert "'llama-2-7b' is a card without weights" in capsys.readouterr().err


def test_what_is_measured_here_says_nothing_of_another_machine(model: str, capsys) -> None:
    assert cli.main(["plan", model, "--target", "4k", "--machine", "h100", "--calibrate"]) == 2
    assert "this machine, which has no accelerator, and --machine is H100 80 GB" in capsys.readouterr().err


@pytest.mark.slow
def test_real_steps_correct_what_was_assumed(tiny_checkpoint: Path, capsys) -> None:
    command = ["plan", str(tiny_checkpoint), "--target", "256", "--machine", "cpu", "--calibrate", "--json"]
    assert cli.main([*command, "--global-batch", "1"]) == 0
    told = json.loads(capsys.readouterr().out)
    step, *prefills = told["calibration"]
    assert step["name"] == "step, full, checkpointing, 64 tokens"
    assert [one["name"] for one in prefills] == ["prefill, 32 tokens", "prefill, 64 tokens"]
    assert all(one["measured_seconds"] > 0 and abs(one["memory_error"]) < 0.3 for one in told["calibration"])
    # With what was reached, the plan says of this step what was measured.
    assert told["training"][0]["step_seconds"] == pytest.approx(step["measured_seconds"])
    assert told["utilisation"]["decode"] == Utilisation().decode


def test_shares_are_shares() -> None:
    with pytest.raises(ConfigError, match=r"utilisation\.memory is 0"):
        Utilisation(memory=0)
