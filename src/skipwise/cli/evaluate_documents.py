"""Which documents `skipwise eval` measures on: by default none that the model's own run was trained on.

A run keeps a share of its documents out of training (`data.held_out`) and records it in `skipwise.json`. Whether a
document is held out depends on its text, so the same share finds the same documents again wherever they are read from.
If the end of one document was held out instead, that end is found in the same documents.
"""

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from skipwise.config import DataConfig

if TYPE_CHECKING:
    import numpy as np

    from skipwise.data.conversations import Format
    from skipwise.data.corpus import HeldOutEnd, Part
    from skipwise.data.documents import Sources
    from skipwise.data.tokens import Reading

logger = logging.getLogger("skipwise")


class HeldOut(NamedTuple):
    """What a run held out from training.

    Attributes:
        share: of its documents, 0 to 1.
        source: where its documents came from.
        field: field with their text.
        skip_unreadable: files and records that could not be read were skipped.
        end: end of a document that was held out; None where whole documents were.
        control_tokens, format: as in `DataConfig`.
    """

    share: float
    source: str | list[str]
    field: str = "text"
    skip_unreadable: bool = False
    end: "HeldOutEnd | None" = None
    control_tokens: "Reading" = "text"
    format: "Format" = "auto"


def held_out_of(model: str) -> HeldOut | None:
    """What the run behind a model held out from training; None for a model without a run.

    Args:
        model: the output folder of a run, finished or not, or one of its checkpoints; any other model as well.
    """
    from skipwise.records.runs import Run, held_out_end

    folder = Path(model)
    for place in (folder, folder.parent) if folder.name.startswith("checkpoint-") else (folder,):
        run = Run.open(place)
        if (record := run.record()) is not None:
            data, begun = record["config"]["data"], record.get("corpus", {})
        elif (config := run.config()) is not None:
            data, begun = config.data.model_dump(), run.begun()
        else:
            continue
        return HeldOut(
            share=data["held_out"],
            source=data["source"],
            field=data.get("field", "text"),
            skip_unreadable=data.get("skip_unreadable", False),
            end=held_out_end(begun),
            # Before this setting existed, documents that spelled control tokens were read as these tokens.
            control_tokens=data.get("control_tokens", "tokens"),
            format=data.get("format", "text"),
        )
    return None


def find_texts(
    model: str,
    source: str,
    field: str,
    *,
    all_documents: bool,
    share: float | None,
    skip_unreadable: bool,
    progress: bool,
) -> "Texts":
    """Finds the documents to measure on: those that the model's run held out, or the default share where there is none.

    Args:
        model: the model to measure, or the folder of its run.
        source: where documents come from.
        field: field with their text.
        all_documents: measure on every document.
        share: of the documents that counts as held out; None for the run's own.
        skip_unreadable: skip files and records that cannot be read; also if the run did.
        progress: show a bar.

    Raises:
        DataError: something cannot be read. That is known before any weight is read.
    """
    from skipwise.data.documents import look_through
    from skipwise.distributed import process_state

    run = held_out_of(model)
    if all_documents:
        share = 1.0
    elif share is None:
        share = run.share if run is not None and run.share > 0 else DataConfig().held_out
    data = DataConfig(
        source=source,
        field=field,
        skip_unreadable=skip_unreadable or (run is not None and run.skip_unreadable),
        held_out=share,
        control_tokens=run.control_tokens if run else "text",
    )
    form = run.format if run is not None and source == run.source else "auto"
    sources = look_through(source, field=field, skip_unreadable=data.skip_unreadable, format=form)
    is_first = process_state().is_main_process
    details = {}
    if run is not None and share > run.share:
        details["may_have_been_trained_on"] = True
        if is_first:
            logger.warning(
                f"these documents may have been trained on: the model's run kept a share of {run.share:g} of "
                f"{run.source!r} out of training (data.held_out), and {share:g} is measured on"
            )
    part = "all" if all_documents else "held_out"
    return Texts(data, sources, part, None if run is None else run.end, details, progress and is_first)


class Texts(NamedTuple):
    """The documents to measure on: found once, tokenized for each model.

    Attributes:
        data: where they come from, and which share is held out.
        sources: the same, found.
        part: all, or those held out.
        end: end of a document that the run held out.
        details: entries of the details of every result.
        progress: show a bar.
    """

    data: DataConfig
    sources: "Sources"
    part: "Part"
    end: "HeldOutEnd | None"
    details: dict[str, Any]
    progress: bool

    def of(self, tokenizer: Any, longest: int) -> "list[np.ndarray]":
        """Token ids of each document, 1-D, for all lengths: tasks skip and count documents that are too short.

        Conversations, which are short, are joined until they have the `longest` length, as in training.
        """
        from skipwise.data.corpus import store_corpus

        corpus = store_corpus(self.data, tokenizer, self.sources, progress=self.progress)
        store = replace(corpus, held_out_end=self.end).documents(self.part, min_tokens=longest if corpus.joins else 2)
        return [store.document(index) for index in range(store.num_documents)]
