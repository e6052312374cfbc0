"""Extend a model: from a run's settings to a checkpoint folder that any reader loads.

    config -> model with the interpolation built in -> preflight -> token store -> curriculum -> Trainer -> folder

The folder holds safetensors, `config.json` for readers of both eras, the tokenizer, a model card, and `skipwise.json`
with everything that was done. While training, `run.yaml` and the Trainer's `checkpoint-<step>` folders stand beside them.
"""

import contextlib
import dataclasses
import difflib
import importlib.metadata
import json
import logging
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import PartialState
from peft import PeftModel

from skipwise.config import RunConfig
from skipwise.corpus import TokenStore, build_store
from skipwise.doctor import Verdict, doctor, require_healthy
from skipwise.errors import CheckpointError, ConfigError, DataError
from skipwise.evals import evaluate
from skipwise.items import TrainingItems
from skipwise.loss import use_chunked_loss
from skipwise.model import LoadedModel, load_model, original_window, portability_note, read_config, save_model
from skipwise.positions import PositionSampler
from skipwise.report import write_model_card
from skipwise.train.curriculum import Curriculum, RetrievalExercises, Stage, collate
from skipwise.train.trainer import SkipwiseTrainer, StopOnRequest, Stopwatch, Validate, last_checkpoint
from skipwise.train.tuning import apply_tuning, merged
from skipwise.window import Window

logger = logging.getLogger("skipwise")

GLOBAL_BATCH = 64
"""Windows of one optimizer step where the run's settings say nothing: the paper's."""

_KNOWN = {field.name for field in dataclasses.fields(transformers.TrainingArguments) if field.init}
# Later releases of transformers 5 renamed it and warn of the old name.
_CHECKPOINTING = "activation_checkpointing" if "activation_checkpointing" in _KNOWN else "gradient_checkpointing"

