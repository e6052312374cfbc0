"""Estimates of training: batches, sharding, recipes, links, and real steps that correct them."""

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from tiny_models import PLANNED, tiny_config

from skipwise.config import FullTuning, LoraTuning, QloraTuning, RunConfig
from skipwise.errors import ConfigError
from skipwise.memory import Sharding
from skipwise.model import without_weights
from skipwise.plan.cards import MODEL_CARDS
from skipwise.plan.machines import MACHINES, Machine, Utilisation
from skipwise.plan.measure import Measured, Measurer, calibrate_plan, check_machine
from skipwise.plan.profiles import Profiles, formula_profile
from skipwise.plan.recipe import recipe_estimate
from skipwise.plan.shape import ModelShape, model_shape, shape_of
from skipwise.plan.trace import Step
from skipwise.plan.training import Approach, Job, TrainingPlanner, approaches, smallest_machine
from skipwise.train.tuning import apply_tuning
from skipwise.window import Window

SHORT = Approach(name="short", window_tokens=256, tuning=FullTuning())


def small_shape(kind: str = "llama") -> ModelShape:
    return shape_of(tiny_config(kind, **PLANNED, **({"head_dim": 16} if kind == "gemma2" else {})))


@cache
def profiles_of(card: str) -> Profiles:
    return Profiles(model_shape(card) if card in MODEL_CARDS else small_shape(card))


def machine(gib: float, **options: Any) -> Machine:
    return Machine("made up", memory_gib=gib, bandwidth_gb=1000, **{"tflops": 100, **options})


def planner(gib: float = 80, *, price: float | None = None, **options: Any) -> TrainingPlanner:
    """For the small model on a machine of so much memory."""
    return TrainingPlanner(profiles_of("llama"), machine(gib, **options), Utilisation(), price=price)


@pytest.mark.parametrize(("target", "fits"), [(8192, True), (16384, False), (32768, False)])
def test_the_papers_machine_holds_skip_wise_training_and_no_full_length_of_16k(target: int, fits: bool) -> None:
    """LLaMA-7B on 8 V100 of 32 GB by ZeRO-3 with checkpointing, global batch 16 (arXiv 2309.10400, figure 3).

    The authors' script accumulates nothing: two windows at a time on each, and the library's own loss.
    """
    v100 = TrainingPlanner(profiles_of("llama-7b"), MACHINES["v100-32"], Utilisation())
    job, sharding = Job(steps=1000, global_batch=16, micro_batch=2), Sharding(processes=8, kind="zero3")
    ways = {way.name: way for way in approaches(2048, target, LoraTuning(), whole_logits=True)}
    assert v100.largest_batch(ways["skip-wise"], job, sharding).fits, "at every target"
    full = v100.largest_batch(ways["full length"], job, sharding)
    assert (full.micro_batch, full.accumulation) == (2, 1)
    assert full.fits == fits
    assert abs(full.total_bytes - full.limit_bytes) > 2**30, "by more than the uncertainty of the assumptions"
    spared = v100.estimate(replace(ways["full length"], whole_logits=False), job, sharding, 2)
    assert full.loss_bytes - spared.loss_bytes > 6 * 2 * target * 32000, "at least all logits in 16 and 32 bits"


@pytest.mark.parametrize(("gib", "windows"), [(0.7, 64), (0.68, 48)])
def test_the_largest_micro_batch_is_the_largest_divisor_that_fits(gib: float, windows: int) -> None:
    job = Job(global_batch=windows)
    best = planner(gib).largest_batch(SHORT, job, Sharding())
    assert 1 < best.micro_batch < windows
    assert best.fits
    assert best.micro_batch * best.accumulation == best.windows == windows
    following = next(n for n in range(best.micro_batch + 1, windows + 1) if windows % n == 0)
    assert not planner(gib).estimate(SHORT, job, Sharding(), following).fits


def test_a_step_has_the_jobs_windows_or_the_next_number_that_processes_share() -> None:
    for windows in (2, 48):
        assert planner().largest_batch(SHORT, Job(global_batch=windows), Sharding()).micro_batch == windows
    twelve = planner().largest_batch(SHORT, Job(global_batch=64), Sharding(processes=12))
    assert (twelve.micro_batch * twelve.accumulation, twelve.windows) == (6, 72)
    slow = planner(tflops=0.001)
    one, six = (slow.estimate(SHORT, Job(global_batch=n), Sharding(processes=12)) for n in (12, 64))
    assert six.step_seconds == pytest.approx(6 * one.step_seconds, rel=0.01)


