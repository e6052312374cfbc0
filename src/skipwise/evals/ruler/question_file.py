"""Files of questions: SQuAD's and HotpotQA's JSON."""

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from skipwise.errors import DataError
from skipwise.evals.ruler.facts import Question


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
        sha256: of its content.
        questions: all but the impossible ones, in the file's order; some may lack their answers.
        passages: all passages, each once.
    """

    name: str
    sha256: str
    questions: list[Question]
    passages: list[str]


def read_questions(path: str | Path) -> QuestionPool:
    """Reads a file of SQuAD (1.1 or 2.0, without its impossible questions) or HotpotQA.

    Args:
        path: JSON; SQuAD is an object with `data`, HotpotQA a list of entries.

    Raises:
        DataError: when the file cannot be read or an entry is not as it should be, with the entry.
    """
    try:
        stat = Path(path).stat()
    except OSError as error:
        raise DataError(f"file of questions {path} cannot be read ({error.strerror}): give a JSON file") from error
    return _read(Path(path), stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=2)
def _read(path: Path, _mtime_ns: int, _size_bytes: int) -> QuestionPool:
    """Reads a file once for all its trials, and anew when it has changed."""
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
