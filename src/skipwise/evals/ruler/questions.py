"""Question answering over numbered passages, most of which distract.

Questions come from a local file in SQuAD's or HotpotQA's JSON format, or are generated (`facts`); results say which.

Source: RULER (arXiv 2404.06654), section 3 and appendix B, and its published settings. The wording is our own. Passages
    are shuffled for every trial; the authors' released code uses one order for all trials.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import BaseModel, TypeAdapter, ValidationError

from skipwise.errors import ConfigError, DataError
from skipwise.evals.context import EvalContext
from skipwise.evals.drafts import Draft
from skipwise.evals.prompts import string_match_any
from skipwise.evals.ruler.facts import FactWorld, Question
from skipwise.evals.ruler.task import Drafter, RulerTask, topped_up
from skipwise.evals.settings import NO_KEY


class _SquadAnswer(BaseModel):
    text: str


class _SquadQuestion(BaseModel):
    question: str
    answers: list[_SquadAnswer] = []
    is_impossible: bool = False


class _SquadParagraph(BaseModel):
    context: str
    qas: list[_SquadQuestion]


class _SquadArticle(BaseModel):
    paragraphs: list[_SquadParagraph]


class _Squad(BaseModel):
    data: list[_SquadArticle]


class _HotpotEntry(BaseModel):
    question: str
    answer: str | None = None
    context: list[tuple[str, list[str]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionPool:
    """The questions of one file.

    Attributes:
        name: name of the file.
        sha256: SHA-256 of its content.
        questions: all but the impossible ones, in the file's order; some may lack their answers.
        passages: all passages, each once.
    """

    name: str
    sha256: str
    questions: list[Question]
    passages: list[str]


def read_questions(path: str | Path) -> QuestionPool:
    """Reads a JSON file of SQuAD (an object with `data`, 1.1 or 2.0) or HotpotQA (a list of entries).

    Raises:
        DataError: the file cannot be read, or an entry is invalid.
    """
    try:
        stat = Path(path).stat()
    except OSError as error:
        raise DataError(
            f"file of questions {path} cannot be read ({error.strerror}): give a JSON file", page="not-found"
        ) from error
    return _read(Path(path), stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=2)
def _read(path: Path, _mtime_ns: int, _size_bytes: int) -> QuestionPool:
    """Reads a file once for all trials, and again if it has changed."""
    content = path.read_bytes()
    try:
        parsed = json.loads(content)
    except ValueError as error:
        raise DataError(f"file of questions {path} is not JSON ({error}): give SQuAD's or HotpotQA's") from error
    try:
        questions, passages = _read_hotpot(parsed) if isinstance(parsed, list) else _read_squad(parsed)
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(
            f"file of questions {path}, entry {_place(first['loc'])}: {first['msg'].lower()}; give SQuAD's format (an "
            "object with data, paragraphs, qas) or HotpotQA's (a list with question, answer, context)"
        ) from error
    if not questions:
        raise DataError(f"file of questions {path} has no question that can be answered: give another")
    return QuestionPool(
        name=path.name,
        sha256=hashlib.sha256(content).hexdigest(),
        questions=questions,
        passages=list(dict.fromkeys(passages)),
    )


def _read_squad(parsed: Any) -> tuple[list[Question], list[str]]:
    questions: list[Question] = []
    passages: list[str] = []
    for article in _Squad.model_validate(parsed).data:
        own = list(dict.fromkeys(paragraph.context for paragraph in article.paragraphs))
        passages += own
        for paragraph in article.paragraphs:
            related = [passage for passage in own if passage != paragraph.context]
            questions += [
                Question(
                    text=entry.question,
                    references=list(dict.fromkeys(answer.text for answer in entry.answers)),
                    passages=[paragraph.context],
                    related=related,
                )
                for entry in paragraph.qas
                if not entry.is_impossible
            ]
    return questions, passages


def _read_hotpot(parsed: Any) -> tuple[list[Question], list[str]]:
    questions = [
        Question(
            text=entry.question,
            references=[] if entry.answer is None else [entry.answer],
            passages=list(dict.fromkeys(f"{title}\n{''.join(sentences)}" for title, sentences in entry.context)),
        )
        for entry in TypeAdapter(list[_HotpotEntry]).validate_python(parsed)
    ]
    return questions, [passage for question in questions for passage in question.passages]


def _place(location: tuple[int | str, ...]) -> str:
    """`data[3].paragraphs[0].qas[2].question`"""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return text.removeprefix(".") or "at the top"


MADE_UP = "generated facts"
_INSTRUCTION = "Answer the question from the passages given. Write the answer alone and nothing else."


class Distractors:
    """Passages truncated to a number of words, drawn only as far as needed.

    Args:
        passages: distractors, best first.
    """

    def __init__(self, passages: Iterable[str]) -> None:
        self._coming = iter(passages)
        self._drawn: list[list[str]] = []
        self._num_words = 0

    def __call__(self, num_words: int) -> list[str]:
        """The first `num_words` words as passages, the last of which may break off; fewer if there are no more."""
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
        question: the question.
        distractors: returns passages of a number of words.
        seed: seed of the passages' order.
        num_words: number of words of distractors.
        num_filler_words: number of filler words after the passages.
    """
    passages = [*question.passages, *distractors(num_words)]
    order = np.random.default_rng(seed).permutation(len(passages))
    context = "\n\n".join(f"Passage {number}:\n{passages[place]}" for number, place in enumerate(order, 1))
    context = topped_up(context, num_filler_words, gap="\n\n")
    return Draft(
        request=f"{_INSTRUCTION}\n\nThese are the passages.\n\n{context}\n\n{_INSTRUCTION}\n\nQuestion: "
        f"{question.text}",
        answer_prefix="Answer:",
        references=question.references,
        details={"question": question.text, "passages": len(passages), "filler_words": num_filler_words},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionTask(RulerTask):
    """Base of both question tasks: 32 tokens of answer, right if they contain any of the references.

    Attributes:
        file: a JSON file of SQuAD or HotpotQA; without it, questions about invented people and
            towns are generated.
    """

    max_new_tokens: ClassVar[int] = 32
    score: ClassVar = staticmethod(string_match_any)
    num_hops: ClassVar[int]
    file: str | None = field(default=None, metadata=NO_KEY)

    def scope(self) -> dict[str, Any]:
        """The source of the questions."""
        if self.file is None:
            return {"questions": MADE_UP}
        pool = read_questions(self.file)
        return {"questions": pool.name, "questions_sha256": pool.sha256}

    def drafter(self, context: EvalContext, length_tokens: int, index: int) -> Drafter:
        """The prompts of one trial by words of distractors."""
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
        """A question that no other trial asks; the same at every length."""
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


class SingleHopQuestions(QuestionTask):
    """Questions that one passage answers, as in SQuAD."""

    name = "ruler_qa_1"
    num_hops = 1


class TwoHopQuestions(QuestionTask):
    """Questions that take two passages, as in HotpotQA."""

    name = "ruler_qa_2"
    num_hops = 2
