"""`export()`: write an export beside its folder, load it again, compare it, and only then give it its name."""

import importlib.util
import json
import shlex
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from skipwise.bars import Bar
from skipwise.errors import CheckpointError, ConfigError
from skipwise.export import RECORD_FILE, card, check_base_weight, check_format, comparison, default_ending
from skipwise.export.card import Exported
from skipwise.export.gguf import DTYPES, plan_gguf, read_gguf, rounded, write_gguf
from skipwise.export.merging import merge_notes, merge_with_base, write_scaled_adapter
from skipwise.export.modelfile import write_modelfile
from skipwise.export.runners import ENGINES, ImitatedRunner, LlamaCppRunner, Runner, TransformersRunner, gguf_runner
from skipwise.export.source import Trained, load_trained
from skipwise.files import new_folder
from skipwise.inference.low_rank import difference_error, write_difference
from skipwise.model import load_model, path_beside, rope_state, save_config, save_model
from skipwise.model.extend import built_around
from skipwise.model.rotary import text_config
from skipwise.model.source import is_read_as_another
from skipwise.names import did_you_mean
from skipwise.records.verdict import Verdict
from skipwise.train.record import versions
from skipwise.train.tuning import load_additions

_HF_DTYPES = ("float32", "bfloat16", "float16")
_SHARD_BYTES = 5 * 10**9
# The stages are load, measure, write, load again, compare.
_STAGES = 5


def export(
    source: str | Path,
    *,
    to: str,
    output: str | Path | None = None,
    dtype: str | None = None,
    base: str | None = None,
    engine: str | None = None,
    shard_bytes: int = _SHARD_BYTES,
    long_tokens: int | None = None,
    rank: int | None = None,
    base_weight: float | None = None,
    trust_remote_code: bool = False,
    progress: bool = False,
) -> Exported:
    """Exports an extended model, loads the export again, and compares it with the model.

    Args:
        source: the output folder of a finished run, or any checkpoint folder.
        to: `hf` for a whole checkpoint; `gguf` for a llama.cpp file; `adapter` for the run's adapter, or for the
            difference to the base model truncated to a `rank`, with the config of the extended model.
        output: folder to create; None for a folder beside the source, named after it and the format.
        dtype: number format of the weights. For hf `float32`, `bfloat16` or `float16` (None: as in the source); for
            gguf `f32`, `f16`, `bf16` or `q8_0` (None: f16). An adapter keeps its own dtype.
        base: where the run's base model is now.
        engine: engine that loads a GGUF file for the comparison: `llama.cpp` or `transformers`. None for llama.cpp if
            it is installed.
        shard_bytes: size limit of a weights file in an hf export.
        long_tokens: length of the long prompt of the comparison, in tokens. None for the whole window if that is at
            most 8192 tokens, else 256 tokens beyond the original window.
        rank: rank of the adapter for a source that has none (`skipwise.inference.low_rank`). The loss from truncation
            is measured and reported, but never fails the export.
        base_weight: share of the base model, 0 to 1, in a weighted mean of its weights and the extended model's, which
            is exported instead (`skipwise.export.merging`); None for the extended model.
        trust_remote_code: whether to run Python code that comes with the model.
        progress: whether to show progress on a terminal.

    Returns:
        What was exported, the comparison, and commands to serve it.

    Raises:
        ConfigError: a setting is unknown, a package is missing, or the format cannot hold the model's rotary embedding.
        UnsupportedModelError: the format does not support this kind of model.
        CheckpointError: the export differs from the model by more than its number format explains, or cannot be
            written. Nothing is left in this case.
    """
    folder = Path(output) if output is not None else path_beside(source, default_ending(to, base_weight))
    _check_settings(to, dtype, engine, rank, folder)
    if base_weight is not None:
        check_base_weight(base_weight)
    with Bar(total=_STAGES, desc="load the model", disable=None if progress else True, leave=False) as bar:
        trained = load_trained(source, base=base, trust_remote_code=trust_remote_code)
        if to == "adapter":
            _check_adapter(trained, str(source), rank)
        if base_weight is not None:
            trained = merge_with_base(trained, base_weight, trust_remote_code=trust_remote_code)
        job = _Job(trained, folder, dtype, engine, shard_bytes, rank, long_tokens, trust_remote_code, bar)
        make: Callable[[Path], Exported] = {"hf": job.hf, "gguf": job.gguf, "adapter": job.adapter}[to]
        try:
            with new_folder(folder) as complete:
                return make(complete)
        except OSError as error:
            raise CheckpointError(
                f"export {str(folder)!r} cannot be written ({error}); choose another folder",
                page="cannot-write",
            ) from error


