"""What a pilot decides, and what is told beside the decision: text that was learned, short text, later kinds."""

import math
import re
from dataclasses import replace
from typing import Any

import pytest
from decided import PILOT, SHORT, TARGET, answered, evidence, perplexity, questions
from made_up_results import record, regression, share

from skipwise.records.comparison import ComparedArm, Difference
from skipwise.report.decision import decide
from skipwise.report.quantities import MINUS
from skipwise.report.report import Report


def test_a_pilot_of_perplexity_alone_says_what_was_seen_and_what_tells_more() -> None:
    small = replace(PILOT, seconds_to_decide=4 * 3600)
    found = decide(evidence(*(list(perplexity(8, at)) for at in (251, 9.9, 7.6)), pilot=small))
    assert found is not None
    assert found.outcome == "not yet"
    assert found.headline.startswith(
        "Text of 32k tokens has perplexity 7.60 with the extended model (lower is better), 9.90 with interpolation "
        "alone, 251 with the base; whether the extended model finds things in it is not known yet; the full run would"
    )
    assert found.reasons[0].endswith(
        "Enough questions to decide take about 4 hours on this machine; the next command asks them."
    )
    # A tenth more than the least: 4 h 24 min.
    command = "skipwise pilot small --data docs --target 32k --time 5h"
    assert found.next_command == command


@pytest.mark.parametrize(
    ("base", "interpolated", "steps"), [((50, 0), (48, 5), 40), ((40, 0), (40, 25), 40), ((40, 0), (40, 5), 1000)]
)
def test_a_pilot_says_which_score_would_be_a_go(
    base: tuple[int, int], interpolated: tuple[int, int], steps: int
) -> None:
    def decided(right: int) -> Any:
        of_arms = (base, interpolated, (50, right))
        return decide(answered(*of_arms, task="passkey", pilot=replace(PILOT, steps=steps)))

    (said,) = (reason for reason in decided(interpolated[1] + 1).reasons if "A go would take" in reason)
    least = int(re.findall(r"take (\d+) of 50 answers at 32k", said)[0])
    assert [decided(right).outcome for right in (least - 1, least)] == ["not yet", "go"]


def test_where_no_score_would_be_a_go_a_pilot_says_so() -> None:
    asked = [(0, 251), (25, 9.9), (24, 7.6)]
    lines = [[*questions(25, right, 25, "passkey"), *perplexity(8, at)] for right, at in asked]
    found = decide(evidence(*lines, pilot=PILOT))
    assert found is not None
    assert any(
        "No number of right answers to 25 questions would show a gain over interpolation" in r for r in found.reasons
    )


def test_a_pilot_tells_a_difference_in_one_direction() -> None:
    differs = Difference(
        arm="interpolation-only", reference="recipe", task="perplexity", metric="perplexity", length_tokens=TARGET,
        value=math.log(1.139), ci_low=math.log(0.93), ci_high=math.log(1.4), num_pairs=2,
    )  # fmt: skip
    lines = [list(perplexity(8, at)) for at in (251, 9.9, 7.6)]
    report = Report.of(evidence(*lines, pilot=PILOT, reference="recipe", differences=[differs]))
    (section,) = (one for one in report.sections if one.title.startswith("Paired differences"))
    assert section.title == "Paired differences of recipe"
    # 1 / 1.139, 1 / 1.4 and 1 / 0.93.
    assert section.tables[0].rows == (("interpolation-only", f"{MINUS}12.2 ({MINUS}28.6 to +7.5)"),)
    assert "12% lower" in " ".join(report.decision.reasons if report.decision else ())


def test_short_text_that_is_no_worse_may_still_be_answered_otherwise() -> None:
    short = list(regression(SHORT, -0.15, "model"))
    found = decide(evidence(list(perplexity(8, 251)), list(perplexity(8, 9)), [*perplexity(8, 7.6), *short]))
    assert found is not None
    assert found.gets_worse[0].endswith("at 6% of the positions another token is the most likely one.")


def test_perplexity_within_the_original_window_is_not_told_as_that_of_the_target() -> None:
    lines = [record("perplexity", "perplexity", SHORT, value, None, None, 1) for value in (8.0, 8.0, 7.5)]
    found = decide(evidence(*([line] for line in lines), pilot=replace(PILOT, seconds_to_decide=4 * 3600)))
    assert found is not None
    assert found.headline.startswith("No question was asked")


def test_a_kind_that_later_arms_were_not_asked_does_not_count() -> None:
    asked = {"base": (0, 20), "interpolated": (5, None), "extended": (20, None)}
    lines = []
    for first, second in asked.values():
        found = [share("suite", "score", SHORT, 1.0, 20, kind="facts")]
        found += [share("suite", "score", TARGET, first / 20, 20, kind="facts")]
        if second is not None:
            found += [share("suite", "score", TARGET, second / 20, 20, kind="choices")]
        lines.append(found)
    decision = decide(evidence(*lines))
    assert decision is not None
    assert decision.headline.startswith(
        "At 32k the extended model answers 20 of 20 questions about your documents, the base 0;"
    )
    assert "was not asked the same" not in " ".join(decision.reasons)


@pytest.mark.parametrize(("arm", "short", "is_told"), [(None, 5.7, True), (None, 7.9, False), ("plain", 5.7, False)])
def test_text_that_was_learned_within_the_window_is_not_taken_for_length(
    arm: str | None, short: float, is_told: bool
) -> None:
    arms = {} if arm is None else {"short windows": ComparedArm(like=arm, trained=True)}
    found = decide(evidence(list(perplexity(8, 251)), list(perplexity(8, 9)), list(perplexity(short, 5)), arms=arms))
    assert found is not None
    assert any("knowledge of the text" in reason for reason in found.reasons) == is_told
    assert found.gets_worse[0].startswith("On short text of 4k tokens no loss shows")
