"""Check the files of a third-party checkpoint for faults, and write a fixed copy.

Only `config.json` and `tokenizer_config.json` are read; no weights are loaded. A fault is fixed if the checkpoint, its
base model, or its family determines the right value. Otherwise the verdict says what is needed to decide.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skipwise.doctor.file_checks import CHECKS
from skipwise.doctor.patient import CONFIG, TOKENIZER, Patient, read_file, require_numbers
from skipwise.errors import CheckpointError, ConfigError, UnsupportedModelError
from skipwise.files import new_folder
from skipwise.model.baichuan import llama_config
from skipwise.model.library import library_config, library_defaults
from skipwise.model.place import ModelSource
from skipwise.model.source import BAICHUAN, one_line_errors
from skipwise.records.verdict import Verdict
from skipwise.rope import eras


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkup:
    """The verdicts on a checkpoint, and its fixed files.

    Attributes:
        verdicts: one per check.
        config: fixed content of `config.json`.
        tokenizer: fixed content of `tokenizer_config.json`; None if the checkpoint has none.
        unfixed: names of failed checks whose right value is not known.
        changed: whether the fixed files differ from the checkpoint's.
    """

    verdicts: list[Verdict]
    config: dict[str, Any]
    tokenizer: dict[str, Any] | None
    unfixed: list[str]
    changed: bool

    @property
    def healthy(self) -> bool:
        """Whether no check failed."""
        return not any(verdict.status == "fail" for verdict in self.verdicts)


def check_up(folder: str | Path, base: Mapping[str, Any] | None = None) -> Checkup:
    """Checks the files of a checkpoint and fixes them in memory.

    Args:
        folder: the checkpoint.
        base: config of the base model as a dict, which gives the original RoPE base and window; None if not available.

    Raises:
        CheckpointError: a file cannot be read, or a value that must be a number is not one.
    """
    config, tokenizer = _as_converted(read_file(Path(folder) / CONFIG), folder), None
    if (Path(folder) / TOKENIZER).is_file():
        tokenizer = read_file(Path(folder) / TOKENIZER)
    patient = Patient(config=config, tokenizer=tokenizer, base=base, defaults=_defaults(config))
    checks, first = CHECKS, _snapshot(patient)
    try:
        require_numbers(patient, str(folder))
        patient.value("rope_type")
    except UnsupportedModelError:
        checks = {"readable": CHECKS["readable"]}
    verdicts = []
    for name, check in checks.items():
        before = _snapshot(patient)
        if (finding := check(patient)) is None:
            continue
        verdicts.append(Verdict(name=name, **finding._asdict()))
        if finding.status == "fail" and _snapshot(patient) == before:
            patient.unfixed.append(name)
    changed = _snapshot(patient) != first
    if changed and not patient.unfixed:
        patient.config = patient.rewritten()
    return Checkup(
        verdicts=verdicts,
        config=patient.config,
        tokenizer=patient.tokenizer,
        unfixed=patient.unfixed,
        changed=changed,
    )


def write_fixed(folder: str | Path, checkup: Checkup, output: str | Path) -> Path:
    """Writes a copy of a checkpoint with fixed files. All other files are hard links, or copies on another disk.

    Args:
        folder: the checkpoint; it is not changed.
        checkup: the result of `check_up` for this checkpoint.
        output: a folder that does not exist yet.

    Raises:
        ConfigError: the output exists or is inside the checkpoint, or a fault is left whose right value is not known.
        CheckpointError: the copy cannot be written.
    """
    source, target = Path(folder), Path(output)
    if (own := read_file(source / CONFIG).get("model_type")) != checkup.config.get("model_type"):
        raise ConfigError(
            f"model {str(folder)!r} has type {own} and is converted to a {checkup.config['model_type']} model on "
            f"loading, so only the converted model can be fixed: run skipwise export {folder} --to hf, and fix that"
        )
    if checkup.unfixed:
        cures = {verdict.name: verdict.cure for verdict in checkup.verdicts}
        ways = [cures[name] for name in checkup.unfixed if "--base" not in cures[name]]
        raise ConfigError(
            f"the right values for {', '.join(checkup.unfixed)} cannot be determined from {str(folder)!r} alone; "
            + ("; ".join(ways) if len(ways) == len(checkup.unfixed) else "name the base model with --base")
        )
    if target.exists():
        raise ConfigError(f"--out is {str(target)!r}, which already exists; give a new folder", page="output-taken")
    if source.resolve() in target.resolve().parents:
        raise ConfigError(
            f"--out is {str(target)!r}, inside the checkpoint, which must not change; give a folder elsewhere",
            page="output-taken",
        )
    try:
        with new_folder(target) as complete:
            for each in sorted(each for each in source.iterdir() if each.name not in (CONFIG, TOKENIZER)):
                if each.is_dir():
                    shutil.copytree(each, complete / each.name, copy_function=_link)
                else:
                    _link(each, complete / each.name)
            _write(complete / CONFIG, checkup.config)
            if checkup.tokenizer is not None:
                _write(complete / TOKENIZER, checkup.tokenizer)
    except OSError as error:
        raise CheckpointError(
            f"fixed copy {str(target)!r} cannot be written ({error}); choose another folder",
            page="cannot-write",
        ) from error
    return target


def _as_converted(config: dict[str, Any], folder: str | Path) -> dict[str, Any]:
    """The config of the model that this checkpoint is converted to on loading; other configs are returned unchanged.

    Raises:
        UnsupportedModelError: the model cannot be converted.
    """
    if config.get("model_type") != BAICHUAN:
        return config
    place = ModelSource(name=str(folder))
    with one_line_errors(place, "the config"):
        return llama_config(config, place).to_dict()


def _defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults of the decoder's sub-config, which the library omits when it saves a multimodal config.

    Empty if the config has no sub-config for the decoder, or if the library rejects it (a check reports that).
    """
    if eras.text_part(config) is config:
        return {}
    try:
        found = library_config(config)
    except Exception:  # A third-party config can make the library raise anything.
        return {}
    return {} if found is None else library_defaults(found)


def _snapshot(patient: Patient) -> str:
    return json.dumps([patient.config, patient.tokenizer])  # As text, because 512.0 == 512 but must be fixed.


def _write(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _link(file: str | Path, target: str | Path) -> None:
    try:
        os.link(Path(file).resolve(), target)
    except OSError:
        shutil.copy(file, target)
