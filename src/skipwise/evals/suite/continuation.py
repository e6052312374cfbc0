"""Real sentences of the text to be continued, and the same question with the sentence taken out of the text."""

from typing import ClassVar

import numpy as np

from skipwise.evals.suite.item import Draft, Passage
from skipwise.evals.suite.kind import INSTRUCTION, Place, Scoring, stratum
from skipwise.evals.suite.library import Library, cut
from skipwise.evals.suite.sentences import halves, quotable_sentences, squeezed

# Shorter second halves are guessed too easily.
_SECOND_HALF_CHARACTERS = 25


class Continue:
    """The first half of a sentence of the text; what follows it there?

    The sentence stands once in all documents, and neither of its halves stands elsewhere in the text. How much of the
    score is guessed or known by heart is measured and not assumed: each question has a control, kind
    `continue_control`, that differs by the sentence being absent from the text.
    """

    name: ClassVar[str] = "continue"
    chance: ClassVar[float] = 0.0
    num_texts: ClassVar[int] = 1
    scoring: ClassVar[Scoring] = "begins"
    asks: ClassVar[str] = "the second half of a sentence of the text, given the first"

    def drafts(self, library: Library, place: Place, rng: np.random.Generator) -> list[Draft]:
        """A question and its control; its sentence stands in the depth stratum of its number."""
        (stretch,) = library.stretches(1, place.most, rng)
        text = stretch.text
        size = min(place.size, len(text))
        low, high = (depth * size for depth in stratum(place.number))
        once = squeezed(text)
        candidates = [sentence for sentence in quotable_sentences(cut(text, size)) if low <= sentence.start < high]
        for index in rng.permutation(len(candidates)):
            sentence = candidates[index]
            first, second = halves(sentence.text)
            if (
                len(second) >= _SECOND_HALF_CHARACTERS
                and not library.is_repeated(sentence.text)
                and once.count(squeezed(first)) == once.count(squeezed(second)) == 1
            ):
                break
        else:
            return []

        without = text[: sentence.start] + text[sentence.end :].lstrip(" ")

        def passage(body: str, num_characters: int) -> Passage:
            body = cut(body, num_characters)
            depth = sentence.start / len(body)
            return Passage(f"{INSTRUCTION}{body}\n\n", depth, stretch.names_until(num_characters))

        question = f'One sentence of the text above is repeated here word for word:\n"{first}'
        return [
            Draft(
                kind=kind,
                question=question,
                answer=second,
                assemble=lambda num_characters, body=body: passage(body, num_characters),
                least=min(size, len(body)),
                most=len(body),
            )
            for kind, body in ((self.name, text), (f"{self.name}_control", without))
        ]