def test_the_smallest_machine_has_the_least_memory_of_all_that_fit() -> None:
    found, estimate = smallest_machine(profiles_of("llama"), SHORT, Job(), Utilisation()) or pytest.fail("it is tiny")
    assert (found.name, estimate.sharding.processes) == ("L4 24 GB", 1)
    llama, lora = profiles_of("llama-3-8b"), Approach(name="lora", window_tokens=2048, tuning=LoraTuning())
    found, estimate = smallest_machine(llama, lora, Job(), Utilisation()) or pytest.fail("an H100 holds it")
    held = estimate.sharding.processes * found.memory_bytes
    for other in MACHINES.values():
        for count in (1, 2, 4):
            if count * other.memory_bytes < held:
                smaller = TrainingPlanner(llama, other, Utilisation())
                kinds = ("ddp",) if count == 1 else ("ddp", "fsdp")
                assert not any(smaller.estimate(lora, Job(), Sharding(processes=count, kind=k)).fits for k in kinds)


def test_the_formula_of_activations_is_the_papers() -> None:
    step = Step(window_tokens=1000, autocast=torch.bfloat16)
    kept, again, single, whole = (
        formula_profile(small_shape(), replace(step, **change))
        for change in ({"checkpointing": False}, {}, {"checkpointing": False, "autocast": None}, {"library_loss": True})
    )
    # 34 s h per layer (arXiv 2205.05198, equation 2); with checkpointing only its input, 2 s h.
    assert [one.moments[0].per_layer for one in (kept, again, single)] == [34 * 64000, 2 * 64000, 2 * 34 * 64000]
    assert kept.peak(4, 10**9) > 10**9 + 4 * 34 * 64000
    assert whole.loss_bytes == 12 * 1000 * 500


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
def test_a_step_between_traces_is_near_its_own_trace(kind: str, diluted: bool, library_loss: bool) -> None:
    profiles = Profiles(small_shape(kind))
    for window, batch in ((12288, 1), (20480, 1), (3000, 3), (3000, 5)):
        step = Step(window_tokens=window, batch=batch, diluted=diluted, library_loss=library_loss)
        found, traced = profiles.step(step), profiles.run(step)
        assert found.peak(4, 0) == pytest.approx(traced.peak(4, 0), rel=0.02)
        assert found.loss_bytes == pytest.approx(traced.loss_bytes, rel=0.02)


@pytest.mark.slow
def test_masks_of_sliding_layers_grow_with_the_square_of_the_window() -> None:
    at = Step(window_tokens=0, dtype=torch.bfloat16, autocast=torch.bfloat16)
    profiles = profiles_of("gemma-3-27b")
    held = [profiles.step(replace(at, window_tokens=n)).peak(62, 0) for n in (4096, 8192, 16384)]
    # Of c + a n + b n^2 at n, 2n and 4n this leaves 6 b n^2.
    assert held[2] - 3 * held[1] + 2 * held[0] > 4096**2
    several = profiles.step(replace(at, window_tokens=4096, batch=4)).peak(62, 0)
    assert several < held[2], "several windows have a small mask each"


def test_the_loss_holds_slices_of_logits_or_all() -> None:
    one, whole = (
        planner().estimate(replace(SHORT, whole_logits=whole), Job(global_batch=1), Sharding())
        for whole in (False, True)
    )
    assert one.loss_bytes >= 4 * 500 * 255 + 4 * 500 * 64, "float32 logits of a window, and the head's gradient"
    assert 4 * 500 * 256 * 2 < whole.loss_bytes < 20 * 500 * 256


@pytest.mark.parametrize("card", MODEL_CARDS)
def test_states_of_training_are_those_of_the_real_modules(card: str) -> None:
    shape = model_shape(card)
    numbers = sum(parameter.numel() for parameter in without_weights(shape.config).parameters())
    full = TrainingPlanner(Profiles(shape), MACHINES["h100"], Utilisation()).state(SHORT)
    assert (full.parameters, full.gradients, full.optimizer) == (4 * numbers, 4 * numbers, 8 * numbers)


def test_adapters_train_what_peft_makes() -> None:
    profiles = profiles_of("smollm2-135m")
    shape, h100 = profiles.shape, TrainingPlanner(profiles, MACHINES["h100"], Utilisation())
    tuned = apply_tuning(without_weights(shape.config), LoraTuning(rank=8))
    added = sum(p.numel() for p in tuned.parameters() if p.requires_grad)
    state, quantized = (h100.state(replace(SHORT, tuning=kind(rank=8))) for kind in (LoraTuning, QloraTuning))
    assert (state.gradients, state.optimizer) == (4 * added, 8 * added)
    assert state.parameters == 2 * shape.counts.total + 4 * added
    # Seven weights in each of 30 layers have a table of 16 values, one of 256, and a mean.
    tables = 7 * 30 * 4 * (16 + 256 + 1)
    spared = (2 - 4.127 / 8) * (shape.counts.attention + shape.counts.mlp)
    assert quantized.parameters == pytest.approx(state.parameters - spared + tables, rel=1e-4)


