"""Records of an evaluation: one result per measured number, one sample per input."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np
from pydantic import FiniteFloat, PositiveInt

from skipwise.errors import DataError

Sample = dict[str, Any]
"""One input of a task as JSON values: its identification, the hash of its token ids, and the model's outcome."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalResult:
    """One measured number.

    Attributes:
        task: name of the task, a key of `TASKS`.
        length_tokens: length of the input in tokens, including the tokens to be generated.
        metric: what was measured, such as `perplexity` or `accuracy`.
        value: the measured number.
        ci_low: lower end of the 95% confidence interval; None if there is no interval.
        ci_high: upper end of the interval; None if there is no interval.
        num_samples: number of inputs that it was measured on.
        num_skipped: number of unusable inputs, such as documents too short for the length.
        seed: seed of prompts and of the choice of documents.
        details: settings of the task, hash of the tokenizer, and whatever else identifies this number.
    """

    task: str
    length_tokens: PositiveInt
    metric: str
    value: FiniteFloat
    ci_low: FiniteFloat | None
    ci_high: FiniteFloat | None
    num_samples: int
    num_skipped: int = 0
    seed: int = 0
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def is_whole(self) -> bool:
        """Whether it is about the whole input, not a depth or a range of positions within it."""
        return "depth_from" not in self.details and "position_from" not in self.details

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self), ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> "EvalResult":
        """Reads what `to_json` wrote.

        Raises:
            DataError: the line is not a JSON object with exactly these fields.
        """
        try:
            return cls(**json.loads(line))
        except (ValueError, TypeError) as error:
            names = ", ".join(entry.name for entry in fields(cls))
            raise DataError(
                f"evaluation result {line[:80]!r} cannot be read ({error}); a line has {names}", page="unusable-results"
            ) from error


class Measurement(NamedTuple):
    """Results and samples of a task at one length."""

    results: Sequence[EvalResult]
    samples: Sequence[Sample]


def sample_line(sample: Sample) -> str:
    """One line of JSON. NaN and infinity raise here rather than when the file is read."""
    return json.dumps(sample, ensure_ascii=False, allow_nan=False)


def hash_tokens(token_ids: Sequence[int] | np.ndarray) -> str:
    """SHA-256 of token ids as little-endian 64-bit integers."""
    return hashlib.sha256(np.asarray(token_ids, "<i8").tobytes()).hexdigest()


def hash_documents(documents: Sequence[np.ndarray]) -> str:
    """SHA-256 of the token ids and lengths of all documents."""
    digest = hashlib.sha256()
    for token_ids in documents:
        digest.update(len(token_ids).to_bytes(8, "little"))
        digest.update(np.ascontiguousarray(token_ids, "<u4").data)
    return digest.hexdigest()


def hash_tokenizer(tokenizer: Any) -> str:
    """SHA-256 of a tokenizer's vocabulary and its ids of a probe text; equal hashes mean comparable token counts."""
    vocabulary: Mapping[str, int] = tokenizer.get_vocab()
    probe = tokenizer.encode("The 12345 pass keys;\n\tnaïve_Names = 3.14159  # 日本", add_special_tokens=True)
    text = json.dumps([sorted(vocabulary.items()), list(probe)], ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
