"""Validation during training, on held-out documents."""

import logging
import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from skipwise.config import RunConfig
from skipwise.data.corpus import Corpus, HeldOutEnd, MixedCorpus
from skipwise.data.store import choose_held_out_end
from skipwise.distributed import process_state
from skipwise.errors import ConfigError, DataError
from skipwise.evals import evaluate
from skipwise.model import LoadedModel
from skipwise.records.runs import one_or_all
from skipwise.window import Window, length_label

if TYPE_CHECKING:
    from skipwise.train.trainer import Validate

logger = logging.getLogger("skipwise")

_SCORED_TOKENS = 128


def validation_lengths(config: RunConfig, window: Window) -> list[int]:
    """Lengths of validation, in tokens: the run's own, or the original window, its doublings and the target.

    Raises:
        ConfigError: a length is below 2 or beyond the target.
    """
    doublings = (window.original * 2**power for power in range(int(math.log2(window.factor) + 1e-9) + 1))
    lengths = sorted({*(config.validation.lengths or (*doublings, window.target))})
    if not 2 <= lengths[0] <= lengths[-1] <= window.target:
        raise ConfigError(
            f"setting 'validation.lengths' is {lengths}; give lengths of 2 tokens or more, up to the target of "
            f"{window.target}"
        )
    return lengths


def find_held_out_ends(corpus: Corpus, lengths: Sequence[int], keep: int) -> list[HeldOutEnd]:
    """The ends of documents to hold out: one of each source whose held-out documents have too few tokens.

    Args:
        corpus: the run's documents.
        lengths: of validation, in tokens; fewer tokens than the shortest are too few.
        keep: tokens of the document that must be left to training: the widest window.

    Returns:
        The ends. A source has none if whole documents suffice, none is long enough to divide, nothing is to be held
        out, or documents are streamed, so that their lengths are unknown.
    """
    found = [
        choose_held_out_end(
            part.files,
            share=part.data.held_out,
            at_least=lengths[0],
            enough=lengths[-1],
            keep=1 if part.joins else max(keep, part.data.min_tokens or 0),
        )
        for part in corpus.parts
        if part.data.held_out
    ]
    return [*dict.fromkeys(end for end in found if end is not None)]


def tell_held_out_ends(corpus: Corpus) -> Any:
    """Logs which ends of documents are held out, and returns the entry for the run's record."""
    told = {}
    for part in corpus.parts:
        if (end := part.held_out_end) is not None and end not in told:
            whole = len(part.files.document(end.number))
            known = {"document": part.files.name(end.number), "tokens": whole - end.begin, "of_tokens": whole}
            say = logger.warning if process_state().is_main_process else logger.debug
            say(
                f"the last {known['tokens']:,} of the {whole:,} tokens of {known['document']} are held out, because "
                "whole held-out documents have too few"
            )
            told[end] = {**known, **end._asdict()}
    return one_or_all([*told.values()])


def build_validation(
    config: RunConfig, corpus: Corpus, loaded: LoadedModel, lengths: list[int], share_out: bool = True
) -> "Validate | None":
    """Perplexity of the same last tokens at growing lengths, on held-out documents of at least the longest.

    Args:
        config: the run.
        corpus: its documents.
        loaded: the model that is trained, and its tokenizer.
        lengths: from `validation_lengths`; those that no held-out document reaches are left out, with a warning.
        share_out: each of several processes measures its share of the documents.

    Returns:
        A function that measures it; None, with a warning, if nothing is held out or long enough.
    """
    if config.data.held_out == 0:
        logger.warning("no validation while training: data.held_out is 0, so every document is trained on")
        return None
    by_source, measured = _longest_held_out(config, corpus, lengths)
    if not by_source:
        return None
    number = sum(map(len, by_source.values()))
    task = {"kind": "perplexity", "scored_tokens": min(_SCORED_TOKENS, measured[0] // 2)}
    where = ", ".join(map(length_label, measured))
    shown = not config.training.get("disable_tqdm", False) and sys.stderr.isatty()
    how: dict[str, Any] = {"seed": config.seed, "progress": shown, "share_out": share_out}
    logger.info(f"validation: {number} held-out document{'s' if number > 1 else ''} at {where} tokens")

    def validate() -> dict[str, float]:
        found: dict[str, dict[int, float]] = {}
        for source, texts in by_source.items():
            tasks = [{**task, "num_documents": len(texts)}]
            results = evaluate(loaded.model, loaded.tokenizer, tasks, measured, texts, **how)
            found[source] = {result.length_tokens: result.value for result in results}
        if len(found) == 1:
            return {f"perplexity_{length}": value for values in found.values() for length, value in values.items()}
        told = {}
        for length in measured:
            # As over all documents together, of each of which as many tokens are scored.
            logs = sum(len(by_source[source]) * math.log(values[length]) for source, values in found.items())
            told[f"perplexity_{length}"] = math.exp(logs / number)
            told |= {f"perplexity_{length}_{source}": values[length] for source, values in found.items()}
        return told

    return validate


def _longest_held_out(
    config: RunConfig, corpus: Corpus, lengths: Sequence[int]
) -> tuple[dict[str, list[np.ndarray]], list[int]]:
    """Held-out documents by source, of the greatest length there is, and the lengths up to it; warns about others."""
    unmet: DataError | None = None
    for measured in (lengths[:number] for number in range(len(lengths), 0, -1)):
        try:
            texts = _held_out(config, corpus, measured[-1])
        except DataError as error:
            unmet = unmet or error
            continue
        if unmet:
            left_out = ", ".join(map(str, lengths[len(measured) :]))
            logger.warning(
                f"no validation at {left_out} tokens, only up to {measured[-1]}: held-out documents are shorter, "
                "even joined; raise data.held_out, or give longer documents"
            )
        return texts, list(measured)
    logger.warning(f"no validation while training: {unmet}")
    return {}, []


def _held_out(config: RunConfig, corpus: Corpus, at_least: int) -> dict[str, list[np.ndarray]]:
    """Some held-out documents of that many tokens by source, at least one each; joined if no single one is as long."""
    number = config.validation.num_documents
    if isinstance(corpus, MixedCorpus):
        return corpus.long_by_source("held_out", max(number, len(corpus.parts)), min_tokens=at_least)
    return {"": corpus.long_documents("held_out", number, min_tokens=at_least)}
