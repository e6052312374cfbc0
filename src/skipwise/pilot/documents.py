"""What the documents of a pilot carry: how long the held-out ones are, and which questions can be asked about them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from skipwise.compare.documents import measured_documents
from skipwise.config import RunConfig
from skipwise.data.documents import Document, Sources
from skipwise.errors import DataError
from skipwise.evals.suite import Collection, try_questions
from skipwise.pilot.measures import QUESTIONS
from skipwise.train.exercises import shortest_exercise
from skipwise.window import Window, length_label


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """The held-out documents.

    Attributes:
        lengths: tokens of each, 1-D.
        long: how many are as long as the target, or are so when joined.
        joined: whether short ones are joined to be as long.
        collection: their text, for questions.
        questions: by kind, the lengths that questions can be made at.
        impossible: why others cannot be made, one sentence each.
        seconds: that making one question took, by tokens.
        shortest_passkey: tokens that a passkey, its question and the instruction take.
    """

    lengths: np.ndarray
    long: int
    joined: bool
    collection: Collection
    questions: Mapping[str, tuple[int, ...]]
    impossible: Sequence[str]
    seconds: Mapping[int, float]
    shortest_passkey: int

    @property
    def told(self) -> str:
        """In one line."""
        longest = int(self.lengths.max())
        how = "joined texts" if self.joined else "of these"
        return f"{len(self.lengths)} documents are held out, the longest of {longest:,} tokens; {self.long} {how} fit"


def look_at_held_out(
    run: RunConfig, window: Window, tokenizer: Any, sources: Sequence[Sources], lengths: Sequence[int]
) -> HeldOut:
    """Reads the held-out documents, and tries one question of each kind and length.

    Raises:
        DataError: none is as long as the target; the message has what they are long enough for.
    """
    data = run.data.without_replay()
    # Replay has sources of its own.
    how = {"sources": sources if data is run.data else None, "progress": False}
    store = measured_documents(run, window, data.source, tokenizer, min_tokens=1, **how)
    texts = [store.document(index) for index in range(store.num_documents)]
    tokens = np.array([len(text) for text in texts])
    try:
        long = measured_documents(run, window, data.source, tokenizer, min_tokens=window.target, **how).num_documents
    except DataError:
        raise DataError(_too_short(tokens, window, joins=bool(run.data.join)), page="no-long-documents") from None
    documents = [
        Document(name=str(store.names[index]), text=tokenizer.decode(text.tolist(), skip_special_tokens=True))
        for index, text in enumerate(texts)
    ]
    collection = Collection(documents)
    found = try_questions(collection, tokenizer, lengths=lengths, kinds=QUESTIONS, seed=run.seed)
    # Keys differ by a few tokens.
    shortest = round(1.1 * shortest_exercise(tokenizer))
    questions: dict[str, tuple[int, ...]] = {}
    seconds: dict[int, float] = {}
    for (kind, length), outcome in found.items():
        if not isinstance(outcome, DataError):
            questions[kind] = (*questions.get(kind, ()), length)
            seconds[length] = max(outcome, seconds.get(length, 0.0))
    return HeldOut(
        lengths=tokens,
        long=long,
        joined=bool(run.data.join) and int((tokens >= window.target).sum()) < long,
        collection=collection,
        questions=questions,
        impossible=[*_impossible(found), *_too_short_to_hide(lengths, shortest)],
        seconds=seconds,
        shortest_passkey=shortest,
    )


def _impossible(found: Mapping[tuple[str, int], Any]) -> list[str]:
    """One sentence for each kind, with the lengths at which it cannot be asked."""
    lengths: dict[str, list[int]] = {}
    for (kind, length), outcome in found.items():
        if isinstance(outcome, DataError):
            lengths.setdefault(kind, []).append(length)
    return [
        f"Questions of the kind {kind.replace('_', ' ')} cannot be made of these documents at "
        f"{', '.join(map(length_label, of_kind))} tokens."
        for kind, of_kind in lengths.items()
    ]


def _too_short_to_hide(lengths: Sequence[int], shortest: int) -> list[str]:
    short = ", ".join(length_label(length) for length in lengths if length < shortest)
    return [f"Passkeys cannot be asked for at {short} tokens, as one takes {shortest}."] if short else []


def _too_short(tokens: np.ndarray, window: Window, *, joins: bool) -> str:
    """What to do if no held-out document is as long as the target."""
    longest, target = int(tokens.max()), window.target
    carried = window.original
    while carried * 2 <= longest:
        carried *= 2
    said = f"no held-out document has {target:,} tokens, so nothing can be asked about one: "
    said += f"of {len(tokens):,} the longest has {longest:,}"
    if carried > window.original:
        number = int((tokens >= carried).sum())
        said += f", and {number:,} reach{'es' if number == 1 else ''} {length_label(carried)}"
        said += f"; they carry --target {length_label(carried)}"
    else:
        said += f", and the model reads {window.original:,} already; give longer ones"
    if joins:
        return f"{said}; joined they are still too short"
    return f"{said}, or --set data.join=true joins short ones, and questions are then about several at once"
