"""What is searched, assumed or interpolated between the exact parts of a plan: batches, machines, recipes, links."""

import re
import sys
from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig

from skipwise import cli
from skipwise.config import FullTuning, LoraTuning
from skipwise.errors import ConfigError
from skipwise.memory import Sharding
from skipwise.model.extend import extended_config
from skipwise.plan import Deployment, Job, plan
from skipwise.plan.cards import MODEL_CARDS
from skipwise.plan.engines import vllm_command
from skipwise.plan.machines import MACHINES, Machine, Utilisation
from skipwise.plan.measure import Measured, Measurer, calibrate_plan, check_machine
from skipwise.plan.profiles import Profiles, formula_prefill_work, formula_profile
from skipwise.plan.recipe import recipe_estimate
from skipwise.plan.serving import BITS, routing_length, serving_estimate, sharing_count, weight_bytes
from skipwise.plan.shape import ModelShape, model_shape, shape_of
from skipwise.plan.training import Approach, TrainingPlanner, smallest_machine
from skipwise.rope import interpolation_from
from skipwise.window import Window

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 500,
    "max_position_embeddings": 256,
}
SHORT = Approach(name="short", window_tokens=256, tuning=FullTuning())


@pytest.fixture(scope="module")
def small() -> Profiles:
    return Profiles(small_shape())


def small_shape(kind: str = "llama") -> ModelShape:
    return shape_of(AutoConfig.for_model(kind, **SMALL))


def machine(gib: float, **options: float) -> Machine:
    return Machine(name="made up", memory_gib=gib, bandwidth_gb=1000, tflops=100, **options)  # pyright: ignore


def test_the_largest_batch_is_the_largest_that_fits(small: Profiles) -> None:
    planner = TrainingPlanner(small, machine(0.7), Utilisation())
    job = Job(global_batch=64)
    best = planner.largest_batch(SHORT, job, Sharding())
    assert 1 < best.micro_batch < 64
    assert best.fits
    assert not planner.estimate(SHORT, job, Sharding(), 2 * best.micro_batch).fits
    assert best.micro_batch * best.accumulation == 64
    assert planner.largest_batch(SHORT, Job(global_batch=2), Sharding()).micro_batch == 2, "no more than a step has"


def test_the_smallest_machine_is_the_least_memory_of_all(small: Profiles) -> None:
    found, estimate = smallest_machine(small, SHORT, Job(), Utilisation()) or pytest.fail("it is tiny")
    assert (found.name, estimate.sharding.processes) == ("L4 24 GB", 1)
    # 2 of 40 GB beat 1 of 80 where they hold it, and nothing smaller does.
    llama = Profiles(model_shape("llama-3-8b"))
    lora = Approach(name="lora", window_tokens=2048, tuning=LoraTuning())
    found, estimate = smallest_machine(llama, lora, Job(), Utilisation()) or pytest.fail("an H100 holds it")
    held = estimate.sharding.processes * found.memory_bytes
    for other in MACHINES.values():
        for count in (1, 2, 4):
            if count * other.memory_bytes < held:
                planner = TrainingPlanner(llama, other, Utilisation())
                kinds = ("ddp",) if count == 1 else ("ddp", "fsdp")
                assert not any(planner.estimate(lora, Job(), Sharding(processes=count, kind=k)).fits for k in kinds)


def test_a_formula_stands_in_for_activations_and_gradients_are_beside_them() -> None:
    shape = small_shape()
    kept, again = (formula_profile(shape, 1000, checkpointing=flag, bits=16) for flag in (False, True))
    # 34 s h of a layer (arXiv 2205.05198, equation 2), of which checkpointing keeps its input, 2 s h.
    assert kept.moments[0].per_layer == 34 * 1000 * 64
    assert again.moments[0].per_layer == 2 * 1000 * 64
    assert kept.peak(4, 10**9) > 10**9 + 4 * 34 * 1000 * 64
    assert formula_profile(shape, 1000, checkpointing=False, bits=32).moments[0].per_layer == 2 * 34 * 1000 * 64


def test_the_formula_for_reading_a_prompt_is_near_what_the_model_does() -> None:
    shape = model_shape("llama-3-8b")
    assert formula_prefill_work(shape, 2048) == pytest.approx(Profiles(shape).prefill_work(2048), rel=0.5)


def test_between_window_lengths_a_step_is_on_the_line_of_real_ones(small: Profiles) -> None:
    options = {"checkpointing": True, "gradients_held": True, "bits": 16}
    between = small.step(3000, 2, FullTuning(), **options)
    traced = Profiles(small.shape)._run(6000, 1, FullTuning(), True, True, 16, torch.float32)
    assert between.peak(4, 0) == pytest.approx(traced.peak(4, 0), rel=0.02)
    assert between.loss_bytes == pytest.approx(traced.loss_bytes, rel=0.02)