def test_links_that_are_slow_decide_the_step() -> None:
    job, over = Job(global_batch=8), Sharding(processes=8, kind="fsdp")
    fast, slow = planner(link_gb=1e6), planner(link_gb=1e-3)
    one = slow.estimate(SHORT, job, over)
    assert one.step_seconds == pytest.approx(one.moving_seconds + slow.optimizer_seconds(SHORT, over))
    assert fast.estimate(SHORT, job, over).step_seconds < one.step_seconds
    # Two gathers and one reduction of 16-bit parameters, 7 of 8 parts of them from other processes.
    numbers = profiles_of("llama").shape.counts.total
    assert one.moving_seconds == pytest.approx(6 * numbers * 7 / 8 / (1e6 * 0.7), rel=1e-3)
    beyond = machine(80, link_gb=450, network_gb=400)
    assert [beyond.link_between(n) for n in (8, 9)] == [450, 400]


def test_a_model_is_sharded_if_it_must_be() -> None:
    job = Job(global_batch=8)
    # So slow that only computing counts.
    wide, narrow = (planner(gib, link_gb=1e6, tflops=0.01) for gib in (80, 0.643))
    assert wide.fastest_split(SHORT, job, 8).sharding.kind == "ddp"
    assert not narrow.estimate(SHORT, job, Sharding(processes=8)).fits
    assert narrow.fastest_split(SHORT, job, 8).sharding.kind == "fsdp"
    assert wide.fastest_split(SHORT, job, 1).sharding == Sharding()


def test_deepspeed_shards_float32_copies_of_16_bit_parameters() -> None:
    numbers = profiles_of("llama").shape.counts.total
    one, three = (
        planner().estimate(SHORT, Job(), Sharding(processes=4, kind=kind)).state for kind in ("zero1", "zero3")
    )
    # ZeRO's paper, section 5: 2 + 2 + K / N bytes per parameter, K = 12 for mixed precision Adam.
    assert (one.parameters, one.gradients, one.optimizer) == (2 * numbers, 2 * numbers, 12 * numbers // 4)
    assert three.parameters + three.gradients + three.optimizer == pytest.approx(16 * numbers / 4, rel=1e-6)


def test_fsdp_gathers_the_root_and_two_layers() -> None:
    shape, over = profiles_of("llama").shape, Sharding(processes=2, kind="fsdp")
    layers = [p.numel() for n, p in without_weights(shape.config).named_parameters() if ".layers." in n]
    layer, root = sum(layers) // 4, shape.counts.total - sum(layers)
    full, lora = (
        planner().estimate(replace(SHORT, tuning=kind()), Job(), over).state.in_transit
        for kind in (FullTuning, LoraTuning)
    )
    assert lora == 2 * (root + 2 * layer)
    assert full == lora + 2 * (root + layer)


@pytest.mark.slow
def test_a_recipe_costs_its_wide_windows() -> None:
    window, job = Window(train=256, original=256, target=4096), Job(steps=100, global_batch=8)
    priced = planner(price=3.0)
    growing, diluted = (
        RunConfig.from_mapping({"model": "m", "target": 4096, "recipe": name}) for name in ("growing", "diluted")
    )
    # A step keeps its tokens: 30 steps of 8 windows of 256 tokens, 40 of 2 of 1024, 30 of one of 2048.
    stages = [(30, 256), (40, 1024), (30, 2048)]

    def hours(batches: tuple[int, ...], sharding: Sharding) -> float:
        return sum(
            priced.estimate(replace(SHORT, window_tokens=n), Job(steps=steps, global_batch=batch), sharding).hours
            for (steps, n), batch in zip(stages, batches, strict=True)
        )

    one, eight = (priced.estimate(SHORT, job, Sharding(), batch) for batch in (1, 8))
    found, short = (recipe_estimate(priced, one, window, job, run) for run in (growing, diluted))
    assert (found.widest_tokens, short.widest_tokens) == (2048, 256)
    assert short.hours == pytest.approx(one.hours)
    # A mask of all pairs, in the dtype of the weights.
    assert one.total_bytes + 4 * 256**2 <= short.total_bytes < one.total_bytes + 16 * 256**2
    widest = priced.estimate(replace(SHORT, window_tokens=2048, diluted=True), job, Sharding())
    assert found.total_bytes == widest.total_bytes
    assert found.hours == pytest.approx(hours((8, 2, 1), Sharding()))
    assert found.cost == pytest.approx(3 * found.hours)
    assert recipe_estimate(priced, eight, window, job, growing).hours == pytest.approx(found.hours)
    # Processes that share a model have as many windows as before, however wide.
    for kind, batches in (("ddp", (8, 2, 1)), ("zero3", (8, 8, 8))):
        two = Sharding(processes=2, kind=kind)
        over_two = recipe_estimate(priced, priced.estimate(SHORT, job, two), window, job, growing)
        assert over_two.hours == pytest.approx(hours(batches, two))


def test_a_window_split_over_processes_holds_a_part_of_its_activations() -> None:
    """And the keys and values of one layer, 2 heads of 16 + 16 values in 16 bits, which go round the ring."""
    slow, long, job = planner(tflops=0.001), replace(SHORT, window_tokens=4096), Job(global_batch=8)
    over = Sharding(processes=8, kind="fsdp")
    whole, parts = (slow.estimate(replace(long, context=n), job, over) for n in (1, 4))
    quarter = slow.estimate(replace(long, window_tokens=1024), Job(global_batch=32), over)
    assert parts.activation_bytes == quarter.activation_bytes + 4096 * 2 * (16 + 16) * 2
    assert parts.state == whole.state == quarter.state
    assert (whole.accumulation, parts.accumulation) == (1, 4), "two groups for eight windows"
    assert whole.windows == parts.windows == 8
    assert parts.step_seconds == pytest.approx(whole.step_seconds, rel=1e-6), "the same operations, shared"
    # Links so slow that only communication counts: forward twice, backward, and float32 gradients.
    numbers = profiles_of("llama").shape.counts.total
    ring = 4 * 3 / 4 * (2 + 1 + 2) * 4 * 4096 * 2 * (16 + 16) * 2
    alone = over.moved_bytes(gathered_bytes=2 * numbers, trained=numbers, micro_batches=4)
    seconds = planner(link_gb=1e-3, network_gb=1e-3).moving_seconds(replace(long, context=4), over, 4)
    assert seconds == pytest.approx((ring + alone) / (1e-3 * 1e9 * Utilisation().network))


@pytest.fixture
def measurer(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], Measurer]:
    """Measures the small model on a CPU with so much memory."""
    monkeypatch.setattr(sys.modules["skipwise.plan.measure"], "model_shape", lambda *_, **__: small_shape())
    return lambda gib: Measurer("m", machine(gib, bits=32), Utilisation())


