"""From evaluation records to what people read: figures, one HTML page, a model card, a table in the terminal.

reading.py     files and folders -> evidence.py, all that a report is made from
measured.py    evidence -> sections of words, figures and tables on what was measured
ran.py         the same on what was run, what it cost and how it was made
samples.py     the rules of the effective length, and how many samples they need
contest.py     evidence -> who answered how many questions, and whether that differs
decision.py    the contest -> go, not yet or no; its costs are in worse.py, the next command in commands.py
decisive.py    the few numbers that the decision rests on
verdict.py     evidence -> the findings in a few sentences
words.yaml     every sentence, title and caption, as a template
figures.py     the kinds of figures, in the style of drawing.py
report.py      the whole: as a page (page.py, page.html), Markdown, CSV, JSON
effective.py   how far a model's window may be relied upon
model_card.py  the README.md of an extended checkpoint
"""

from typing import TYPE_CHECKING

from skipwise.imports import lazily

if TYPE_CHECKING:
    from skipwise.report.decision import Decision, decide
    from skipwise.report.effective import EffectiveLength, MeanScore, basis, effective_length, mean_scores, short_limit
    from skipwise.report.evidence import Arm, Evidence, Measure
    from skipwise.report.figures import Curve, depth_grid, draw_coverage, perplexity_by_length
    from skipwise.report.model_card import (
        state_attention_factor,
        state_effective_length,
        state_results,
        write_model_card,
    )
    from skipwise.report.page import Figure, Section, render_page
    from skipwise.report.reading import read_evidence
    from skipwise.report.report import Report
    from skipwise.report.samples import enough_trials, least_samples
    from skipwise.report.tables import Table, results_table, table_of

_NAMES_OF_MODULES = {
    "decision": "Decision decide",
    "effective": "EffectiveLength MeanScore basis effective_length mean_scores short_limit",
    "evidence": "Arm Evidence Measure",
    "figures": "Curve depth_grid draw_coverage perplexity_by_length",
    "model_card": "state_attention_factor state_effective_length state_results write_model_card",
    "page": "Figure Section render_page",
    "reading": "read_evidence",
    "report": "Report",
    "samples": "enough_trials least_samples",
    "tables": "Table results_table table_of",
}

__all__ = [
    "Arm",
    "Curve",
    "Decision",
    "EffectiveLength",
    "Evidence",
    "Figure",
    "MeanScore",
    "Measure",
    "Report",
    "Section",
    "Table",
    "basis",
    "decide",
    "depth_grid",
    "draw_coverage",
    "effective_length",
    "enough_trials",
    "least_samples",
    "mean_scores",
    "perplexity_by_length",
    "read_evidence",
    "render_page",
    "results_table",
    "short_limit",
    "state_attention_factor",
    "state_effective_length",
    "state_results",
    "table_of",
    "write_model_card",
]

__getattr__ = lazily(__name__, {name: module for module, names in _NAMES_OF_MODULES.items() for name in names.split()})
