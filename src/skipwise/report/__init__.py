"""From evaluation records to what people read: figures, one HTML page, a model card, a table in the terminal."""

from skipwise.report.effective import EffectiveLength, MeanScore, basis, effective_length, mean_scores, short_limit
from skipwise.report.figures import Figure, passkey_grid, perplexity_by_length
from skipwise.report.model_card import state_attention_factor, state_effective_length, write_model_card
from skipwise.report.page import Section, render_page
from skipwise.report.records import Arm, Measure, length_label
from skipwise.report.sections import passkey_section, perplexity_section, verdict_words, write_report
from skipwise.report.tables import Table, results_table, table_of

__all__ = [
    "Arm",
    "EffectiveLength",
    "Figure",
    "MeanScore",
    "Measure",
    "Section",
    "Table",
    "basis",
    "effective_length",
    "length_label",
    "mean_scores",
    "passkey_grid",
    "passkey_section",
    "perplexity_by_length",
    "perplexity_section",
    "render_page",
    "results_table",
    "short_limit",
    "state_attention_factor",
    "state_effective_length",
    "table_of",
    "verdict_words",
    "write_model_card",
    "write_report",
]
