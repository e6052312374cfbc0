"""Which documents `skipwise eval` measures on: by default none that the model's own run was trained on.

A run keeps a share of its documents out of training (`data.held_out`) and leaves it in `skipwise.json`. Who is held out
goes by the text, so the same share finds the same documents again however their source is written. Where it was the end
of a document instead, that end is found again in the very same documents.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from skipwise.config import DataConfig

if TYPE_CHECKING:
    from skipwise.data.corpus import HeldOutEnd, Part
    from skipwise.data.tokens import Reading


class HeldOut(NamedTuple):
    """What a run kept out of training.

    Attributes:
        share: of its documents, 0 to 1.
        source: where its documents came from.
        field: entry with their text.
        skip_unreadable: files and records that could not be read were left out.
        end: end of one of them that was kept out; None where documents were whole.
        control_tokens: as in `DataConfig`.
    """

    share: float
    source: str | list[str]
    field: str = "text"
    skip_unreadable: bool = False
    end: "HeldOutEnd | None" = None
    control_tokens: "Reading" = "text"


class Choice(NamedTuple):
    """Which documents to measure on.

    Attributes:
        part: all, or those held out.
        share: of the documents that counts as held out.
        warning: why they may have been trained on, in one line; None where there is no reason to think so.
    """

    part: "Part"
    share: float
    warning: str | None

    @property
    def details(self) -> dict[str, Any]:
        """What is said of it in the details of every result."""
        return {"may_have_been_trained_on": True} if self.warning else {}


def held_out_of(model: str) -> HeldOut | None:
    """What the run behind a model kept out of training; None for a model that no run left.

    Args:
        model: the output folder of a run, finished or not, or one of its checkpoints; any other model as well.
    """
    from skipwise.records.runs import Run, held_out_end

    for folder in (Path(model), Path(model).parent if Path(model).name.startswith("checkpoint-") else Path(model)):
        run = Run.open(folder)
        if (record := run.record()) is not None:
            data, told = record["config"]["data"], record.get("corpus", {})
        elif (config := run.config()) is not None:
            data, told = config.data.model_dump(), run.begun()
        else:
            continue
        return HeldOut(
            share=data["held_out"],
            source=data["source"],
            field=data.get("field", "text"),
            skip_unreadable=data.get("skip_unreadable", False),
            end=held_out_end(told),
            # Before there was this setting, control tokens that documents spell were tokens.
            control_tokens=data.get("control_tokens", "tokens"),
        )
    return None


def choose_documents(run: HeldOut | None, *, all_documents: bool, share: float | None) -> Choice:
    """Chooses the documents that the run held out; those of the default share where it held out none.

    Args:
        run: what the run behind the model kept out of training; None for a model that no run left.
        all_documents: measure on every document.
        share: to count as held out instead; None for the run's own.
    """
    if all_documents:
        chosen = 1.0
    elif share is not None:
        chosen = share
    else:
        chosen = run.share if run is not None and run.share > 0 else DataConfig().held_out
    warning = None
    if run is not None and chosen > run.share:
        warning = (
            f"these documents may have been trained on: the model's run kept a share of {run.share:g} of "
            f"{run.source!r} out of training (data.held_out), and {chosen:g} is measured on"
        )
    return Choice("all" if all_documents else "held_out", chosen, warning)
