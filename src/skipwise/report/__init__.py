"""From evaluation records to what people read: figures, one HTML page, a model card, a table in the terminal.

reading.py     files and folders -> evidence.py, all that a report is made from
records.py     records by arm, and how numbers are written
sections/      evidence -> sections of words, figures and tables; verdict.py says them in short
report.py      the whole: as a page (page.py, page.html), Markdown, CSV, JSON
model_card.py  the README.md of an extended checkpoint
"""

from skipwise.report.coverage_plot import Curve, draw_coverage
from skipwise.report.drawing import Figure
from skipwise.report.effective import EffectiveLength, MeanScore, basis, effective_length, mean_scores, short_limit
from skipwise.report.evidence import Evidence
from skipwise.report.heatmaps import depth_grid
from skipwise.report.lines import perplexity_by_length
from skipwise.report.model_card import (
    state_attention_factor,
    state_effective_length,
    state_results,
    write_model_card,
)
from skipwise.report.page import Section, render_page
from skipwise.report.reading import read_evidence
from skipwise.report.records import Arm, Measure
from skipwise.report.report import Report
from skipwise.report.tables import Table, results_table, table_of

__all__ = [
    "Arm",
    "Curve",
    "EffectiveLength",
    "Evidence",
    "Figure",
    "MeanScore",
    "Measure",
    "Report",
    "Section",
    "Table",
    "basis",
    "depth_grid",
    "draw_coverage",
    "effective_length",
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
