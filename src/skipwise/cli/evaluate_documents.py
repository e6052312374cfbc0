"""Which documents `skipwise eval` measures on: by default none that the model's own run was trained on.

A run keeps a share of its documents out of training (`data.held_out`) and records it in `skipwise.json`. Whether a
document is held out depends on its text, so the same share finds the same documents again wherever they are read from.
Ends of documents that were held out instead are found in the same documents.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from skipwise.cli.options import given
from skipwise.config import DataConfig

if TYPE_CHECKING:
    import numpy as np

    from skipwise.data.corpus import HeldOutEnd, Part
    from skipwise.data.documents import Sources

logger = logging.getLogger("skipwise")

_READ_ALIKE = ("source", "field", "format", "mixture", "skip_unreadable", "held_out", "control_tokens")


class HeldOut(NamedTuple):
    """The documents of a run, as far as later reads depend on them, and the end of one if that was held out instead."""

    data: DataConfig
    ends: "Sequence[HeldOutEnd]" = ()

    def reading(
        self, source: str | None, field: str | None, format: str | None = None, *, skip_unreadable: bool
    ) -> DataConfig:
        """The settings to read a source by: as the run has read it, else by the first records.

        Args:
            source: None for all of the run.
            field: instead of the run's, or of the default where the run has not read the source.
            format: likewise.
            skip_unreadable: also where the run did not.
        """
        found = self.data
        changes: dict[str, Any] = {}
        if source is not None:
            unknown = {"source": source, "field": DataConfig().field, "format": "auto", "mixture": []}
            found = self.data.of_source(source) or self.data.model_copy(update=unknown)
            # Lengths are those that are measured.
            changes = {"min_tokens": None, "join": None}
        changes |= given({"field": field, "format": format})
        changes["skip_unreadable"] = skip_unreadable or found.skip_unreadable
        return found.model_copy(update=changes)


def held_out_of(model: str) -> HeldOut | None:
    """What the run behind a model, or a checkpoint of it, held out from training; None for a model without a run."""
    from skipwise.records.runs import Run, held_out_ends

    folder = Path(model)
    for place in (folder, folder.parent) if folder.name.startswith("checkpoint-") else (folder,):
        run = Run.open(place)
        if (record := run.record()) is not None:
            # Before these settings existed, documents that spelled control tokens were read as these tokens, and
            # every record as a text.
            earlier = {"control_tokens": "tokens", "format": "text"}
            told, begun = earlier | record["config"]["data"], record.get("corpus", {})
        elif (config := run.config()) is not None:
            told, begun = config.data.model_dump(), run.begun()
        else:
            continue
        data = DataConfig(**{name: told[name] for name in _READ_ALIKE if name in told})
        return HeldOut(data, tuple(held_out_ends(begun)))
    return None


def find_texts(
    model: str,
    source: str,
    field: str | None = None,
    format: str | None = None,
    *,
    all_documents: bool,
    share: float | None,
    skip_unreadable: bool,
    progress: bool,
) -> "Texts":
    """Finds the documents to measure on: those that the model's run held out, or the default share where there is none.

    A `share` of documents may be asked for instead, or all. What cannot be read is skipped if asked
    for, or if the run did so.

    Raises:
        DataError: something cannot be read. That is known before any weight is read.
    """
    from skipwise.data.corpus import look_at
    from skipwise.distributed import process_state

    found = held_out_of(model)
    run = found or HeldOut(DataConfig())
    kept, is_first = run.data, process_state().is_main_process
    is_chosen = share is not None or all_documents
    if share is None:
        share = kept.held_out or DataConfig().held_out
    data = run.reading(source, field, format, skip_unreadable=skip_unreadable)
    data = data.model_copy(update={"held_out": 1.0 if all_documents else share})
    (sources,) = look_at(data)
    details = {}
    if found is not None and data.held_out > kept.held_out:
        details["may_have_been_trained_on"] = True
        if is_first:
            logger.warning(
                f"these documents may have been trained on: the model's run held out a share of {kept.held_out:g} of "
                f"{kept.source!r} (data.held_out), and this evaluation uses a share of {data.held_out:g}"
            )
    elif is_first and not is_chosen and kept.of_source(source) is None:
        logger.warning(
            f"only a share of {share:g} of {source!r} is measured on: the documents that a run on them would hold out "
            "of training; if the model was not trained on any of them, give --all-documents"
        )
    part = "all" if all_documents else "held_out"
    may_divide = found is None and 0 < data.held_out < 1
    return Texts(data, sources, part, run.ends, may_divide, details, progress and is_first)


class Texts(NamedTuple):
    """The documents to measure on: found once, tokenized for each model.

    Attributes:
        data: how they are read.
        sources: what was found of them.
        part: which of them are measured on.
        ends: those of documents that the model's run held out.
        may_divide: whether the end of a document may be held out, as no run has trained on any.
        details: go to those of every result.
        progress: whether to show progress bars and say what is measured on.
    """

    data: DataConfig
    sources: "Sources"
    part: "Part"
    ends: "Sequence[HeldOutEnd]"
    may_divide: bool
    details: dict[str, Any]
    progress: bool

    def of(self, tokenizer: Any, lengths: "Sequence[int]") -> "tuple[list[np.ndarray], dict[str, Any]]":
        """Token ids of each document, 1-D, for all lengths, and details for every result.

        Tasks skip and count documents that are too short. Conversations, which are short, are joined until they have
        the largest length, as in training. Of documents that no run has read, the end of one is held out where a run
        to the largest length would hold one out.
        """
        from skipwise.data.corpus import store_corpus
        from skipwise.train.validation import find_held_out_ends, tell_held_out_ends

        details = dict(self.details)
        corpus = store_corpus(self.data, tokenizer, self.sources, progress=self.progress)
        corpus = corpus.with_held_out_ends(self.ends)
        if self.may_divide:
            corpus = corpus.with_held_out_ends(find_held_out_ends(corpus, sorted(lengths), keep=max(lengths)))
            if told := tell_held_out_ends(corpus):
                details["held_out_end"] = told
        store = corpus.documents(self.part, min_tokens=max(lengths) if corpus.joins else 2)
        return [store.document(index) for index in range(store.num_documents)], details
