"""What a pilot is asked for, and what can be wrong with it before anything is loaded."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from skipwise.config import RunConfig
from skipwise.errors import ConfigError, SkipwiseError
from skipwise.model.place import find_place
from skipwise.pilot.schedule import duration_label
from skipwise.rope import read_rope
from skipwise.window import length_label

MACHINES = ("a100-80", "h100", "rtx-4090")
"""Machines that the full run is planned for, unless others are named."""

_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m(?:in)?)?(?:(\d+(?:\.\d+)?)s)?")


def parse_duration(text: str) -> float:
    """Seconds of a duration such as `1h`, `40m`, `90s` or `1h30m`.

    Raises:
        ConfigError: it is none.
    """
    match = _DURATION.fullmatch(str(text).strip().lower().replace(" ", ""))
    hours, minutes, seconds = (float(part or 0) for part in match.groups()) if match else (0.0, 0.0, 0.0)
    total = 3600 * hours + 60 * minutes + seconds
    if total <= 0:
        raise ConfigError(f"time is {text!r}; give a duration such as 1h, 40m, 90s or 1h30m")
    return total


@dataclass(frozen=True, slots=True, kw_only=True)
class PilotConfig:
    """One pilot.

    Attributes:
        run: the full run, as `extend` takes it; the pilot trains less of it.
        seconds: that it may take, from its first step to its page.
        output: its folder.
        price: of an hour of one accelerator; None for what `plan.machines` assumes.
        machines: that the full run is planned for, names of `plan.machines`.
    """

    run: RunConfig
    seconds: float
    output: Path
    price: float | None = None
    machines: Sequence[str] = MACHINES

    @classmethod
    def of(
        cls,
        run: RunConfig,
        time: str | float,
        *,
        output: str | Path | None = None,
        price: float | None = None,
        machines: Sequence[str] | None = None,
    ) -> "PilotConfig":
        """The pilot of a run; the folder is by default that of the run, with `-pilot` and the time.

        Raises:
            ConfigError: the time or the price is none, or a machine is unknown.
        """
        from skipwise.plan.machines import machine_of

        for name in machines or ():
            machine_of(name)
        if price is not None and not 0 <= price < float("inf"):
            raise ConfigError(f"the price is {price}; give 0 or more for an hour of one accelerator")
        seconds = parse_duration(time) if isinstance(time, str) else float(time)
        return cls(
            run=run,
            seconds=seconds,
            # One of more time is another pilot.
            output=Path(output or f"{run.output_folder}-pilot-{duration_label(seconds)}"),
            price=price,
            machines=tuple(machines or MACHINES),
        )

    def asked(self) -> dict[str, Any]:
        """What a resumed pilot must not change, as JSON values."""
        run = json.loads(json.dumps(self.run.given_settings(), default=str))
        return {"run": run, "seconds": self.seconds, "price": self.price, "machines": list(self.machines)}


def problems(tree: Mapping[str, Any], checks: Sequence[Callable[[], object]]) -> list[str]:
    """Everything that is wrong, one line each, as far as it can be seen without loading a library.

    Args:
        tree: settings of the run.
        checks: further ones, which raise.
    """
    found: list[str] = []
    of_run = (RunConfig.from_mapping, _check_model, _check_documents, _check_target)
    for check in (*(partial(one, tree) for one in of_run), *checks):
        try:
            check()
        except SkipwiseError as error:
            found.append(str(error))
    return list(dict.fromkeys(found))


def _check_model(tree: Mapping[str, Any]) -> None:
    """Refuses a model that does not exist."""
    if isinstance(model := tree.get("model"), str):
        find_place(model)


def _check_documents(tree: Mapping[str, Any]) -> None:
    """Refuses documents that do not exist."""
    from skipwise.data.documents import require_there

    data = tree.get("data")
    source = data.get("source") if isinstance(data, Mapping) else None
    if sources := [source] if isinstance(source, str) else source:
        require_there(sources)


def _check_target(tree: Mapping[str, Any]) -> None:
    """Refuses a target within the model's window, where a config.json tells it."""
    model, target = tree.get("model"), tree.get("target")
    if not isinstance(model, str) or not isinstance(target, int):
        return
    try:
        config = json.loads((Path(find_place(model).name) / "config.json").read_text(encoding="utf-8"))
        original = tree.get("original") or read_rope(config).original
    except (SkipwiseError, OSError, ValueError):
        return  # Said elsewhere, or later.
    if isinstance(original, int) and target <= original:
        raise ConfigError(
            f"target is {length_label(target)} and the model already handles {length_label(original)}: give a target "
            "above that",
            page="target-not-longer",
        )
