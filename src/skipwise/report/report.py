"""One report: title, decision, verdict, sections, how it was made; as a page, Markdown, CSV or JSON.

report = Report.of(read_evidence(["base.jsonl", "extended.jsonl"]), title="32k")
report.write_page(Path("report.html"))
"""

import csv
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from skipwise.report import measured, ran
from skipwise.report.decision import Decision, decide
from skipwise.report.decisive import decisive_tables
from skipwise.report.effective import Group
from skipwise.report.evidence import Evidence, Measure
from skipwise.report.page import Section, render_page
from skipwise.report.tables import Table, markdown_text
from skipwise.report.verdict import verdict_words
from skipwise.report.words import say
from skipwise.window import length_label

# In reading order; a section of yours is a function and one line here.
SECTIONS: Sequence[Callable[[Evidence], Iterable[Section]]] = (
    measured.perplexity_section,
    measured.depth_sections,
    measured.retrieval_section,
    measured.differences_section,
    measured.regression_section,
    ran.training_section,
    ran.serving_section,
    ran.reached_section,
    ran.coverage_section,
    measured.others_section,
    ran.outputs_section,
    ran.failures_section,
    ran.left_out_section,
    ran.run_section,
)

CSV_COLUMNS = (
    *("arm", "task", "part", "metric", "length_tokens", "value", "ci_low", "ci_high", "num_samples", "num_skipped"),
    *("seed", "step", "depth_from", "depth_to", "position_from", "position_to", "train_seeds", "model"),
    *("documents_sha256", "tokenizer_sha256"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What people are to read.

    Attributes:
        title: of the page.
        evidence: what it is made from.
        decision: what to do; None where the evidence has nothing to decide.
        decisive: the numbers that the decision rests on.
        verdict: what was found beside that, a sentence an entry.
        sections: in reading order.
        made: how the numbers came about, by name.
    """

    title: str
    evidence: Evidence
    decision: Decision | None
    decisive: Sequence[Table]
    verdict: Sequence[str]
    sections: Sequence[Section]
    made: Mapping[str, str]

    @classmethod
    def of(
        cls,
        evidence: Evidence,
        *,
        title: str | None = None,
        made: Mapping[str, str] | None = None,
        next_command: str | None = None,
    ) -> "Report":
        """The report on some evidence.

        Args:
            evidence: what was measured.
            title: of the page; None: from window to window.
            made: what else is known of how it was made; comes after what the evidence tells.
            next_command: what to run next, where the evidence does not tell.
        """
        lengths = map(length_label, (evidence.original_tokens, evidence.advertised_tokens))
        decision = decide(evidence)
        if decision is not None and decision.next_command is None:
            decision = replace(decision, next_command=next_command)
        return cls(
            title=title or f"From {' to '.join(lengths)} tokens",
            evidence=evidence,
            decision=decision,
            decisive=() if decision is None else decisive_tables(evidence),
            verdict=verdict_words(evidence, decided=decision is not None),
            sections=[section for make in SECTIONS for section in make(evidence)],
            made={**ran.made_of(evidence), **(made or {})},
        )

    def write_page(self, path: Path) -> None:
        """Writes it as one HTML file; an older one is replaced."""
        render_page(
            self.title,
            self.sections,
            path,
            verdict=self.verdict,
            made=self.made,
            decision=self.decision,
            decisive=self.decisive,
        )

    @property
    def lines(self) -> list[str]:
        """Decision and verdict for a terminal."""
        return [*(self.decision.lines if self.decision else ()), *self.verdict]

    def markdown(self) -> str:
        """Decision, verdict, words and tables in the Markdown of GitHub and the hub; figures are left out."""
        blocks = [f"# {markdown_text(self.title)}", *self._decision_in_markdown(), _bullets(self.verdict)]
        for section in self.sections:
            if not section.tables:
                continue
            blocks.append(f"## {markdown_text(section.title)}")
            blocks += map(markdown_text, section.words)
            for table in section.tables:
                blocks += [f"{markdown_text(table.title)}:", table.markdown()]
        blocks += ["## How this was made", _bullets([f"{name}: {value}" for name, value in self.made.items()])]
        return "\n\n".join(block for block in blocks if block) + "\n"

    def _decision_in_markdown(self) -> Iterator[str]:
        if (decision := self.decision) is None:
            return
        (outcome,) = say(f"decision.outcomes.{decision.outcome}")
        yield f"**{outcome}.** {markdown_text(decision.headline)}"
        yield _bullets(decision.reasons)
        if decision.gets_worse:
            yield "What gets worse:"
            yield _bullets(decision.gets_worse)
        if decision.next_command:
            yield f"Next:\n\n```\n{' '.join(decision.next_command.split())}\n```"
        for table in self.decisive:
            yield f"{markdown_text(table.title)}:"
            yield table.markdown()

    def write_csv(self, path: Path) -> None:
        """Writes every record as a row of a tidy table, with what tells it from its neighbours."""
        with path.open("w", encoding="utf-8", newline="") as file:
            rows = csv.DictWriter(file, CSV_COLUMNS)
            rows.writeheader()
            rows.writerows(_rows(self.evidence))

    def to_json(self) -> dict[str, Any]:
        """The verdict and the effective lengths behind it, as JSON values."""
        return {
            "title": self.title,
            "decision": self.decision and self.decision.to_json(),
            "verdict": list(self.verdict),
            "arms": [arm.name for arm in self.evidence.arms],
            "original_tokens": self.evidence.original_tokens,
            "target_tokens": self.evidence.target_tokens,
            "sections": [section.title for section in self.sections],
            "effective": self._effective("retrieval"),
            "effective_in_reasoning": self._effective("reasoning"),
            "made": dict(self.made),
        }

    def _effective(self, group: Group) -> dict[str, Any]:
        return {
            name: {one.rule: {"effective_tokens": one.effective_tokens, "decided": one.decided} for one in found}
            for name, found in measured.effective_lengths(self.evidence, group).items()
        }


def _bullets(sentences: Iterable[str]) -> str:
    return "\n".join(f"- {markdown_text(sentence)}" for sentence in sentences)


def _rows(evidence: Evidence) -> Iterator[dict[str, Any]]:
    for arm in evidence.arms:
        for record in arm.results:
            known = {name: getattr(record, name, None) for name in CSV_COLUMNS}
            known |= {name: record.details[name] for name in CSV_COLUMNS if name in record.details}
            seeds = record.details.get("train_seeds")
            yield known | {
                "arm": arm.name,
                "part": Measure.of(record).part,
                "train_seeds": " ".join(map(str, seeds)) if isinstance(seeds, list) else seeds,
            }
