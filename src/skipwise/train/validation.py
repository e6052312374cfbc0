"""Validation during training, on held-out documents."""

import dataclasses
import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from skipwise.config import RunConfig
from skipwise.config.stages import RunStage
from skipwise.data.corpus import Corpus, HeldOutEnd, StoredCorpus, TokenStore
from skipwise.data.store import TokenFiles, choose_held_out_end
from skipwise.errors import ConfigError, DataError
from skipwise.evals import evaluate
from skipwise.model import LoadedModel
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


def find_held_out_end(corpus: Corpus, lengths: Sequence[int], keep: int) -> HeldOutEnd | None:
    """The end of a document to hold out, if the held-out documents have fewer tokens than the shortest length.

    Args:
        corpus: the run's documents.
        lengths: of validation, in tokens.
        keep: tokens of the document that must be left to training: the widest window.

    Returns:
        The end; None if whole documents suffice, none is long enough to divide, nothing is to be held out, or documents
        are streamed, so that their lengths are unknown.
    """
    data = corpus.data
    if not data.held_out or not isinstance(corpus, StoredCorpus):
        return None
    return choose_held_out_end(
        corpus.files,
        share=data.held_out,
        at_least=lengths[0],
        enough=lengths[-1],
        keep=1 if data.join else max(keep, data.min_tokens or 0),
    )


def with_held_out_end(corpus: Corpus, stages: Sequence[RunStage], lengths: Sequence[int]) -> Corpus:
    """The corpus of a new run, with the end of a document held out if that is needed.

    Args:
        corpus: its documents.
        stages: of the run.
        lengths: of validation, in tokens.
    """
    if not isinstance(corpus, StoredCorpus):
        return corpus
    end = find_held_out_end(corpus, lengths, max(stage.window.train for stage in stages))
    return dataclasses.replace(corpus, held_out_end=end)


def tell_held_out_end(end: HeldOutEnd, store: TokenStore) -> dict[str, Any]:
    """Logs which end of a document is held out, and returns the entry for the run's record."""
    files = TokenFiles(store.folder)
    whole = len(files.document(end.number))
    told = {"document": files.name(end.number), "tokens": whole - end.begin, "of_tokens": whole}
    logger.warning(
        f"the last {told['tokens']:,} of the {whole:,} tokens of {told['document']} are held out for validation, and "
        "not trained on, as too little is held out in whole documents"
    )
    return {**told, **end._asdict()}


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
    texts, measured = _longest_held_out(config, corpus, lengths)
    if not texts:
        return None
    task = {
        "kind": "perplexity",
        "num_documents": len(texts),
        "scored_tokens": min(_SCORED_TOKENS, measured[0] // 2),
    }
    where = ", ".join(map(length_label, measured))

    def validate() -> dict[str, float]:
        logger.info(f"validating on {len(texts)} documents at {where} tokens")
        results = evaluate(
            loaded.model,
            loaded.tokenizer,
            [task],
            measured,
            texts,
            seed=config.seed,
            progress=False,
            share_out=share_out,
        )
        return {f"perplexity_{result.length_tokens}": result.value for result in results}

    return validate


def _longest_held_out(config: RunConfig, corpus: Corpus, lengths: Sequence[int]) -> tuple[list[np.ndarray], list[int]]:
    """Held-out documents of the greatest possible length, and the lengths up to it; warns about the others."""
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
                f"no validation at {left_out} tokens, only up to {measured[-1]}: no held-out document has that many, "
                "nor have several joined; hold out more of them (data.held_out) or give longer ones"
            )
        return texts, list(measured)
    logger.warning(f"no validation while training: {unmet}")
    return [], []


def _held_out(config: RunConfig, corpus: Corpus, at_least: int) -> list[np.ndarray]:
    """Some held-out documents of that many tokens, joined if no single one is as long.

    The held-out end of a document is cut into as many pieces as are wanted, if it is long enough.
    """
    number = config.validation.num_documents
    texts = corpus.long_documents("held_out", number, min_tokens=at_least)
    if isinstance(corpus, StoredCorpus) and corpus.held_out_end is not None and len(texts) == 1:
        texts = np.array_split(texts[0], min(number, len(texts[0]) // at_least))
    return texts