def _check_settings(to: str, dtype: str | None, engine: str | None, rank: int | None, folder: Path) -> None:
    """Raises for what can be seen before the model is loaded."""
    check_format(to)
    allowed = {"hf": _HF_DTYPES, "gguf": tuple(DTYPES), "adapter": ()}[to]
    if dtype not in (None, *allowed):
        known = f"{did_you_mean(dtype, allowed)}give one of {', '.join(allowed)}"
        what = known if allowed else "an adapter keeps its own dtype: leave --dtype out"
        raise ConfigError(f"--dtype is {dtype!r}; for --to {to} {what}")
    if engine not in (None, *ENGINES):
        raise ConfigError(f"--engine is {engine!r}; give {' or '.join(ENGINES)}")
    if to == "gguf" and importlib.util.find_spec("gguf") is None:
        raise ConfigError(
            "--to gguf needs the package gguf, which is missing; run: pip install 'skipwise[gguf]'",
            page="missing-extra",
        )
    if rank is not None and (to != "adapter" or rank < 1):
        raise ConfigError(f"--rank is {rank}; give 1 or more, with --to adapter")
    if folder.exists():
        raise ConfigError(f"output folder {str(folder)!r} already exists; give another with --out", page="output-taken")


def _check_adapter(trained: Trained, source: str, rank: int | None) -> None:
    """Raises if the source has no adapter to export, or no difference that could be truncated to `rank`."""
    if rank is not None and trained.adapter is not None:
        raise ConfigError(f"{source!r} has an adapter of its own; leave --rank out to export it")
    if rank is not None and trained.base is None:
        raise ConfigError(
            f"{source!r} is not a run of skipwise extend; name its base model with --base", page="wrong-base"
        )
    if rank is None and trained.four_bit:
        raise ConfigError(
            f"the adapter of {source!r} was trained on 4-bit weights and does not fit the base model's full weights; "
            "export --to hf, or truncate the difference of the whole weights to a --rank",
            page="wrong-base",
        )
    if rank is None and trained.adapter is None:
        raise ConfigError(
            f"{source!r} has no adapter to export (adapter/); export --to hf, or truncate its difference to the base "
            "model to a --rank"
        )
    if trained.base is not None and is_read_as_another(trained.base):
        raise ConfigError(
            f"the base of {source!r} is {trained.base!r}, which is converted to a model of type "
            f"{trained.model.config.model_type} on loading, and an adapter fits only the converted model: make that "
            "with skipwise export --to hf, and name it with --base",
            page="wrong-base",
        )


