"""What is searched, assumed or interpolated between the exact parts of a plan: batches, machines, recipes, links."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from skipwise import cli
from skipwise.config import FullTuning, LoraTuning, RunConfig
from skipwise.errors import ConfigError
from skipwise.launch import deepspeed_settings
from skipwise.memory import Sharding
from skipwise.model import rope_state, without_weights
from skipwise.model.extend import extended_config
from skipwise.plan import Deployment, Job, plan
from skipwise.plan.cards import MODEL_CARDS
from skipwise.plan.engines import engine_commands, vllm_command
from skipwise.plan.machines import MACHINES, Machine, Utilisation, machine_of
from skipwise.plan.measure import Measured, Measurer, calibrate_plan, check_machine
from skipwise.plan.profiles import Profiles, Step, formula_prefill_work, formula_profile
from skipwise.plan.recipe import recipe_estimate
from skipwise.plan.serving import BITS, routing_length, serving_estimate, sharing_count, weight_bytes
from skipwise.plan.shape import ModelShape, model_shape, shape_of
from skipwise.plan.training import Approach, TrainingPlanner, smallest_machine
from skipwise.rope import interpolation_from
from skipwise.train.arguments import training_settings
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
    assert not planner.estimate(SHORT, job, Sharding(), 2 * best.micro_batch).fits, "of divisors of 64"
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
    step = Step(window_tokens=1000, batch=1, tuning=FullTuning())
    kept, again = (formula_profile(shape, replace(step, checkpointing=flag)) for flag in (False, True))
    # 34 s h of a layer (arXiv 2205.05198, equation 2), of which checkpointing keeps its input, 2 s h.
    assert kept.moments[0].per_layer == 34 * 1000 * 64
    assert again.moments[0].per_layer == 2 * 1000 * 64
    assert kept.peak(4, 10**9) > 10**9 + 4 * 34 * 1000 * 64
    assert formula_profile(shape, replace(step, checkpointing=False, bits=32)).moments[0].per_layer == 2 * 34 * 64000
    every = formula_profile(shape, replace(step, library_loss=True))
    assert every.loss_bytes == 12 * 1000 * 500


def test_the_formula_for_reading_a_prompt_is_near_what_the_model_does() -> None:
    shape = model_shape("llama-3-8b")
    assert formula_prefill_work(shape, 2048) == pytest.approx(Profiles(shape).prefill_work(2048), rel=0.5)


@pytest.mark.parametrize(
    ("kind", "diluted", "library_loss"),
    [
        ("llama", False, False),
        *(
            pytest.param(kind, diluted, library_loss, marks=pytest.mark.slow)
            for kind in ("llama", "gemma2")
            for diluted in (False, True)
            for library_loss in (False, True)
        ),
    ],
)
def test_what_is_not_run_is_on_the_curve_through_what_is(kind: str, diluted: bool, library_loss: bool) -> None:
    shape = shape_of(AutoConfig.for_model(kind, **{**SMALL, "head_dim": 16}))
    profiles = Profiles(shape)
    for window, batch in ((12288, 1), (20480, 1), (3000, 3), (3000, 5)):
        step = Step(window_tokens=window, batch=batch, tuning=FullTuning(), diluted=diluted, library_loss=library_loss)
        found, run = profiles.step(step), profiles._run(step)
        assert found.peak(4, 0) == pytest.approx(run.peak(4, 0), rel=0.02)
        assert found.loss_bytes == pytest.approx(run.loss_bytes, rel=0.02)


def test_what_the_loss_takes_is_told_apart(small: Profiles) -> None:
    planner = TrainingPlanner(small, MACHINES["h100"], Utilisation())
    one = planner.estimate(SHORT, Job(global_batch=1), Sharding())
    every = planner.estimate(replace(SHORT, whole_logits=True), Job(global_batch=1), Sharding())
    # A window of logits in float32 is held at least, and the gradient of the head.
    assert one.loss_bytes >= 4 * 500 * 255 + 4 * 500 * 64
    # In 16 bits and in 32, and what they are shifted and normalised to.
    assert 4 * 500 * 256 * 2 < every.loss_bytes < 20 * 500 * 256


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


@pytest.mark.slow
def test_heads_are_shared_out_evenly(tmp_path: Path) -> None:
    shape = model_shape("llama-3-8b")
    assert [sharing_count(shape, n) for n in (1, 2, 3, 8, 12, 33)] == [1, 2, 2, 8, 8, 32]
    # 28 heads of queries, but 4 of keys, and 18944 rows.
    assert [sharing_count(model_shape("qwen2.5-7b"), n) for n in (3, 7, 8)] == [2, 4, 4]
    odd = {**SMALL, "hidden_size": 72, "num_attention_heads": 9, "num_key_value_heads": 3}
    AutoConfig.for_model("llama", **odd).save_pretrained(tmp_path)
    found = plan(str(tmp_path), target=512, machine="h100", count=2, job=Job(global_batch=2))
    assert found.deployment.count == 1, "9 heads"
    assert any("Serving is planned on 1 of the 2 x H100" in words for words in found.advice.words)
    llama = plan("llama-3-8b", target=16384, machine="h100", count=16, sharding="fsdp", job=Job(global_batch=16))
    assert llama.deployment.count == 8, "within a node, as it fits"
    assert "--tensor-parallel-size" not in "".join(found.advice.engines.values())
    even = {**SMALL, "num_attention_heads": 16, "num_key_value_heads": 16}
    AutoConfig.for_model("llama", **even).save_pretrained(tmp_path)
    found = plan(str(tmp_path), target=512, machine="h100", count=16, job=Job(global_batch=16))
    assert found.deployment.count == 8, "within a node, as it fits"


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


def named(recipe: str) -> RunConfig:
    return RunConfig.from_mapping({"model": "m", "target": 4096, "recipe": recipe})


@pytest.mark.slow
def test_a_recipe_costs_its_wide_windows(small: Profiles) -> None:
    window, job = Window(train=256, original=256, target=4096), Job(steps=100, global_batch=8)
    planner = TrainingPlanner(small, machine(80), Utilisation(), price=3.0)
    one = planner.estimate(SHORT, job, Sharding())
    eight = planner.estimate(SHORT, job, Sharding(), 8)
    growing, diluted = (recipe_estimate(planner, one, window, job, named(name)) for name in ("growing", "diluted"))
    assert (growing.widest_tokens, diluted.widest_tokens) == (2048, 256)
    assert diluted.hours == pytest.approx(one.hours)
    # Its mask of all pairs is in the type of the weights.
    assert one.total_bytes + 4 * 256**2 <= diluted.total_bytes < one.total_bytes + 16 * 256**2
    # A step keeps its tokens: 30 steps of 8 windows of 256 tokens, 40 of 2 of 1024, 30 of one of 2048.
    widest = planner.estimate(replace(SHORT, window_tokens=2048, diluted=True), job, Sharding())
    assert growing.total_bytes == widest.total_bytes
    parts = [(30, 256, 8), (40, 1024, 2), (30, 2048, 1)]
    hours = sum(
        planner.estimate(replace(SHORT, window_tokens=n), Job(steps=steps, global_batch=batch), Sharding()).hours
        for steps, n, batch in parts
    )
    assert growing.hours == pytest.approx(hours)
    assert growing.cost == pytest.approx(3 * hours)
    # Of eight at a time, one wide window takes the place.
    assert recipe_estimate(planner, eight, window, job, named("growing")).hours == pytest.approx(growing.hours)
    # Processes that hold a model together have as many windows as before, however wide.
    for kind, batches in (("ddp", (8, 2, 1)), ("zero3", (8, 8, 8))):
        two = Sharding(processes=2, kind=kind)
        found = recipe_estimate(planner, planner.estimate(SHORT, job, two), window, job, named("growing"))
        expected = sum(
            planner.estimate(replace(SHORT, window_tokens=n), Job(steps=steps, global_batch=batch), two).hours
            for (steps, n, _), batch in zip(parts, batches, strict=True)
        )
        assert found.hours == pytest.approx(expected)


def test_a_text_model_inside_another_is_overridden_where_it_stands() -> None:
    parts = {"vision_config": {"num_hidden_layers": 1}, "text_config": {**SMALL, "head_dim": 16}}
    inside = AutoConfig.for_model("gemma3", **parts)
    window = Window(train=256, original=256, target=1024)
    extended = extended_config(inside, interpolation_from("yarn"), window)
    command = vllm_command("m", 1024, Deployment(machine=MACHINES["h100"]), extended, requests=4, memory_share=0.8)
    assert '\'{"text_config": {"rope_parameters": ' in command
    assert "--gpu-memory-utilization 0.8 --max-num-seqs 4" in command


@pytest.mark.slow
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


def test_a_token_takes_as_long_as_each_reads_its_copy_and_all_add_up() -> None:
    """DeepSeek-V3 on H200: the compressed state belongs to all heads, so every accelerator reads all of it."""
    profiles = Profiles(model_shape("deepseek-v3"))
    seconds = {}
    for count in (16, 32):
        one = Deployment(machine=MACHINES["h200"], count=count)
        found = serving_estimate(profiles, one, Utilisation(decode=1.0), 131072, requests=16)
        cache = 16 * 131072 * 61 * (512 + 64) * 2
        assert found.token_seconds > cache / 4.8e12, "as if it were alone"
        seconds[count] = found.token_seconds
    assert seconds[32] > 0.8 * seconds[16]
    llama = Profiles(model_shape("llama-3-8b"))
    alone, eight = (
        serving_estimate(llama, Deployment(machine=MACHINES["h100"], count=n), Utilisation(decode=1.0), 8192)
        for n in (1, 8)
    )
    read = 2 * (llama.shape.counts.total - llama.shape.counts.embedding) + 2**30
    assert alone.token_seconds == pytest.approx(read / 3.35e12, rel=0.01)
    sums = 2 * 32 * (1e-5 + 2 * 7 / 8 * 4096 * 2 / (450e9 * 0.7))
    assert eight.token_seconds == pytest.approx(read / 8 / 3.35e12 + sums, rel=0.01)


def test_money_is_that_of_a_batch_of_the_most_that_fit() -> None:
    profiles, one = Profiles(model_shape("llama-3-8b")), Deployment(machine=MACHINES["h100"])
    found = serving_estimate(profiles, one, Utilisation(), 8192, price=3.6)
    most = found.most_requests
    batch = serving_estimate(profiles, one, Utilisation(), 8192, requests=most)
    # 3.6 an hour are 0.001 a second.
    seconds = most * found.first_token_seconds + 256 * batch.token_seconds
    assert found.cost_per_million == pytest.approx(0.001 * seconds / (most * 8192) * 1e6)


def test_windows_of_a_step_are_the_jobs(small: Profiles) -> None:
    planner = TrainingPlanner(small, machine(80), Utilisation())
    assert planner.largest_batch(SHORT, Job(global_batch=48), Sharding()).micro_batch == 48
    tight = TrainingPlanner(small, machine(0.68), Utilisation())
    found = tight.largest_batch(SHORT, Job(global_batch=48), Sharding())
    assert 1 < found.micro_batch < 48
    assert found.windows == 48, "it divides them"
    following = next(n for n in range(found.micro_batch + 1, 49) if 48 % n == 0)
    assert not tight.estimate(SHORT, Job(global_batch=48), Sharding(), following).fits
    # 64 over 12: six each.
    twelve = planner.largest_batch(SHORT, Job(global_batch=64), Sharding(processes=12))
    assert (twelve.micro_batch * twelve.accumulation, twelve.windows) == (6, 72)
    slow = TrainingPlanner(small, replace(machine(80), tflops=0.001), Utilisation())
    one, six = (slow.estimate(SHORT, Job(global_batch=n), Sharding(processes=12)) for n in (12, 64))
    assert six.step_seconds == pytest.approx(6 * one.step_seconds, rel=0.01), "of the windows that are trained"


def test_what_is_in_no_layer_is_whole_throughout(small: Profiles) -> None:
    planner = TrainingPlanner(small, MACHINES["h100"], Utilisation())
    layers = [p.numel() for n, p in without_weights(small.shape.config).named_parameters() if ".layers." in n]
    layer, root = sum(layers) // 4, small.shape.counts.total - sum(layers)
    full = planner.estimate(SHORT, Job(), Sharding(processes=2, kind="fsdp"))
    assert full.state.in_transit == 2 * (root + 2 * layer) + 2 * (root + layer)
    lora = planner.estimate(replace(SHORT, tuning=LoraTuning()), Job(), Sharding(processes=2, kind="fsdp"))
    assert lora.state.in_transit == 2 * (root + 2 * layer)


@pytest.mark.slow
@pytest.mark.parametrize(("sharding", "key"), [("fsdp", "fsdp"), ("zero3", "deepspeed"), ("ddp", None)])
def test_a_written_run_is_split_as_it_was_planned(sharding: str, key: str | None, tmp_path: Path) -> None:
    AutoConfig.for_model("llama", **SMALL).save_pretrained(tmp_path)
    found = plan(str(tmp_path), target=512, machine="h100", count=8, sharding=sharding, job=Job(global_batch=8))
    training = found.advice.config["training"]
    assert {"fsdp", "deepspeed"} & set(training) == ({key} if key else set())
    config = RunConfig.from_mapping({**found.advice.config, "output": "nowhere"})
    assert training_settings(config)["per_device_train_batch_size"] == found.training[0].micro_batch
    if key == "deepspeed":
        assert training["deepspeed"]["zero_optimization"] == deepspeed_settings(3)["zero_optimization"]


@pytest.mark.parametrize(("card", "recipe"), [("llama-3-8b", "growing"), ("gemma-3-27b", "paper")])
def test_local_layers_are_not_to_be_trained_under_a_diluted_mask(card: str, recipe: str) -> None:
    found = plan(card, target=262144, machine="h100", count=64)
    assert found.advice.config["recipe"] == recipe
    assert any(words.startswith(f"Recipe: {recipe}. ") for words in found.advice.words)


def test_gemma_is_extended_as_its_weights_are_scaled() -> None:
    shape = model_shape("gemma-3-27b")
    assert (shape.original_tokens, rope_state(shape.config).kind) == (16384, "linear")
    extended = extended_config(
        shape.config, interpolation_from("linear"), Window(train=2048, original=16384, target=262144)
    )
    stretched = vllm_command("m", 262144, Deployment(machine=MACHINES["h100"]), extended, part="text_config")
    assert '\'{"text_config": {"rope_parameters": ' in stretched


@pytest.mark.slow
def test_what_is_printed_starts_on_what_holds_it(tmp_path: Path) -> None:
    """Where the machine that was asked about is too small, the sentence says so and the settings are for enough."""
    found = plan("mistral-7b", target=131072, machine="rtx-4090", job=Job(global_batch=1), lora=LoraTuning(rank=1))
    assert any("Serving one request of 128k does not fit on one RTX 4090" in words for words in found.advice.words)
    assert any("-bit weights with a" in words for words in found.advice.words)
    assert "--tensor-parallel-size 2" in found.advice.engines["vLLM, the extended checkpoint"]


def test_llama_cpp_is_named_for_what_it_runs() -> None:
    gptj = model_shape("gpt-j-6b")
    extended = extended_config(gptj.config, interpolation_from("yarn"), Window(train=512, original=2048, target=8192))
    assert not any(
        "llama.cpp" in name for name in engine_commands("m", 8192, Deployment(machine=MACHINES["l4"]), extended)
    )


def test_engines_are_not_asked_for_what_a_machine_has_not() -> None:
    for name, flag in (("h100", True), ("v100-32", False), ("cpu", False)):
        place = machine_of(name)
        assert ("fp8" in vllm_command("m", 1024, Deployment(machine=place, weight_bits=8, kv_bits=8))) == flag
        assert ("--gpu-memory-utilization" in vllm_command("m", 1024, Deployment(machine=place))) == (name != "cpu")
    shape = model_shape("smollm2-135m")
    extended = extended_config(
        shape.config, interpolation_from("yarn"), Window(train=2048, original=8192, target=16384)
    )
    old = Deployment(machine=MACHINES["v100-32"], weight_bits=8, kv_bits=8)
    found = engine_commands("m", 16384, old, extended)
    assert any("no 8-bit floating point on V100 32 GB" in name for name in found)
    assert "-m CHECKPOINT-Q8_0.gguf" in found["llama.cpp, the extended checkpoint's file"]


def test_a_window_over_several_holds_a_part_of_its_activations(small: Profiles) -> None:
    """And the keys and values of one layer, 2 heads of 16 + 16 numbers in 16 bits, which go round."""
    planner = TrainingPlanner(small, replace(machine(80), tflops=0.001), Utilisation())
    long, job = replace(SHORT, window_tokens=4096), Job(global_batch=8)
    over = Sharding(processes=8, kind="fsdp")
    whole, parts = (planner.estimate(replace(long, context=n), job, over) for n in (1, 4))
    quarter = planner.estimate(replace(long, window_tokens=1024), Job(global_batch=32), over)
    assert parts.activation_bytes == quarter.activation_bytes + 4096 * 2 * (16 + 16) * 2
    assert parts.state == whole.state == quarter.state
    assert (whole.accumulation, parts.accumulation) == (1, 4), "two groups for eight windows"
    assert whole.windows == parts.windows == 8
    assert parts.step_seconds == pytest.approx(whole.step_seconds, rel=1e-6), "the same operations, shared"
    # Links so slow that all waits for them: what goes round comes on top, forward twice, backward, and its gradients.
    idle = replace(machine(80), tflops=1e6, link_gb=1e-3, network_gb=1e-3)
    moving = TrainingPlanner(small, idle, Utilisation())
    ring = 4 * 3 / 4 * (2 + 1 + 2) * 4 * 4096 * 2 * (16 + 16) * 2
    alone = over.moved_bytes(
        gathered_bytes=2 * small.shape.counts.total, trained=small.shape.counts.total, micro_batches=4
    )
    seconds = moving.moving_seconds(replace(long, context=4), over, 4)
    assert seconds == pytest.approx((ring + alone) / (1e-3 * 1e9 * Utilisation().network))


def test_a_plan_over_several_names_them(capsys: pytest.CaptureFixture[str]) -> None:
    asked = {"target": 131072, "machine": "h100", "count": 8, "job": Job(micro_batch=1)}
    found = plan("llama-3-8b", **asked, context=4)
    names = [one.approach.name for one in found.training]
    assert names[0] == "skip-wise"
    assert names[3] == "full length over 4"
    alone = plan("llama-3-8b", **asked)
    assert found.training[0] == alone.training[0]
    assert found.training[3].activation_bytes < 0.4 * alone.training[3].activation_bytes
    for flags, words in (
        (["--count", "8", "--context", "3"], "the context is 3, with 8 accelerators"),
        (["--count", "1", "--context", "2"], "the context is 2, with 1 accelerators"),
    ):
        assert cli.main(["plan", "llama-3-8b", "--target", "128k", *flags]) == 2
        assert words in capsys.readouterr().err
    with pytest.raises(ConfigError, match="see a part of the window alone"):
        plan("gemma-3-27b", target=262144, machine="h100", count=8, context=2)
