"""What a run draws from which source of a mixture, computed before the first step."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from skipwise.data.corpus import MixedStore
from skipwise.train.layout import SHORT, Layout


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """What a run draws from a source.

    Attributes:
        source: its name.
        replay: whether as short replay.
        share: of the run's tokens, as asked for.
        windows: that are drawn, exercises that take the place of one included.
        tokens: of these.
        documents: that windows of the first stage are made of.
        epochs: how often each document that is long enough for all windows is drawn from.
        of_tokens: that these documents have.
        format: `text` or `conversations`.
        labels: share of the source's tokens that are labels, about. The others are context and weigh nothing in the
            loss, which is the mean over a step's labels.
    """

    source: str
    replay: bool
    share: float
    windows: int
    tokens: int
    documents: int
    epochs: float
    of_tokens: int
    format: str = "text"
    labels: float = 1.0

    def told(self) -> str:
        """The same in words, without the name."""
        told = f"{self.share:.1%} of the tokens: {self.windows:,} windows, {self.tokens:,} tokens"
        if self.format == "conversations":
            told += f" of conversations (about {self.labels:.0%} labels)"
        if not self.windows:
            return f"{told}, as the run is too short for it"
        told += f"; {self.epochs:.2f} epochs of {self.documents:,} documents with {self.of_tokens:,} tokens"
        if self.epochs <= 1:
            return told
        told += f"; each document is drawn from up to {math.ceil(self.epochs)} times"
        repeated = f", so that the text is repeated {self.tokens / self.of_tokens:.1f} times"
        return told + (repeated if self.tokens > self.of_tokens else "")


def drawn_from(layout: Layout, stages: Sequence[object], short: object, replay_share: Fraction) -> list[Drawn]:
    """What is drawn from each source of a mixture: of the windows with skips, then of short replay.

    Args:
        layout: of the run.
        stages: the documents of each stage; other than those of a mixture have no sources to tell apart.
        short: those of the short steps; None without any.
        replay_share: share of the run's tokens that is short replay.
    """
    stores = [*enumerate(stages), (SHORT, short)]
    opened = {stage: store for stage, store in stores if isinstance(store, MixedStore)}
    return [
        _drawn(layout, opened, source, is_replay=is_replay, part=replay_share if is_replay else 1 - replay_share)
        for first, is_replay in ((0, False), (SHORT, True))
        if first in opened
        for source in range(len(opened[first].stores))
    ]


def _drawn(layout: Layout, opened: Mapping[int, MixedStore], source: int, *, is_replay: bool, part: Fraction) -> Drawn:
    windows, tokens, epochs = 0, 0, Fraction(0)
    for stage, begin, end in layout.stretches():
        if (stage == SHORT) == is_replay:
            own = opened[stage]
            here = own.shares.counts(end)[source] - own.shares.counts(begin)[source]
            windows += here
            tokens += here * layout.tokens_of(stage)
            epochs += Fraction(here, own.stores[source].num_documents)
    first = opened[SHORT if is_replay else 0]
    return Drawn(
        source=first.names[source],
        replay=is_replay,
        share=float(first.shares[source] * part),
        windows=windows,
        tokens=tokens,
        documents=first.stores[source].num_documents,
        epochs=round(float(epochs), 4),
        of_tokens=first.stores[source].counts.tokens,
        format="conversations" if first.stores[source].has_turns else "text",
        labels=round(first.stores[source].label_share, 4),
    )