@dataclass
class _Job:
    """One export, from the trained model in memory to a compared folder.

    The trained model is measured first, and then its weights are rounded in place, so that no more than two models are
    in memory at once.
    """

    trained: Trained
    folder: Path
    dtype: str | None
    engine: str | None
    shard_bytes: int
    rank: int | None
    long_tokens: int | None
    trust_remote_code: bool
    bar: Any

    def __post_init__(self) -> None:
        self.model: Any = self.trained.model
        self.state = rope_state(self.model.config)
        self.runner = TransformersRunner(self.model, self.trained.tokenizer)
        self.prompts = comparison.make_prompts(self.runner, self.state, self.long_tokens)

    def hf(self, folder: Path) -> Exported:
        """A whole checkpoint."""
        dtype = self.dtype or self.trained.stored
        reference = self._measure_trained()
        self._begin("write")
        # Only parameters are cast: rotary tables in 16 bits would be inexact.
        for parameter in self.model.parameters():
            parameter.data = parameter.data.to(getattr(torch, dtype))
        save_model(self.model, self.trained.tokenizer, folder, shard_bytes=self.shard_bytes)
        for parameter in self.model.parameters():
            parameter.data = parameter.data.float()
        self._begin("load it again")
        again = load_model(folder, dtype="float32", trust_remote_code=self.trust_remote_code)
        verdicts = [
            comparison.compare_config(folder, self.state),
            *self._compare(TransformersRunner(again.model, again.tokenizer), reference),
        ]
        commands = card.hf_commands(str(self.folder), self.model.config)
        notes = card.window_notes(self.state)
        made = Exported(self.folder, "hf", dtype, "transformers", verdicts, commands, notes)
        return self._finish(folder, f"a checkpoint in {dtype}", made)

    def gguf(self, folder: Path) -> Exported:
        """A GGUF file."""
        dtype = self.dtype or "f16"
        plan = plan_gguf(self.model, self.trained.tokenizer)
        reference = self._measure_trained()
        self._begin("write")
        name = self.trained.name
        path = folder / f"{name}-{DTYPES[dtype]}.gguf"
        write_gguf(path, self.model, plan, dtype, name)
        for parameter in self.model.parameters():
            parameter.data = rounded(parameter, dtype)
        self._begin("load it again")
        with closing(gguf_runner(path, self.model, self.engine)) as runner:
            by_llama_cpp, engine = isinstance(runner, LlamaCppRunner), runner.name
            verdicts = [
                comparison.compare_entries(read_gguf(path).entries, self.state),
                *self._compare(runner, reference, dtype if by_llama_cpp else None),
            ]
        notes = write_modelfile(path, plan, self.trained.tokenizer)
        notes += [] if plan.rope.note is None else [plan.rope.note]
        if not by_llama_cpp:
            notes.append(
                "llama.cpp itself was not run; to compare with it, install llama-cpp-python (pip install "
                "'skipwise[llama-cpp]')"
            )
        commands = card.gguf_commands(str(self.folder / path.name), self.state, plan.rope)
        made = Exported(self.folder, "gguf", dtype, engine, verdicts, commands, notes)
        return self._finish(folder, f"a GGUF file in {DTYPES[dtype]}", made)

    def adapter(self, folder: Path) -> Exported:
        """An adapter, with the config that its base model must be given."""
        adapter, base = self.trained.adapter, self.trained.base
        assert base is not None
        reference, stated = self._measure_trained(), None
        self._begin("write")
        if adapter is None:
            assert self.rank is not None
            stated = write_difference(self._load_base(base), self.model, self.rank, folder)
        elif self.trained.base_weight is not None:
            write_scaled_adapter(self._load_base(base), adapter, self.trained.base_weight, folder)
        else:
            for file in adapter.iterdir():
                if file.is_file() and file.name != "README.md":
                    shutil.copy(file, folder / file.name)
        save_config(self.model.config, folder)
        self.trained.tokenizer.save_pretrained(folder)
        self._begin("load it again")
        # Loaded as a user loads it: the base model's weights with the config from the adapter's folder.
        config = AutoConfig.from_pretrained(folder, trust_remote_code=self.trust_remote_code)
        plain = self._load_base(base)
        parameters = dict(plain.named_parameters(remove_duplicate=False))
        extended = built_around(type(plain), config, parameters, plain)
        adapted: Any = load_additions(extended, folder).eval()
        runner = TransformersRunner(adapted, self.trained.tokenizer)
        notes = [
            "The window is in config.json beside the adapter; a base model loaded without it has its short window: "
            f"AutoModelForCausalLM.from_pretrained({base!r}, config=AutoConfig.from_pretrained(folder)), then "
            "PeftModel.from_pretrained(model, folder)"
        ]
        if stated is None:
            compared = self._compare(runner, reference)
        else:
            self._begin("compare")
            error = difference_error(adapted, plain, self.model)
            compared = comparison.compare_cut(runner, reference, stated, error)
            notes.append(
                f"The difference to the base is truncated to rank {self.rank}: skipwise generate "
                f"{shlex.quote(str(self.trained.folder))} --adapter {shlex.quote(str(self.folder))} serves both modes "
                "with it from one set of weights; measure what the rank costs with skipwise eval"
            )
        verdicts = [comparison.compare_config(folder, self.state), *compared]
        settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        commands = card.adapter_commands(str(self.folder), base, self.model.config, settings)
        dtype = "as trained" if stated is None else "float32"
        made = Exported(self.folder, "adapter", dtype, "transformers and peft", verdicts, commands, notes)
        return self._finish(folder, f"an adapter of rank {settings['r']} for {base}", made)

    def _load_base(self, base: str) -> Any:
        return load_model(base, dtype="float32", trust_remote_code=self.trust_remote_code).model

    def _begin(self, stage: str) -> None:
        self.bar.set_description(stage)
        self.bar.update()

    def _measure_trained(self) -> comparison.Reference:
        self._begin("measure the model")
        return comparison.Reference.of(self.runner, self.prompts)

    def _compare(self, exported: Runner, reference: comparison.Reference, imitated: str | None = None) -> list[Verdict]:
        """Compares an export with the model, whose weights are rounded by now.

        Args:
            exported: the export, loaded again.
            reference: the model before rounding.
            imitated: number format if llama.cpp runs the export, whose rounding is then imitated; else None.
        """
        self._begin("compare")
        after = by_engine = comparison.measure(self.runner, self.prompts)
        if imitated is not None:
            imitation = ImitatedRunner(self.model, self.trained.tokenizer, imitated)
            by_engine = comparison.measure(imitation, self.prompts)
        return comparison.compare(exported, reference, self.runner, after, by_engine)

    def _finish(self, folder: Path, what: str, made: Exported) -> Exported:
        """Raises for an export that differs from the model; else writes its card and its record.

        Raises:
            CheckpointError: it differs by more than its number format.
        """
        comparison.require_equal(made.verdicts, what)
        base_weight = self.trained.base_weight
        made = replace(made, notes=[*merge_notes(self.trained), *made.notes], base_weight=base_weight)
        card.write_card(folder, self.trained.folder, what, made)
        record = {
            "format": made.format,
            "dtype": made.dtype,
            "source": str(self.trained.folder),
            "base": self.trained.base,
            "base_weight": base_weight,
            "window": {"original": self.state.original, "maximum": self.state.maximum},
            "rope_parameters": text_config(self.model.config).to_dict()["rope_parameters"],
            "compared_by": made.engine,
            "long_prompt_tokens": len(self.prompts["long"]),
            "comparison": [asdict(verdict) for verdict in made.verdicts],
            "commands": dict(made.commands),
            "notes": list(made.notes),
            "versions": versions(),
        }
        (folder / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        return made
