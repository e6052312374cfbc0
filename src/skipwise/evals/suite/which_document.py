"""Which of several labelled documents a sentence is from."""

from typing import ClassVar

import numpy as np

from skipwise.evals.suite.item import Draft, Passage
from skipwise.evals.suite.kind import INSTRUCTION, Place, Scoring
from skipwise.evals.suite.library import Library, cut
from skipwise.evals.suite.sentences import quotable_sentences, squeezed

_NUM_DOCUMENTS = 4


class WhichDocument:
    """A sentence of one of four documents, each under a letter that says nothing; under which letter does it stand?

    The sentence stands once in all documents. Letters are drawn anew for each question, and the right document is the
    first, second, third and fourth equally often.
    """

    name: ClassVar[str] = "which_document"
    chance: ClassVar[float] = 1 / _NUM_DOCUMENTS
    num_texts: ClassVar[int] = _NUM_DOCUMENTS
    scoring: ClassVar[Scoring] = "likeliest"
    asks: ClassVar[str] = f"which of {_NUM_DOCUMENTS} documents, each under a letter, a sentence is from"

    def drafts(self, library: Library, place: Place, rng: np.random.Generator) -> list[Draft]:
        """One question; the right document's place goes round with its number."""
        stretches = library.stretches(_NUM_DOCUMENTS, place.most // _NUM_DOCUMENTS, rng)
        once = squeezed("\n\n".join(stretch.text for stretch in stretches))
        free = [label for label in place.labels if f"document {label.casefold()}" not in once]
        if len(free) < _NUM_DOCUMENTS:
            return []
        labels = [str(label) for label in rng.choice(free, _NUM_DOCUMENTS, replace=False)]
        right = place.number % _NUM_DOCUMENTS
        candidates = [
            sentence.text
            for sentence in quotable_sentences(cut(stretches[right].text, place.size // _NUM_DOCUMENTS))
            if not library.is_repeated(sentence.text) and once.count(squeezed(sentence.text)) == 1
        ]
        if not candidates:
            return []
        sentence = candidates[rng.integers(len(candidates))]

        def assemble(num_characters: int) -> Passage:
            share = num_characters // _NUM_DOCUMENTS
            parts = [
                f"Document {label}\n\n{cut(stretch.text, share)}\n\n"
                for label, stretch in zip(labels, stretches, strict=True)
            ]
            names = [name for stretch in stretches for name in stretch.names_until(share)]
            return Passage(INSTRUCTION + "".join(parts), None, names)

        *some, last = sorted(labels)
        question = (
            f'This sentence stands in one of the documents {", ".join(some)} and {last} above:\n"{sentence}"\n'
            "It stands in Document"
        )
        shortest = _NUM_DOCUMENTS * min(len(stretch.text) for stretch in stretches)
        return [
            Draft(
                kind=self.name,
                question=question,
                answer=f" {labels[right]}",
                choices=[f" {label}" for label in sorted(labels)],
                assemble=assemble,
                least=min(place.size, shortest),
                most=shortest,
            )
        ]