# The paper's recipe (section 4.1), under whatever the run's own settings say.
_RECIPE: dict[str, Any] = {
    "max_steps": 1000,
    "learning_rate": 2e-5,
    "warmup_steps": 10,
    "lr_scheduler_type": "linear",
    "weight_decay": 0.0,
    "per_device_train_batch_size": 1,
    _CHECKPOINTING: True,
    f"{_CHECKPOINTING}_kwargs": {"use_reentrant": False},
    "optim": "adamw_torch_fused",
    "logging_steps": 1,
    "save_steps": 100,
    "save_total_limit": 2,
    "report_to": "none",
}
# Settings of TrainingArguments that a run says elsewhere, and where.
_SAID_ELSEWHERE = {
    "output_dir": "output",
    "seed": "seed",
    "data_seed": "seed",
    "eval_strategy": "validation.every_steps",
    "eval_steps": "validation.every_steps",
    "resume_from_checkpoint": "the flag --resume",
    "remove_unused_columns": "nothing; items have no unused columns",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtendResult:
    """What a run left behind.

    Attributes:
        folder: of the extended model; of the checkpoints where the run was stopped.
        finished: False where the run was stopped on request and can be resumed.
        steps: optimizer steps done so far.
        verdicts: of the preflight.
        log: the Trainer's log, one dict an entry: loss by step, validation perplexities.
        record: what stands in `skipwise.json`; empty where the run was stopped.
    """

    folder: Path
    finished: bool
    steps: int
    verdicts: list[Verdict]
    log: list[dict[str, Any]]
    record: dict[str, Any]


def extend(config: RunConfig, *, sampler: PositionSampler | None = None, resume: bool = False) -> ExtendResult:
    """Extends a model's context window by skip-wise training.

    Args:
        config: the run.
        sampler: used in place of the one that `config.sampler` describes, for samplers of your own.
        resume: go on from the run's last checkpoint; the result is that of an uninterrupted run.

    Raises:
        ConfigError: settings that cannot be used, or an output folder that is taken.
        DataError: documents that cannot be read, or too short.
        CheckpointError: a model or checkpoint that cannot be read or written.
        UnsupportedModelError: the model has no positions to extend, or the preflight failed.
    """
    check_training_names(config.training)
    window = config.resolve_window(original_window(_config_of(config)))
    sampler = sampler or config.build_sampler()
    checkpoint = _claim_folder(config, resume)
    use_one_malloc_arena()
    stopwatch = Stopwatch()
    transformers.set_seed(config.seed)

    loaded = _load(config, window)
    loaded.model.to(PartialState().device)  # pyright: ignore[reportArgumentType]
    arguments = training_arguments(config)
    verdicts = doctor(
        loaded.model,
        window,
        config.build_interpolation(),
        tokenizer=loaded.tokenizer,
        gradient_checkpointing=getattr(arguments, _CHECKPOINTING),
        seed=config.seed,
    )
    for verdict in verdicts:
        logger.info(verdict.line)
    require_healthy(verdicts)

    curriculum, store = _curriculum(config, loaded.tokenizer, sampler, window, arguments)
    validate = _validation(config, loaded, window)
    untrained = validate() if validate and checkpoint is None else {}
    if untrained:
        logger.info("before training: " + "  ".join(f"{name} {value:.2f}" for name, value in untrained.items()))
    use_chunked_loss(loaded.model)
    model = apply_tuning(loaded.model, config.tuning)
    stop = StopOnRequest(logger.warning)
    trainer = SkipwiseTrainer(
        model=model,
        args=arguments,
        train_dataset=curriculum,
        # Only its presence matters: `validate` brings its own documents.
        eval_dataset=curriculum,
        data_collator=collate,
        processing_class=loaded.tokenizer,
        callbacks=[stop],
        validate=validate,
    )
    with stop.listening():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    steps = trainer.state.global_step
    if stop.requested and steps < trainer.state.max_steps:
        return ExtendResult(
            folder=config.output_folder,
            finished=False,
            steps=steps,
            verdicts=verdicts,
            log=trainer.state.log_history,
            record={},
        )
    trainer.evaluate()
    return _finish(config, loaded, model, trainer, window, store, sampler, verdicts, stopwatch)


def check_training_names(settings: dict[str, Any]) -> None:
    """Refuses names that `transformers.TrainingArguments` does not have, or that a run says elsewhere."""
    for name in settings:
        if name in _SAID_ELSEWHERE:
            raise ConfigError(f"setting 'training.{name}' is not for here; a run says it by {_SAID_ELSEWHERE[name]}")
        if name not in _KNOWN:
            nearest = difflib.get_close_matches(name, _KNOWN, n=1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else "see transformers.TrainingArguments"
            raise ConfigError(f"setting 'training.{name}' is unknown; {hint}")


def training_arguments(config: RunConfig) -> transformers.TrainingArguments:
    """The run's `training` settings over the paper's recipe."""
    settings = {**_RECIPE, "dataloader_pin_memory": torch.cuda.is_available(), **config.training}
    if _CHECKPOINTING != "gradient_checkpointing":
        for suffix in ("", "_kwargs"):
            if (old := f"gradient_checkpointing{suffix}") in settings:
                settings[f"{_CHECKPOINTING}{suffix}"] = settings.pop(old)
    if "num_train_epochs" in config.training:
        raise ConfigError("setting 'training.num_train_epochs' is not for here; give training.max_steps")
    if "gradient_accumulation_steps" not in settings:
        world = int(os.environ.get("WORLD_SIZE", "1"))
        settings["gradient_accumulation_steps"] = max(
            1, GLOBAL_BATCH // (world * settings["per_device_train_batch_size"])
        )
    every = config.validation.every_steps
    try:
        return transformers.TrainingArguments(
            **settings,
            output_dir=str(config.output_folder),
            seed=config.seed,
            data_seed=config.seed,
            eval_strategy="steps" if every else "no",
            eval_steps=every or None,
            remove_unused_columns=False,
        )
    except (TypeError, ValueError, ImportError) as error:
        raise ConfigError(f"settings under 'training' cannot be used: {' '.join(str(error).split())}") from error


def use_one_malloc_arena() -> None:
    """Lets all threads allocate from one heap, where the C library is glibc; elsewhere does nothing.

    Autograd runs the backward pass in a thread of its own, and glibc gives each thread its own heap: what the forward
    pass frees would then never serve the backward pass. On a CPU that is several hundred megabytes of a training step.
    """
    import ctypes

    arena_max, mmap_threshold, trim_threshold = -8, -3, -1
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(arena_max, 1)
        mallopt(mmap_threshold, 8 * 2**20)
        mallopt(trim_threshold, 16 * 2**20)


def _config_of(config: RunConfig) -> Any:
    return read_config(config.model, trust_remote_code=config.trust_remote_code)


def _load(config: RunConfig, window: Window) -> LoadedModel:
    return load_model(
        config.model,
        interpolation=config.build_interpolation(),
        window=window,
        dtype=config.dtype,
        attention=config.attention,
        trust_remote_code=config.trust_remote_code,
    )


def _claim_folder(config: RunConfig, resume: bool) -> Path | None:
    """Takes the output folder for this run; returns the checkpoint to go on from, or None for a new run."""
    folder, run_file = config.output_folder, config.output_folder / "run.yaml"
    if not resume:
        if folder.exists() and any(folder.iterdir()):
            raise ConfigError(
                f"output folder {str(folder)!r} is not empty; go on with --resume, or give another with --output"
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            run_file.write_text(config.to_yaml(), encoding="utf-8")
        except OSError as error:
            raise CheckpointError(f"output folder {str(folder)!r} cannot be written: {error.strerror}") from error
        return None
    if not run_file.exists():
        raise ConfigError(f"there is no run in {str(folder)!r} to resume; start it without --resume")
    begun = RunConfig.from_yaml(run_file)
    changed = [name for name in RunConfig.model_fields if getattr(begun, name) != getattr(config, name)]
    if changed:
        raise ConfigError(
            f"the run in {str(folder)!r} was begun with other settings of {', '.join(changed)}; "
            "resume it with its own, or begin another with --output"
        )
    checkpoint = last_checkpoint(folder)
    if checkpoint is None and (folder / "skipwise.json").exists():
        raise ConfigError(f"the run in {str(folder)!r} is finished; begin another with --output")
    return checkpoint


def _curriculum(
    config: RunConfig,
    tokenizer: Any,
    sampler: PositionSampler,
    window: Window,
    arguments: transformers.TrainingArguments,
) -> tuple[Curriculum, TokenStore]:
    num_steps = int(arguments.max_steps)
    windows = [(0, window)]
    if config.growth is not None:
        begin = round(num_steps * (1 - config.growth.share))
        windows.append((begin, dataclasses.replace(window, train=config.growth.window)))
    stores = [_store(config, tokenizer, "train", stage_window.train) for _, stage_window in windows]
    retrieval = config.data.retrieval
    stages = []
    for (begin, stage_window), store in zip(windows, stores, strict=True):
        items = TrainingItems(store, sampler, stage_window, config.seed, config.data.mask_joints)
        exercises = RetrievalExercises(tokenizer, store, sampler, stage_window, config.seed) if retrieval > 0 else None
        stages.append((begin, Stage(items, exercises, retrieval, config.seed)))
    logger.info(f"training on {stores[0].num_documents:,} documents; {stores[0].counts}")
    per_step = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    return Curriculum(stages, num_steps, per_step), stores[0]


def _store(config: RunConfig, tokenizer: Any, part: Any, at_least: int, join: bool | None = None) -> TokenStore:
    data = config.data
    return build_store(
        data.source,
        tokenizer,
        field=data.field,
        min_tokens=max(at_least, data.min_tokens or 0),
        join=data.join if join is None else join,
        part=part,
        held_out_share=data.held_out,
        progress=not config.training.get("disable_tqdm", False),
    )


def _validation(config: RunConfig, loaded: LoadedModel, window: Window) -> Validate | None:
    """Perplexity of the same last tokens at growing lengths, on held-out documents as long as the longest."""
    lengths = sorted(config.validation.lengths or _doublings(window))
    if config.data.held_out == 0:
        logger.warning("no validation while training: data.held_out is 0, so every document is trained on")
        return None
    try:
        store = _store(config, loaded.tokenizer, "held_out", lengths[-1])
    except DataError:
        try:
            store = _store(config, loaded.tokenizer, "held_out", lengths[-1], join=True)
            logger.warning(f"validation joins held-out documents: none has {lengths[-1]} tokens by itself")
        except DataError as error:
            logger.warning(f"no validation while training: {error}")
            return None
    documents = [store.document(i) for i in range(min(store.num_documents, config.validation.num_documents))]
    task = {"kind": "perplexity", "num_documents": len(documents)}

    def validate() -> dict[str, float]:
        results = evaluate(loaded.model, loaded.tokenizer, [task], lengths, documents, seed=config.seed, progress=False)
        return {f"perplexity_{result.length_tokens}": result.value for result in results}

    return validate


def _doublings(window: Window) -> list[int]:
    count = int(math.log2(window.factor) + 1e-9)
    return sorted({*(window.original * 2**power for power in range(count + 1)), window.target})


def _finish(
    config: RunConfig,
    loaded: LoadedModel,
    trained: Any,
    trainer: SkipwiseTrainer,
    window: Window,
    store: TokenStore,
    sampler: PositionSampler,
    verdicts: list[Verdict],
    stopwatch: Stopwatch,
) -> ExtendResult:
    """Writes the extended model and what was done; only the first process writes."""
    folder = config.output_folder
    record: dict[str, Any] = {
        "config": config.model_dump(),
        "window": dataclasses.asdict(window),
        "sampler": repr(sampler),
        "interpolation": repr(config.build_interpolation()),
        "corpus": {"fingerprint": store.fingerprint, "documents": store.num_documents, "counts": str(store.counts)},
        "preflight": [dataclasses.asdict(verdict) for verdict in verdicts],
        "seed": config.seed,
        "steps": trainer.state.global_step,
        "seconds": round(stopwatch.seconds, 1),
        "peak_bytes": stopwatch.peak_bytes,
        "log": trainer.state.log_history,
        "versions": versions(),
    }
    if trainer.is_world_process_zero():
        if isinstance(trained, PeftModel):
            trained.save_pretrained(folder / "adapter")
        model = merged(trained)
        del model.forward
        save_model(model, loaded.tokenizer, folder)
        write_model_card(
            folder,
            base=config.model,
            window=window,
            interpolation=config.interpolation,
            sampler=config.sampler,
            tuning=config.tuning.model_dump(),
            data=config.data.model_dump(),
            verdicts=verdicts,
            notes=[note] if (note := portability_note(model.config)) else [],
        )
        (folder / "skipwise.json").write_text(json.dumps(record, indent=2, default=str) + "\n", encoding="utf-8")
    return ExtendResult(
        folder=folder,
        finished=True,
        steps=trainer.state.global_step,
        verdicts=verdicts,
        log=trainer.state.log_history,
        record=record,
    )


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    return {name: importlib.metadata.version(name) for name in ("skipwise", "torch", "transformers", "peft", "numpy")}
