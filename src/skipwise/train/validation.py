"""Validation while training: which documents it is measured on, and that none of them is trained on."""

import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from skipwise.config import RunConfig
from skipwise.data.corpus import HeldOutEnd, TokenStore, build_store
from skipwise.data.documents import Sources
from skipwise.data.store import TokenFiles, choose_held_out_end
from skipwise.data.stream import first_documents
from skipwise.errors import ConfigError, DataError
from skipwise.evals import evaluate
from skipwise.model import LoadedModel
from skipwise.train.data import run_store, shows_bars
from skipwise.window import Window, length_label

if TYPE_CHECKING:
    from skipwise.train.trainer import Validate

logger = logging.getLogger("skipwise")

_SCORED_TOKENS = 128


def validation_lengths(config: RunConfig, window: Window) -> list[int]:
    """Context lengths of validation: the run's own, or the original window and its doublings up to the target.

    Raises:
        ConfigError: a length is beyond the target.
    """
    doublings = (window.original * 2**power for power in range(int(math.log2(window.factor) + 1e-9) + 1))
    lengths = sorted({*(config.validation.lengths or (*doublings, window.target))})
    if not 2 <= lengths[0] <= lengths[-1] <= window.target:
        raise ConfigError(
            f"setting 'validation.lengths' is {lengths}; give lengths of 2 tokens or more, up to the target of "
            f"{window.target}"
        )
    return lengths


def find_held_out_end(
    config: RunConfig, sources: Sources, tokenizer: Any, lengths: Sequence[int], keep: int
) -> HeldOutEnd | None:
    """The end of a document to hold out, where whole documents leave validation less than its shortest length.

    Args:
        config: the run.
        sources: its documents, looked through.
        tokenizer: the model's own.
        lengths: of validation, in tokens.
        keep: tokens that must be left of the document to be trained on; its widest window.

    Returns:
        The end; None where whole documents suffice, none is long enough to be shared, or nothing is to be held out.
        Of a stream nobody knows how long its documents are before they have come.
    """
    data = config.data
    if not data.held_out or data.streaming:
        return None
    how: dict[str, Any] = {"control_tokens": data.control_tokens, "progress": shows_bars(config)}
    files = TokenFiles(build_store(sources, tokenizer, min_tokens=1, **how).folder)
    return choose_held_out_end(
        files,
        share=data.held_out,
        at_least=lengths[0],
        enough=lengths[-1],
        keep=1 if data.join else max(keep, data.min_tokens or 0),
    )


def tell_held_out_end(end: HeldOutEnd, store: TokenStore) -> dict[str, Any]:
    """Says which end of a document is held out, and gives the entry for the run's record."""
    files = TokenFiles(store.folder)
    whole = len(files.document(end.number))
    told = {"document": files.name(end.number), "tokens": whole - end.begin, "of_tokens": whole}
    logger.warning(
        f"the last {told['tokens']:,} of the {whole:,} tokens of {told['document']} are held out for validation, and "
        "not trained on, as too little is held out in whole documents"
    )
    return {**told, **end._asdict()}


def build_validation(
    config: RunConfig,
    sources: Sources,
    loaded: LoadedModel,
    lengths: list[int],
    share_out: bool = True,
    held_out_end: HeldOutEnd | None = None,
) -> "Validate | None":
    """Perplexity of the same last tokens at growing lengths, on held-out documents as long as the longest.

    Args:
        config: the run.
        sources: its documents, looked through.
        loaded: the model that is trained, and its tokenizer.
        share_out: each of several processes measures its share of the documents.
        held_out_end: end of a document that is held out beside whole ones.
        lengths: as `validation_lengths` gives them; those that no held-out document has are left out, with a warning.

    Returns:
        What measures it; None, with a warning, where nothing is held out or nothing is long enough.
    """
    if config.data.held_out == 0:
        logger.warning("no validation while training: data.held_out is 0, so every document is trained on")
        return None
    unmet: DataError | None = None
    documents: list[np.ndarray] = []
    measured = list(lengths)
    while measured and not documents:
        try:
            documents = _held_out(config, sources, loaded.tokenizer, measured[-1], held_out_end)
        except DataError as error:
            unmet = unmet or error
            measured.pop()
    if not documents:
        logger.warning(f"no validation while training: {unmet}")
        return None
    if unmet:
        left_out = ", ".join(map(str, lengths[len(measured) :]))
        logger.warning(
            f"no validation at {left_out} tokens, only up to {measured[-1]}: no held-out document has that many, nor "
            "have several joined; hold out more of them (data.held_out) or give longer ones"
        )
    task = {
        "kind": "perplexity",
        "num_documents": len(documents),
        "scored_tokens": min(_SCORED_TOKENS, measured[0] // 2),
    }

    where = ", ".join(map(length_label, measured))

    def validate() -> dict[str, float]:
        logger.info(f"validating on {len(documents)} documents at {where} tokens")
        results = evaluate(
            loaded.model,
            loaded.tokenizer,
            [task],
            measured,
            documents,
            seed=config.seed,
            progress=False,
            share_out=share_out,
        )
        return {f"perplexity_{result.length_tokens}": result.value for result in results}

    return validate


def _held_out(
    config: RunConfig, sources: Sources, tokenizer: Any, at_least: int, end: HeldOutEnd | None
) -> list[np.ndarray]:
    """Some held-out documents of that many tokens, joined where none has them by itself.

    Of the end of a document as many pieces as are asked for, where it is long enough.
    """
    number = config.validation.num_documents
    if config.data.streaming:
        return first_documents(config.data, tokenizer, number, at_least, held_out=True, sources=sources)
    try:
        store = run_store(config, sources, tokenizer, "held_out", at_least, end)
    except DataError:
        store = run_store(config, sources, tokenizer, "held_out", at_least, end, join=True)
        logger.warning(f"validation joins held-out documents: none has {at_least} tokens by itself")
    documents = [store.document(i) for i in range(min(store.num_documents, number))]
    if end is not None and len(documents) == 1:
        documents = np.array_split(documents[0], min(number, len(documents[0]) // at_least))
    return documents