def test_what_the_loss_takes_is_told_apart(small: Profiles) -> None:
    planner = TrainingPlanner(small, MACHINES["h100"], Utilisation())
    one = planner.estimate(SHORT, Job(global_batch=1), Sharding())
    every = planner.estimate(replace(SHORT, whole_logits=True), Job(global_batch=1), Sharding())
    # A window of logits in float32 is held at least, and the gradient of the tied head.
    assert one.loss_bytes >= 4 * 500 * 255 + 4 * 500 * 64
    assert every.loss_bytes - one.loss_bytes == 12 * 500 * 256


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_weights_in_fewer_bits_are_those_in_the_layers(bits: int) -> None:
    shape = model_shape("llama-3-8b")
    blocks = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    others = 2 * 128256 * 4096 + 65 * 4096
    assert weight_bytes(shape, bits) == blocks * BITS[bits] / 8 + 2 * others


def test_a_short_request_belongs_to_the_short_mode_up_to_its_window(small: Profiles) -> None:
    served, shares = Deployment(machine=machine(2.0)), Utilisation()
    beginning, times = routing_length(small, served, shares, 256, 4096)
    assert beginning == 257
    counts = [serving_estimate(small, served, shares, n).most_requests for n in (256, 4096)]
    assert times == counts[0] / counts[1]
    assert 15 < times < 17, "the cache is all that grows"
    assert routing_length(small, Deployment(machine=machine(0.6)), shares, 256, 2**30)[1] == float("inf")


def test_heads_are_shared_out_evenly() -> None:
    shape = model_shape("llama-3-8b")
    assert [sharing_count(shape, n) for n in (1, 2, 3, 8, 12, 33)] == [1, 2, 2, 8, 8, 32]
    found = plan("smollm2-135m", target=16384, machine="h100", count=2, job=Job(global_batch=2))
    assert found.deployment.count == 1, "9 heads"
    assert any("Serving is planned on 1 of the 2 x H100" in words for words in found.advice.words)
    assert "--tensor-parallel-size" not in "".join(found.advice.engines.values())


def test_slow_links_make_a_split_model_slow(small: Profiles) -> None:
    job, over = Job(global_batch=8), Sharding(processes=8, kind="fsdp")
    fast, slow = (TrainingPlanner(small, machine(80, link_gb=gb), Utilisation()) for gb in (1e6, 1e-3))
    seconds = [planner.estimate(SHORT, job, over).step_seconds for planner in (fast, slow)]
    assert seconds[1] == pytest.approx(slow.moving_seconds(SHORT, over, 1) + slow.optimizer_seconds(SHORT, over))
    assert seconds[0] < seconds[1]
    numbers = small.shape.counts.total
    # Forward and backward gather 2 bytes of each, gradients are summed in 2: 7 of 8 parts of it come from elsewhere.
    assert slow.moving_seconds(SHORT, over, 1) == pytest.approx(6 * numbers * 7 / 8 / (1e6 * 0.7), rel=1e-3)
    beyond = machine(80, link_gb=450, network_gb=400)
    assert [beyond.link_between(n) for n in (8, 9)] == [450, 400]


def test_a_model_is_split_where_it_must_be(small: Profiles) -> None:
    job = Job(global_batch=8)
    # So slow that computing is all that counts.
    wide, narrow = (
        TrainingPlanner(small, replace(machine(gib, link_gb=1e6), tflops=0.01), Utilisation()) for gib in (80, 0.643)
    )
    assert wide.fastest_split(SHORT, job, 8).sharding.kind == "ddp"
    assert not narrow.estimate(SHORT, job, Sharding(processes=8)).fits
    assert narrow.fastest_split(SHORT, job, 8).sharding.kind == "fsdp"
    assert wide.fastest_split(SHORT, job, 1).sharding == Sharding()


