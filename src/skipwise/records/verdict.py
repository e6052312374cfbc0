"""Verdicts of probes."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from skipwise.errors import UnsupportedModelError
from skipwise.pages import page_address


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The result of one probe.

    Attributes:
        name: name of the probe, such as `reach`.
        status: `pass`, `fail` (do not train), or `note` (worth knowing).
        detail: what was measured, with numbers.
        cure: what to do; empty if the probe passed or there is nothing to do.
    """

    name: str
    status: Literal["pass", "fail", "note"]
    detail: str
    cure: str = ""

    @property
    def line(self) -> str:
        """The verdict as one line of text."""
        return f"{self.status}  {self.name:<9}  {self.detail}" + (f"; {self.cure}" if self.cure else "")

    def to_json(self) -> dict[str, Any]:
        """The fields, and the address of the page about this verdict."""
        return {**asdict(self), "page": page_address(self.name)}


def judge(name: str, good: bool, detail: str, cure: str) -> Verdict:
    """A verdict that passes if `good`; otherwise it fails with the cure."""
    return Verdict(name=name, status="pass" if good else "fail", detail=detail, cure="" if good else cure)


def require_healthy(verdicts: Sequence[Verdict]) -> None:
    """Raises after a failed preflight.

    Raises:
        UnsupportedModelError: a verdict failed. The message lists every failed verdict with its cure.
    """
    failed = [f"{verdict.name}: {verdict.detail}; {verdict.cure}" for verdict in verdicts if verdict.status == "fail"]
    if failed:
        raise UnsupportedModelError(
            f"preflight failed ({len(failed)} of {len(verdicts)} verdicts): {' | '.join(failed)}",
            page="preflight-failed",
        )


def refused_mask(verdicts: Sequence[Verdict]) -> str | None:
    """Why the mask of diluted attention is refused, if the preflight failed for nothing else; else None.

    In 16 bits this may be rounding, which hides the mask's effect on a small model.
    """
    failed = [verdict for verdict in verdicts if verdict.status == "fail"]
    if [verdict.name for verdict in failed] != ["dilution"]:
        return None
    return f"the preflight does not see that the model takes its mask ({failed[0].detail})"
