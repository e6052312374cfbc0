"""From evaluation records to what people read: figures, one HTML page, a model card, a table in the terminal.

reading.py     files and folders -> evidence.py, all that a report is made from
records.py     records by arm, and how numbers are written
sections/      evidence -> sections of words, figures and tables; verdict.py says them in short
report.py      the whole: as a page (page.py, page.html), Markdown, CSV, JSON
model_card.py  the README.md of an extended checkpoint
"""

from typing import TYPE_CHECKING

from skipwise.imports import lazily

if TYPE_CHECKING:
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

_HOMES = {
    "Arm": "records",
    "Curve": "coverage_plot",
    "EffectiveLength": "effective",
    "Evidence": "evidence",
    "Figure": "drawing",
    "MeanScore": "effective",
    "Measure": "records",
    "Report": "report",
    "Section": "page",
    "Table": "tables",
    "basis": "effective",
    "depth_grid": "heatmaps",
    "draw_coverage": "coverage_plot",
    "effective_length": "effective",
    "mean_scores": "effective",
    "perplexity_by_length": "lines",
    "read_evidence": "reading",
    "render_page": "page",
    "results_table": "tables",
    "short_limit": "effective",
    "state_attention_factor": "model_card",
    "state_effective_length": "model_card",
    "state_results": "model_card",
    "table_of": "tables",
    "write_model_card": "model_card",
}

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

__getattr__ = lazily(__name__, _HOMES)