@pytest.mark.slow
def test_lora_is_measured_if_full_tuning_does_not_fit(measurer: Callable[[float], Measurer]) -> None:
    tunings = FullTuning(), LoraTuning(rank=4)
    takes = [
        planner(bits=32).estimate(replace(SHORT, tuning=one), Job(global_batch=1), Sharding()).total_bytes
        for one in tunings
    ]
    assert takes[1] < takes[0]
    assert measurer(4.0).fitting(256, tunings, checkpointing=True) == tunings[0]
    assert measurer(sum(takes) / 2 / 0.92 / 2**30).fitting(256, tunings, checkpointing=True) == tunings[1]
    with pytest.raises(ConfigError, match=r"0\.\d GiB \(full\) or 0\.\d GiB \(lora\)"):
        measurer(0.1).fitting(256, tunings, checkpointing=True)


def test_a_machine_faster_than_assumed_gets_its_speed(
    measurer: Callable[[float], Measurer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefill is four times as fast as half the speed allows, steps as fast as assumed."""

    def measured(ratio: float) -> Measured:
        return Measured(name="", predicted_bytes=1, measured_bytes=1, predicted_seconds=ratio, measured_seconds=1.0)

    monkeypatch.setattr(Measurer, "step", lambda *_, **__: measured(1.0))
    monkeypatch.setattr(Measurer, "prefill", lambda *_: measured(4.0))
    told = list[str]()
    found = calibrate_plan("m", machine(4.0, bits=32), Utilisation(), window_tokens=256, tell=told.append)
    assert found.machine.tflops == pytest.approx(200)
    assert found.utilisation.prefill == pytest.approx(1.0)
    assert found.utilisation.training * found.machine.tflops == pytest.approx(0.4 * 100)
    assert len(told) == 3, "a step and two prefills"


def test_one_accelerator_is_not_taken_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "get_memory_info", lambda: (0, round(79.1 * 2**30)))
    check_machine(MACHINES["h100"])
    with pytest.raises(ConfigError, match="L4 24 GB"):
        check_machine(MACHINES["l4"])
