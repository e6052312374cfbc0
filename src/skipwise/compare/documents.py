"""The documents that every arm of a comparison is measured on."""

from collections.abc import Sequence
from typing import Any

from skipwise.config import RunConfig
from skipwise.config.mixture import places_of
from skipwise.data.corpus import MixedStore, TokenStore, open_stored
from skipwise.data.documents import Sources
from skipwise.train.validation import find_held_out_ends, validation_lengths
from skipwise.window import Window


def measured_documents(
    config: RunConfig,
    window: Window,
    source: Any,
    tokenizer: Any,
    *,
    min_tokens: int,
    sources: Sequence[Sources] | None = None,
    progress: bool = True,
) -> TokenStore | MixedStore:
    """The held-out documents of a source, or all if the run holds none out; the same for all arms of a comparison.

    Args:
        config: the run of an arm.
        window: its lengths, in tokens.
        source: of the documents that are measured on, which may be the run's own.
        tokenizer: the model's own.
        min_tokens: documents with fewer tokens are dropped, or joined if the run joins them.
        sources: `look_at` of the same source, if at hand, so that files are not inspected again.
        progress: whether to show progress bars.

    Raises:
        DataError: no document is long enough.
    """
    # Arms at full length have no replay, and all arms are measured on the same documents.
    trained = config.data.without_replay()
    data = trained.measured_on(source)
    corpus = open_stored(data, tokenizer, sources, progress=progress)
    trained_on = [places_of(own.source) for own in (trained, *trained.entries())]
    if places_of(source) in trained_on and not config.data.streaming:
        # Parts of what each arm holds out, the same for all arms: the more is kept for training, the shorter they are.
        lengths = validation_lengths(config, window)
        keep = max(config.target, *(own.min_tokens or 0 for own in trained.entries()))
        corpus = corpus.with_held_out_ends(find_held_out_ends(corpus, lengths, keep=keep))
    return corpus.documents("held_out" if data.held_out else "all", min_tokens=min_tokens)
