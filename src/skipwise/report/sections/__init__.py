"""The sections of a report, each made of the evidence it needs and left out where there is none.

quality.py     perplexity, paired differences, the short window, tokens to a perplexity
retrieval.py   by length and depth, by task and length
costs.py       of training and of serving
provenance.py  samplers, failures, what was run
"""

from collections.abc import Callable, Iterable, Sequence

from skipwise.report.evidence import Evidence
from skipwise.report.page import Section
from skipwise.report.sections.costs import serving_section, training_section
from skipwise.report.sections.provenance import (
    coverage_section,
    failures_section,
    outputs_section,
    run_section,
)
from skipwise.report.sections.quality import (
    differences_section,
    others_section,
    perplexity_section,
    reached_section,
    regression_section,
)
from skipwise.report.sections.retrieval import depth_sections, retrieval_section

# In reading order; a section of yours is a function and one line here.
SECTIONS: Sequence[Callable[[Evidence], Iterable[Section]]] = (
    perplexity_section,
    depth_sections,
    retrieval_section,
    differences_section,
    regression_section,
    training_section,
    serving_section,
    reached_section,
    coverage_section,
    others_section,
    outputs_section,
    failures_section,
    run_section,
)


def sections_of(evidence: Evidence) -> list[Section]:
    """All sections that there is evidence for, in reading order."""
    return [section for make in SECTIONS for section in make(evidence)]