def test_deepspeed_splits_a_float32_copy_and_keeps_halves(small: Profiles) -> None:
    planner = TrainingPlanner(small, MACHINES["h100"], Utilisation())
    numbers = small.shape.counts.total
    one = planner.estimate(SHORT, Job(), Sharding(processes=4, kind="zero1")).state
    # ZeRO's paper, section 5: 2 + 2 + K / N bytes a number, K = 12 for mixed precision Adam.
    assert (one.parameters, one.gradients, one.optimizer) == (2 * numbers, 2 * numbers, 12 * numbers // 4)
    three = planner.estimate(SHORT, Job(), Sharding(processes=4, kind="zero3")).state
    assert three.parameters + three.gradients + three.optimizer == pytest.approx(16 * numbers / 4, rel=1e-6)


def test_a_recipe_costs_its_wide_windows(small: Profiles) -> None:
    window, job = Window(train=256, original=256, target=4096), Job(steps=100, global_batch=8)
    planner = TrainingPlanner(small, machine(80), Utilisation(), price=3.0)
    one = planner.estimate(SHORT, job, Sharding())
    eight = planner.estimate(SHORT, job, Sharding(), 8)
    growing, diluted = (recipe_estimate(planner, one, window, job, name) for name in ("growing", "diluted"))
    assert (growing.widest_tokens, diluted.widest_tokens) == (2048, 256)
    assert diluted.hours == pytest.approx(one.hours)
    assert diluted.total_bytes == one.total_bytes + 2 * 256**2, "a mask in 16 bits"
    # One window at a time stays one: 30 steps of 256 tokens, 40 of 1024, 30 of 2048.
    widest = planner.estimate(replace(SHORT, window_tokens=2048), job, Sharding())
    assert growing.total_bytes == widest.total_bytes + 2 * 2048**2
    parts = [(30, 256), (40, 1024), (30, 2048)]
    hours = sum(
        planner.estimate(replace(SHORT, window_tokens=n), Job(steps=steps, global_batch=8), Sharding()).hours
        for steps, n in parts
    )
    assert growing.hours == pytest.approx(hours)
    assert growing.cost == pytest.approx(3 * hours)
    # Of eight at a time, one wide window takes the place.
    assert recipe_estimate(planner, eight, window, job, "growing").hours < 0.3 * growing.hours


def test_a_text_model_inside_another_is_overridden_where_it_stands() -> None:
    parts = {"vision_config": {"num_hidden_layers": 1}, "text_config": {**SMALL, "head_dim": 16}}
    inside = AutoConfig.for_model("gemma3", **parts)
    window = Window(train=256, original=256, target=1024)
    extended = extended_config(inside, interpolation_from("yarn"), window)
    command = vllm_command("m", 1024, Deployment(machine=MACHINES["h100"]), extended, requests=4, memory_share=0.8)
    assert '\'{"text_config": {"rope_parameters": ' in command
    assert "--gpu-memory-utilization 0.8 --max-num-seqs 4" in command


def test_what_does_not_fit_in_full_is_measured_with_low_rank_additions(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["skipwise.plan.measure"]
    monkeypatch.setattr(module, "model_shape", lambda *_, **__: small_shape())
    full, lora = FullTuning(), LoraTuning(rank=4)
    for gib, expected in ((4.0, full), (0.55, lora)):
        place = replace(machine(gib), bits=32)
        measurer = Measurer("m", place, Utilisation())
        if expected is lora:
            # Between what both take: a plan for each says where that is.
            planner = TrainingPlanner(Profiles(small_shape()), place, Utilisation())
            takes = [
                planner.estimate(replace(SHORT, tuning=one), Job(global_batch=1), Sharding()).total_bytes
                for one in (full, lora)
            ]
            assert takes[1] < takes[0]
            measurer = Measurer("m", replace(place, memory_gib=sum(takes) / 2 / 0.92 / 2**30), Utilisation())
        assert measurer.fitting(256, (full, lora), checkpointing=True) == expected
    with pytest.raises(ConfigError, match=r"takes 0\.\d GiB \(full\) or 0\.\d GiB \(lora\), and of this made up 0\.1"):
        Measurer("m", replace(machine(0.1), bits=32), Utilisation()).fitting(256, (full, lora), checkpointing=True)


def test_a_machine_faster_than_it_was_taken_to_be_gets_its_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    module, told = sys.modules["skipwise.plan.measure"], list[str]()
    monkeypatch.setattr(module, "model_shape", lambda *_, **__: small_shape())
    # Prompts are read four times as fast as half the speed allows, steps as fast as assumed.
    seconds = {"step": (1.0, 1.0), "prefill": (4.0, 1.0)}

    def measured(name: str) -> Measured:
        predicted, real = seconds[name]
        return Measured(
            name=name, predicted_bytes=1, measured_bytes=1, predicted_seconds=predicted, measured_seconds=real
        )

    monkeypatch.setattr(Measurer, "step", lambda *_, **__: measured("step"))
    monkeypatch.setattr(Measurer, "prefill", lambda *_: measured("prefill"))
    place = replace(machine(4.0), bits=32)
    found = calibrate_plan("m", place, Utilisation(), window_tokens=256, tell=told.append)
    assert found.machine.tflops == pytest.approx(200)
    assert found.utilisation.prefill == pytest.approx(1.0)
    assert found.utilisation.training * found.machine.tflops == pytest.approx(0.4 * 100)
    assert told[0] == "three steps of full tuning, a window of 256 tokens each"
    assert told[1:] == ["a prompt of 1024 tokens", "a prompt of 2048 tokens"]


def test_one_accelerator_is_not_taken_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "get_memory_info", lambda: (0, round(79.1 * 2**30)))
    check_machine(MACHINES["h100"])
    with pytest.raises(ConfigError, match=r"whose accelerator has 79\.1 GiB, and --machine is L4 24 GB with 22\.2"):
        check_machine(MACHINES["l4"])


def test_help_names_every_card_and_machine(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        raise SystemExit(cli.main(["plan", "--help"]))
    assert ended.value.code == 0
    words = set(re.split(r"[\s,.:│]+", capsys.readouterr().out.replace("qwen2.5", "qwen2_5")))
    missing = [name for name in (*MODEL_CARDS, *MACHINES, "cpu") if name.replace("qwen2.5", "qwen2_5") not in words]
    assert not missing
