"""What a probe found, in one line, and the refusal to go on when one failed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from skipwise.errors import UnsupportedModelError


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What one probe found.

    Attributes:
        name: of the probe, one word.
        status: `pass`, `fail` (do not train), or `note` (worth knowing, never in the way).
        detail: what was measured, with the numbers.
        cure: what to do about it; empty where there is nothing to do.
    """

    name: str
    status: Literal["pass", "fail", "note"]
    detail: str
    cure: str = ""

    @property
    def line(self) -> str:
        """The verdict as one line of text."""
        return f"{self.status}  {self.name:<9}  {self.detail}" + (f"; {self.cure}" if self.cure else "")


def judge(name: str, good: bool, detail: str, cure: str) -> Verdict:
    """A verdict that passes, or fails and then names its cure."""
    return Verdict(name=name, status="pass" if good else "fail", detail=detail, cure="" if good else cure)


def require_healthy(verdicts: Sequence[Verdict]) -> None:
    """Refuses to go on after a failed preflight.

    Raises:
        UnsupportedModelError: a verdict failed; names all that did, with their cures.
    """
    failed = [f"{verdict.name}: {verdict.detail}; {verdict.cure}" for verdict in verdicts if verdict.status == "fail"]
    if failed:
        raise UnsupportedModelError(
            f"preflight failed ({len(failed)} of {len(verdicts)} verdicts): {' | '.join(failed)}"
        )
