"""A training step of `extend`, of TRL's SFTTrainer and of a bare loop: time, peak memory and loss.

Every step of every side trains on one and the same window, so that the losses of all steps must agree: this holds
forward pass, backward pass and optimizer to each other. The same on all sides: float32 weights, batch 1, no gradient
checkpointing, no packing, labels on every token, fused AdamW at a constant 2e-5 without weight decay, gradients clipped
at 1. Each measurement has its own process. A step is timed from the end of one optimizer step to the end of the next,
so the first of a process is not.
"""

import json
import resource
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from benchmarks.peers.clock import Clock
from benchmarks.peers.installing import TRL, SkippedError, install, measure_apart
from benchmarks.peers.plan import Plan
from benchmarks.peers.rows import OURS, Row, Skipped

SKIPS = f"{OURS}, with skips"
SIDES = ("bare loop", TRL.shown, OURS, SKIPS)
TOLERANCE = 1e-4


def measure(plan: Plan) -> Iterator[Row | Skipped]:
    """Runs all sides in turn, at every window."""
    pythons = dict.fromkeys(SIDES, sys.executable)
    try:
        pythons[TRL.shown] = install(TRL, plan.folder)
    except SkippedError as error:
        yield Skipped(part="training", side=TRL.shown, reason=str(error))
        del pythons[TRL.shown]
    for window in plan.windows:
        runs: dict[str, list[Any]] = {side: [] for side in pythons}
        for number in range(plan.rounds):
            for side in list(pythons)[:: -1 if number % 2 else 1]:
                question = {"side": side, "model": plan.model, "window": window, "steps": plan.steps}
                try:
                    runs[side].append(measure_apart("training", question, pythons[side]))
                except SkippedError as error:
                    if side != TRL.shown:
                        raise
                    yield Skipped(part="training", side=side, reason=str(error))
        yield from _rows(window, {side: found for side, found in runs.items() if found})


def _rows(window: int, runs: dict[str, list[Any]]) -> Iterator[Row]:
    """Rows of one window; raises if the losses of those that see the same differ."""
    case = f"a step, window {window}"
    losses = runs[OURS][0]["losses"]
    for side, found in runs.items():
        for one in found:
            apart = max(abs(a / b - 1) for a, b in zip(one["losses"], losses, strict=True))
            if side != SKIPS and apart > TOLERANCE:
                raise AssertionError(f"losses of {side}: {one['losses']}; of {OURS}: {losses}")
    for side, found in runs.items():
        how = {"part": "training", "case": case, "side": side}
        how["different"] = "other positions, so another loss" if side == SKIPS else ""
        for name, clock in (("seconds", "wall"), ("processor seconds", "cpu")):
            yield Row(metric=name, values=[lap for one in found for lap in one[clock]], **how)
        yield Row(metric="peak GiB", values=[one["peak_gib"] for one in found], **how)
        yield Row(metric="loss of the last step", values=[one["losses"][-1] for one in found], **how)


def bare(model: Any, ids: Any, steps: int) -> list[float]:
    """Losses of a plain loop."""
    from benchmarks import training_step

    losses: list[float] = []
    model.register_forward_hook(lambda _module, _inputs, found: losses.append(found.loss.item()))
    training_step.bare(model, ids.expand(steps, -1), steps, checkpointing=False)
    return losses


def trl(model: Any, ids: Any, steps: int, tokenizer: Any) -> list[float]:
    """Losses of TRL's SFTTrainer."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer  # type: ignore[import-not-found]

    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(
                output_dir=folder,
                max_steps=steps,
                per_device_train_batch_size=1,
                gradient_checkpointing=False,
                bf16=False,
                learning_rate=2e-5,
                lr_scheduler_type="constant",
                warmup_steps=0,
                weight_decay=0.0,
                max_grad_norm=1.0,
                optim="adamw_torch_fused",
                packing=False,
                max_length=None,
                completion_only_loss=False,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_dict({"input_ids": [ids.tolist()] * steps}),
            processing_class=tokenizer,
        )
        trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def skipwise(model: Any, ids: Any, steps: int, *, skips: bool) -> list[float]:
    """Losses of the Trainer of `extend`, without skips in the manner of the others, or with them."""
    from skipwise.positions import Plain, PoSE
    from skipwise.train.timing import step_log

    log = step_log(
        model,
        [ids.numpy()] * steps,
        sampler=PoSE() if skips else Plain(),
        gradient_checkpointing=False,
        lr_scheduler_type="constant",
        warmup_steps=0,
        learning_rate=2e-5,
    )
    return [entry["loss"] for entry in log]


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """One side, in this process."""
    side = question["side"]
    if side.startswith(OURS):  # as the command does
        from skipwise.allocator import use_huge_pages, use_one_malloc_arena

        use_huge_pages()
        use_one_malloc_arena()
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook

    from skipwise.model import load_model

    clock = Clock()
    register_optimizer_step_post_hook(lambda *_: clock.lap())
    torch.manual_seed(0)
    model, tokenizer = load_model(question["model"], dtype="float32")
    model.train()
    ids = torch.randint(100, model.config.vocab_size - 100, (question["window"],))
    how = model, ids, question["steps"]
    if side == SIDES[0]:
        losses = bare(*how)
    elif side == TRL.shown:
        losses = trl(*how, tokenizer)
    else:
        losses = skipwise(*how, skips=side == SKIPS)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"wall": clock.wall, "cpu": clock.cpu, "losses": losses, "peak_gib": peak}


if __name__ == "__main__":
    print(json.dumps(answer(json.loads(sys.argv[1]))))
