"""The end of a run: the trained model gathered, merged, saved and calibrated, and the record of what was done."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor

from skipwise.config import QloraTuning
from skipwise.data.stream import DocumentStream
from skipwise.doctor import Verdict
from skipwise.model import (
    check_saved,
    empty_twin,
    first_layers,
    portability_note,
    save_in_parts,
    save_model,
    share_weights,
)
from skipwise.records.runs import ADAPTER
from skipwise.train.calibration import calibrate_run
from skipwise.train.data import shows_bars
from skipwise.train.durable import step_of
from skipwise.train.plain_parts import filled, plain_parts
from skipwise.train.preparation import load
from skipwise.train.process import peak_bytes
from skipwise.train.quantized import give_back, merged_in_full, run_dtype
from skipwise.train.record import streamed_counts, write_record
from skipwise.train.session import Session
from skipwise.train.sharding import gathered, loaded_whole, tied_names
from skipwise.train.steps import Trained
from skipwise.train.tuning import apply_tuning, is_adapted, merged


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtendResult:
    """What a run left behind.

    Attributes:
        folder: of the extended model; of the checkpoints if the run was stopped.
        finished: False if the run was stopped on request and can be resumed.
        steps: optimizer steps done so far.
        verdicts: of the preflight.
        log: the Trainer's log, one dict per entry: loss by step, and validation perplexities, also before training.
            With several processes, only the first one has it.
        record: the contents of `skipwise.json`; empty if the run was stopped.
    """

    folder: Path
    finished: bool
    steps: int
    verdicts: list[Verdict]
    log: list[dict[str, Any]]
    record: dict[str, Any]


def deliver(run: Session, trained: Trained) -> ExtendResult:
    """Leaves the extended model in its folder, if the run is finished."""
    steps, log = trained.trainer.state.global_step, trained.log.entries()
    record: dict[str, Any] = {}
    if trained.finished:
        record = trained.record | _what_was_done(run, trained, steps, log)
        _write_model(run, trained, record)
    folder = run.folder.path
    return ExtendResult(
        folder=folder, finished=trained.finished, steps=steps, verdicts=run.verdicts, log=log, record=record
    )


def _what_was_done(run: Session, trained: Trained, steps: int, log: list[dict[str, Any]]) -> dict[str, Any]:
    done = {
        "steps": steps,
        # Seconds and peak memory are those of this process, from this step on.
        "resumed_at_step": None if run.checkpoint is None else step_of(run.checkpoint),
        "seconds": round(time.monotonic() - run.began, 1),
        "training_seconds": round(sum(entry.get("step_seconds", 0.0) for entry in log), 1),
        "peak_bytes": peak_bytes(),
        "bad_steps": run.bad_items.bad_steps,
        "skipped_items": run.bad_items.skipped,
        "log": log,
    }
    if isinstance(trained.documents, DocumentStream):
        done["corpus"] = trained.record["corpus"] | streamed_counts(trained.documents, run.checked.sources)
    return done


def _write_model(run: Session, trained: Trained, record: dict[str, Any]) -> None:
    """Saves the model as a plain one, calibrates it if asked to, and writes the record last."""
    folder, writes = run.folder.path, trained.trainer.is_world_process_zero()
    if run.shards:
        _write_shards(run, trained, record)
        return
    plain = _plain_model(run, trained, record)
    # The chunked loss, which replaced the model's own forward pass.
    vars(plain).pop("forward", None)
    assert run.loaded is not None
    if writes:
        save_model(plain, run.loaded.tokenizer, folder)
        with loaded_whole(run.arguments):
            check_saved(plain, folder)
    factor = None
    if trained.to_calibrate_on is not None:
        record["calibration"], factor = _calibrated(run, trained, plain)
    if writes:
        write_record(run, record, note=portability_note(plain.config), factor=factor)


def _write_shards(run: Session, trained: Trained, record: dict[str, Any]) -> None:
    """The same for a model that FSDP2 has split, by all processes together; none ever holds it whole."""
    trainer, tuning, folder = trained.trainer, run.config.tuning, run.folder.path
    model: Any = trainer.model
    assert run.loaded is not None
    plain: Any = model
    dtype = None
    if is_adapted(model):
        trainer.save_model(str(folder / ADAPTER), _internal_call=True)
        plain = model.get_base_model()
    if isinstance(tuning, QloraTuning):
        dtype = run_dtype(run.config, run.checked.base)
        record["merge"] = _merge_of(tuning, dtype)
    twin = empty_twin(plain, dtype)
    to_compare = first_layers(twin, 1)

    missing = set(twin.state_dict()) - tied_names(twin)

    def remembered(parts: Iterable[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
        for part in parts:
            missing.difference_update(part)
            if trainer.is_world_process_zero():
                to_compare.update({name: tensor for name, tensor in part.items() if name in to_compare})
            yield part

    save_in_parts(twin, run.loaded.tokenizer, folder, remembered(plain_parts(model, tuning, dtype)))
    if missing:
        raise RuntimeError(f"weights of the split model were not written: {', '.join(sorted(missing)[:3])}")
    if trainer.is_world_process_zero():
        check_saved(filled(twin, to_compare), folder, layers=1)
        write_record(run, record, note=portability_note(twin.config), factor=None)


def _merge_of(tuning: QloraTuning, dtype: torch.dtype) -> dict[str, Any]:
    """The entry for the record on how additions to a base in 4 bits were merged."""
    return {
        "into": "the weights that the additions were trained over, dequantized",
        "quant": tuning.quant,
        "double_quant": tuning.double_quant,
        "summed_in": "float32",
        "saved_in": str(dtype).removeprefix("torch."),
    }


def _plain_model(run: Session, trained: Trained, record: dict[str, Any]) -> Any:
    """The trained model with additions merged, whole in the process that writes; additions are saved beside it.

    In the other processes of a split model it is the trained one.
    """
    trainer, tuning = trained.trainer, run.config.tuning
    model: Any = trainer.model
    writes = trainer.is_world_process_zero()
    if run.split:
        model = gathered(trainer, lambda: apply_tuning(load(run).model, tuning))
    if writes and is_adapted(model):
        model.save_pretrained(str(run.folder.path / ADAPTER), save_embedding_layers=False)
        share_weights(run.folder.path / ADAPTER)
    if isinstance(tuning, QloraTuning):
        dtype = run_dtype(run.config, run.checked.base)
        record["merge"] = _merge_of(tuning, dtype)
        if writes or trained.to_calibrate_on is not None:
            plain = merged_in_full(model, load(run, dtype="float32").model, tuning, dtype)
            give_back(model)
            return plain
    elif writes or not run.split:
        return merged(model)
    return model


def _calibrated(run: Session, trained: Trained, plain: Any) -> tuple[dict[str, Any], str]:
    """Chooses the attention factor: the entry for the record, and a line for the card."""
    trainer, documents = trained.trainer, trained.to_calibrate_on
    assert run.loaded is not None
    assert documents is not None
    # A pass at the target may need the memory of gradients and optimizer.
    plain.zero_grad(set_to_none=True)
    trainer.optimizer = trainer.lr_scheduler = None
    trainer.accelerator.free_memory()
    plain.to(PartialState().device)
    how = {"seed": run.config.seed, "progress": shows_bars(run.config)}
    return calibrate_run(plain, run.loaded.tokenizer, documents, run.folder.path, **how)
