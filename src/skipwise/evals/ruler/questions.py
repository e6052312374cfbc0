"""Question answering over numbered passages, of which all but one or a few distract.

Questions come from a local file in SQuAD's or HotpotQA's format, or are made up (`facts`), and results say which.

Source: RULER (arXiv 2404.06654), section 3 and appendix B, and its published settings. The wording is our own. Passages
    are shuffled anew for every trial; the authors' released code shuffles all trials alike.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from skipwise.errors import ConfigError
from skipwise.evals.context import EvalContext
from skipwise.evals.prompts import string_match_any
from skipwise.evals.ruler.draft import Draft, Drafter, filler_words
from skipwise.evals.ruler.facts import FactWorld, Question
from skipwise.evals.ruler.question_file import QuestionPool, read_questions
from skipwise.evals.ruler.task import RulerTask
from skipwise.evals.settings import NO_KEY

MADE_UP = "generated facts"
_INSTRUCTION = "Answer the question from the passages given. Write the answer alone and nothing else."


class Distractors:
    """Passages cut at so many words, drawn only as far as they are asked for.

    Args:
        passages: distractors, best first.
    """

    def __init__(self, passages: Iterable[str]) -> None:
        self._coming = iter(passages)
        self._drawn: list[list[str]] = []
        self._num_words = 0

    def __call__(self, num_words: int) -> list[str]:
        """The first `num_words` words as passages, the last of which may break off; fewer where there are no more."""
        while self._num_words < num_words and (passage := next(self._coming, None)) is not None:
            self._drawn.append(passage.split(" "))
            self._num_words += len(self._drawn[-1])
        taken: list[str] = []
        for words in self._drawn:
            if num_words <= 0:
                break
            taken.append(" ".join(words[:num_words]))
            num_words -= len(words)
        return taken


def question_draft(
    question: Question, distractors: Callable[[int], list[str]], seed: int, num_words: int, num_filler_words: int
) -> Draft:
    """One question over its own passages and distractors of a given size.

    Args:
        question: what is asked.
        distractors: passages that come to so many words.
        seed: of the passages' order.
        num_words: words of distractors.
        num_filler_words: filler after the passages.
    """
    passages = [*question.passages, *distractors(num_words)]
    order = np.random.default_rng(seed).permutation(len(passages))
    context = "\n\n".join(f"Passage {number}:\n{passages[place]}" for number, place in enumerate(order, 1))
    if num_filler_words:
        context += "\n\n" + filler_words(num_filler_words)
    return Draft(
        request=f"{_INSTRUCTION}\n\nThese are the passages.\n\n{context}\n\n{_INSTRUCTION}\n\nQuestion: "
        f"{question.text}",
        answer_prefix="Answer:",
        references=question.references,
        details={"question": question.text, "passages": len(passages), "filler_words": num_filler_words},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionTask(RulerTask):
    """What both question tasks share: 32 tokens of answer, right when they contain any of the references.

    Attributes:
        file: JSON of SQuAD or HotpotQA; None asks about made up people and towns.
    """

    max_new_tokens: ClassVar[int] = 32
    score: ClassVar = staticmethod(string_match_any)
    num_hops: ClassVar[int]
    file: str | None = field(default=None, metadata=NO_KEY)

    def scope(self) -> dict[str, Any]:
        """Where the questions come from."""
        if self.file is None:
            return {"questions": MADE_UP}
        pool = read_questions(self.file)
        return {"questions": pool.name, "questions_sha256": pool.sha256}

    def drafter(self, context: EvalContext, length_tokens: int, index: int) -> Drafter:
        """Prompts of one trial by words of distractors."""
        rng = context.rng(self.name, length_tokens, index)
        if self.file is None:
            world = FactWorld(rng)
            question, others = world.question(self.num_hops), world.passages()
        else:
            pool = read_questions(self.file)
            question = self._of_file(context, pool, index)
            others = _others(pool, question, rng)
        seed = int(context.rng(f"{self.name} order", length_tokens, index).integers(2**63))
        distractors = Distractors(others)
        return lambda words, filler: question_draft(question, distractors, seed, words, filler)

    def _of_file(self, context: EvalContext, pool: QuestionPool, index: int) -> Question:
        """A question that no other trial asks, the same one at every length."""
        if self.trials > len(pool.questions):
            raise ConfigError(
                f"{self.name}.trials is {self.trials} and {pool.name} has {len(pool.questions)} questions: give at "
                "most that many trials"
            )
        return pool.questions[int(context.rng(self.name).permutation(len(pool.questions))[index])]


def _others(pool: QuestionPool, question: Question, rng: np.random.Generator) -> Iterator[str]:
    """Related passages first, then all others, each group in a random order."""
    known = {*question.passages, *question.related}
    for group in (question.related, [passage for passage in pool.passages if passage not in known]):
        for place in rng.permutation(len(group)):
            yield group[place]


@dataclass(frozen=True, slots=True, kw_only=True)
class SingleHopQuestions(QuestionTask):
    """Questions that one passage answers, as in SQuAD."""

    name: ClassVar[str] = "ruler_qa_1"
    num_hops: ClassVar[int] = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoHopQuestions(QuestionTask):
    """Questions that take two passages, as in HotpotQA."""

    name: ClassVar[str] = "ruler_qa_2"
    num_hops: ClassVar[int] = 2
