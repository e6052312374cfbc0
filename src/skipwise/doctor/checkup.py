"""What is wrong with the files of a checkpoint that others made, and a mended copy of it.

Only `config.json` and `tokenizer_config.json` are looked at, and no weights are loaded. A fault is mended where the
checkpoint, its base model, or its family says what is right; else the verdict says what is missing to know it.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skipwise.doctor.file_checks import CHECKS, readable
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
    """What was found, and the files as they should be.

    Attributes:
        verdicts: one a check.
        config: content of a mended `config.json`.
        tokenizer: content of a mended `tokenizer_config.json`; None where there is none.
        unmended: names of failed checks that nothing here says the right value for.
        changed: whether the mended files differ from the checkpoint's.
    """

    verdicts: list[Verdict]
    config: dict[str, Any]
    tokenizer: dict[str, Any] | None
    unmended: list[str]
    changed: bool

    @property
    def healthy(self) -> bool:
        """Whether no check failed."""
        return not any(verdict.status == "fail" for verdict in self.verdicts)


def check_up(folder: str | Path, base: Mapping[str, Any] | None = None) -> Checkup:
    """Looks at the files of a checkpoint.

    Args:
        folder: the checkpoint.
        base: config of the base model as a dict, which says the original base and window; None where it is not at hand.

    Raises:
        CheckpointError: a file cannot be read, or has no number where one must be.
    """
    config, tokenizer = _as_read(read_file(Path(folder) / CONFIG), folder), None
    if (Path(folder) / TOKENIZER).is_file():
        tokenizer = read_file(Path(folder) / TOKENIZER)
    patient = Patient(config=config, tokenizer=tokenizer, base=base, defaults=_defaults(config))
    try:
        require_numbers(patient, str(folder))
        patient.value("rope_type")
    except UnsupportedModelError:
        return Checkup(
            verdicts=[readable("readable", patient)], config=config, tokenizer=tokenizer, unmended=["readable"],
            changed=False,
        )  # fmt: skip
    verdicts, first = [], _snapshot(patient)
    for name, check in CHECKS.items():
        before = _snapshot(patient)
        if (verdict := check(name, patient)) is None:
            continue
        verdicts.append(verdict)
        if verdict.status == "fail" and _snapshot(patient) == before:
            patient.unmended.append(name)
    changed = _snapshot(patient) != first
    if changed and not patient.unmended:
        patient.config = patient.rewritten()
    return Checkup(
        verdicts=verdicts, config=patient.config, tokenizer=patient.tokenizer, unmended=patient.unmended,
        changed=changed,
    )  # fmt: skip


def write_mended(folder: str | Path, checkup: Checkup, output: str | Path) -> Path:
    """Writes a copy of a checkpoint with its files mended; weights and all else are hard links, or copies on another
    disk.

    Args:
        folder: the checkpoint, which is left alone.
        checkup: of it.
        output: a new folder.

    Raises:
        ConfigError: the folder exists or lies inside the checkpoint, or a fault is left that only its maker can decide.
        CheckpointError: it cannot be written.
    """
    source, target = Path(folder), Path(output)
    if (own := read_file(source / CONFIG).get("model_type")) != checkup.config.get("model_type"):
        raise ConfigError(
            f"model is {str(folder)!r}, of type {own}, whose config is looked at as the {checkup.config['model_type']} "
            f"model that it is read as: make that one by skipwise export {folder} --to hf, and mend it"
        )
    if checkup.unmended:
        cures = {verdict.name: verdict.cure for verdict in checkup.verdicts}
        ways = [cures[name] for name in checkup.unmended if "--base" not in cures[name]]
        raise ConfigError(
            f"what is right for {', '.join(checkup.unmended)} cannot be told from {str(folder)!r} alone; "
            + ("; ".join(ways) if len(ways) == len(checkup.unmended) else "name the model it was made of with --base")
        )
    if target.exists():
        raise ConfigError(f"--out is {str(target)!r}, which exists already; give a new folder")
    if source.resolve() in target.resolve().parents:
        raise ConfigError(
            f"--out is {str(target)!r}, inside the checkpoint, which is left alone; give a folder elsewhere"
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
            f"mended copy {str(target)!r} cannot be written ({error}); choose another folder"
        ) from error
    return target


def _as_read(config: dict[str, Any], folder: str | Path) -> dict[str, Any]:
    """A config as that of the model which is made of it, where this is another one.

    Raises:
        UnsupportedModelError: none can be made of it.
    """
    if config.get("model_type") != BAICHUAN:
        return config
    place = ModelSource(name=str(folder))
    with one_line_errors(place, "the config"):
        return llama_config(config, place).to_dict()


def _defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the model's class adds to a decoder's part within its config, from which the library leaves its defaults out
    when it saves; nothing where it refuses the config, as a check will say."""
    if eras.text_part(config) is config:
        return {}
    try:
        found = library_config(config)
    except Exception:  # Configs are anyone's, and the library raises anything.
        return {}
    return {} if found is None else library_defaults(found)


def _snapshot(patient: Patient) -> str:
    return json.dumps([patient.config, patient.tokenizer])  # In which 512.0 is not 512.


def _write(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _link(file: str | Path, target: str | Path) -> None:
    try:
        os.link(Path(file).resolve(), target)
    except OSError:
        shutil.copy(file, target)
