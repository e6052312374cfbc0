"""What to decide: each rule on built evidence, its words, the top of the page, the next command."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from decided import PILOT, SHORT, TARGET, answered, evidence, full_pilot, perplexity, questions
from made_up_results import arm_of, share

from skipwise.records.comparison import ArmRun, ComparedArm, Comparison, Difference
from skipwise.report.contest import Contest, minus, samples_to_tell
from skipwise.report.decision import decide, rule_of
from skipwise.report.evidence import Arm, Evidence
from skipwise.report.report import Report
from skipwise.window import Window


def failed(error: str) -> dict[str, ComparedArm]:
    runs = [ArmRun(status="failed", seed=0, failure="error", error=error)]
    return {"recipe": ComparedArm(trained=True, interpolation={"kind": "yarn"}, runs=runs)}


EIGHT = {"windows_per_step": 8, "full_windows_per_step": 64}
WORSE_TEXT = [*questions(50, 45, 50), *perplexity(8.0, 9.9)]
RULES = [
    # Preflight failed, so there is no trained model.
    (answered((50, 0), (48, 20), None, arms=failed("preflight failed (1 of 9): reach")), "no", "refused"),
    (answered((50, 0), (48, 20), None, arms=failed("CUDA out of memory")), "not yet", "untrained"),
    (evidence(list(perplexity(8, 99)), [], list(perplexity(8, 7))), "not yet", "unasked"),
    (answered((50, None), (50, None), (50, None)), "not yet", "unasked"),
    # The base answers next to nothing at any length.
    (answered((4, 0), (2, 0), (3, 0)), "not yet", "too_hard"),
    (answered((50, 0), (48, 40), (48, 15)), "no", "worse"),
    (answered((50, 0), (48, 35), (48, 10), pilot=PILOT), "not yet", "worse_so_far"),
    (answered((50, 0), (48, 35), (48, 10), pilot=replace(PILOT, steps=100)), "no", "worse"),
    # 100 steps of 8 windows are 1.25% of 1000 steps of 64.
    (answered((50, 0), (48, 35), (48, 10), pilot=replace(PILOT, steps=100, made=EIGHT)), "not yet", "worse_so_far"),
    (answered((50, 48), (50, 49), (50, 49)), "no", "base_holds"),
    (answered((50, 0), (50, 49), (50, 49)), "no", "interpolation_holds"),
    # All answer next to nothing: that is no reason to be content with interpolation.
    (answered((50, 0), (50, 1), (50, 1)), "not yet", "no_gain"),
    (answered((50, 0), None, (50, 49)), "not yet", "uncontrolled"),
    # 14 against 10 of 20 may be chance.
    (answered((20, 0), (20, 10), (20, 14), of=20), "not yet", "few"),
    # All right, and 20 of 20 beside 20 of 20 may still be 16 points apart.
    (answered((20, 0), (20, 20), (20, 20), of=20), "not yet", "few"),
    (answered((50, 0), (50, 10), (50, 9)), "not yet", "no_gain"),
    (evidence([*questions(50, 0, 50)], [*questions(48, 20, 50), *perplexity(8.0, 8.1)], WORSE_TEXT), "not yet",
     "predicts_worse"),
    # Better beside interpolation alone, and yet worse the longer the text is.
    (evidence([*questions(50, 0, 50)], [*questions(48, 20, 50), *perplexity(8.0, 12.0)], WORSE_TEXT), "not yet",
     "predicts_worse"),
    # Interpolation alone does as well as the base does short ones, and yet there is more to gain.
    (answered((40, 0), (40, 42), (40, 49)), "go", "holds"),
    # Both find nearly all, and interpolation alone reads text as badly as the demo's does.
    (evidence([*questions(50, 0, 50), *perplexity(8.7, 168.0)], [*questions(48, 49, 50), *perplexity(11.0, 13.5)],
              [*questions(50, 50, 50), *perplexity(9.2, 7.7)]), "go", "reads_better"),
    (evidence([*questions(50, 0, 50), *perplexity(8.7, 168.0)], [*questions(48, 49, 50), *perplexity(11.0, 13.5)],
              [*questions(50, 50, 50), *perplexity(9.2, 11.7)]), "not yet", "predicts_worse"),
    # Interpolation alone reads as well as the base does short text: a little less perplexity is not worth a training.
    (evidence([*questions(50, 0, 50), *perplexity(8.7, 168.0)], [*questions(50, 49, 50), *perplexity(8.8, 8.6)],
              [*questions(50, 50, 50), *perplexity(8.5, 7.7)]), "no", "interpolation_holds"),
    # 30% less perplexity is something to gain, however many keys interpolation alone finds.
    (evidence([*questions(50, 0, 50), *perplexity(8.7, 168.0)], [*questions(50, 49, 50), *perplexity(8.8, 8.6)],
              [*questions(50, 47, 50), *perplexity(8.5, 6.0)]), "not yet", "no_gain"),
    (answered((50, 0), (48, 20), (50, 49)), "go", "holds"),
    (answered((50, 0), (48, 5), (50, 30), pilot=PILOT), "go", "rising"),
    (answered((50, 0), (48, 5), (50, 30), pilot=replace(PILOT, steps=1000)), "not yet", "falls_short"),
    (answered((50, 0), (48, 5), (50, 30), pilot=replace(PILOT, steps=1000, made=EIGHT)), "go", "rising"),
    # Better for certain, and far from half of the base's 50 of 50.
    (answered((50, 0), (48, 0), (50, 9), pilot=PILOT), "not yet", "falls_short"),
    (answered((20, 0), (20, 5), (20, 19), of=20), "not yet", "undecided"),
    (answered((None, 0), (None, 5), (None, 49)), "not yet", "undecided"),
    (answered((50, 0), (48, 5), (50, 30)), "not yet", "falls_short"),
]  # fmt: skip


@pytest.mark.parametrize(("found", "outcome", "rule"), RULES, ids=[rule for _, _, rule in RULES])
def test_each_rule_decides_where_it_applies_and_says_why(found: Evidence, outcome: str, rule: str) -> None:
    contest = Contest.of(found)
    assert contest is not None
    assert rule_of(contest) == (outcome, rule)
    decision = decide(found)
    assert decision is not None
    assert decision.outcome == outcome
    assert decision.headline.endswith(".")
    assert decision.next_command
    told = [decision.headline, *decision.reasons, *decision.gets_worse]
    assert all(re.fullmatch(r"[A-Z0-9].*[.]", sentence) for sentence in told), told
    assert not re.search(r"None|nan|[{}]|  ", " ".join(told))


def test_every_rule_is_tested() -> None:
    import skipwise.report.decision as module

    documented = re.findall(r"^    (?:go|not yet|no) +(\w+)  ", module.__doc__ or "", re.MULTILINE)
    assert {*documented} == {rule for _, _, rule in RULES}


WITHOUT_CONTROL = Comparison(
    model="small",
    window=Window(train=2048, original=SHORT, target=TARGET),
    arms={"base": ComparedArm(like="base", trained=False), "recipe": ComparedArm(like="recipe")},
    settings={"output": "runs/c"},
)


def test_the_first_sentence_is_one_that_a_manager_understands() -> None:
    decision = decide(full_pilot())
    assert decision is not None
    assert decision.outcome == "go"
    assert decision.headline == (
        "At 32k the extended model answers 18 of 20 questions about your documents, the base 0; short requests "
        "stay with the unchanged base; the full run would take about 9 hours on one A100 80 GB, about $20."
    )
    assert decision.next_command == PILOT.next_command
    assert decision.reasons[0].startswith("It improves with only 40 of the full run's 1,000 steps, 4.0% of its text.")
    # By hand: exp(ln 7.9/9.4) is 0.840; 1.06 is 6.0% more, with the half width 0.012.
    assert "perplexity at 32k is 16% lower" in decision.reasons[2]
    assert decision.gets_worse[0].startswith(
        "On short text of 2k tokens the extended model itself is worse: perplexity +6.0% (+4.7 to +7.3%)."
    )
    # 0.0002 * 32768 + 1e-8 * 32768^2 seconds, 2048 * 32768 bytes
    assert decision.gets_worse[1] == (
        "A request of 32k tokens takes 17 s to read and 64 MiB of cache here; one of 2k tokens takes 0.5 s and 4.0 MiB."
    )
    assert len(decision.gets_worse) == 2
    assert not any("Not measured" in reason for reason in decision.reasons)
    assert json.loads(json.dumps(decision.to_json()))["outcome"] == "go"


def test_perplexity_of_first_tokens_tells_arms_apart_but_not_lengths() -> None:
    def measured(task: str) -> Evidence:
        given = ((0, 8.7, 168.0), (20, 9.0, 21.0), (50, 8.0, 16.0))
        return evidence(*([*questions(50, right, 50), *perplexity(short, long, task)] for right, short, long in given))

    rules = {
        task: rule_of(contest)[1] for task in ("perplexity", "truncated") if (contest := Contest.of(measured(task)))
    }
    # The perplexity of the first 32k tokens is twice that of the first 4k: this may be the text.
    assert rules == {"perplexity": "predicts_worse", "truncated": "holds"}
    decision = decide(measured("truncated"))
    assert decision is not None
    # 16 / 21 is 0.762.
    assert "perplexity at 32k is 24% lower" in " ".join(decision.reasons)
    assert "perplexity by length" not in " ".join(decision.reasons)
    assert "the extended model itself has perplexity 8.00" in " ".join(decision.gets_worse)


def test_what_was_not_measured_is_left_out_and_named() -> None:
    found = decide(answered((25, 0), (25, 5), (25, 25), of=25, task="passkey"))
    assert found is not None
    assert found.headline == (
        "At 32k the extended model finds 25 of 25 hidden keys, the base 0; short requests stay with the unchanged base."
    )
    assert found.reasons[-1] == (
        "Not measured: questions about your own documents (hidden keys and lines are easier); perplexity by length; "
        "what short text loses, token by token; seconds and memory of requests."
    )
    assert found.gets_worse == []
    told = decide(
        answered(
            (25, 0), (25, 5), (25, 25), of=25, task="passkey", pilot=replace(PILOT, left_out=["No time for needles."])
        )
    )
    assert told is not None
    assert told.reasons[-1] == "No time for needles."


def test_questions_that_the_base_cannot_answer_make_way_for_easier_ones() -> None:
    keys = [list(questions(*pair, 50, "passkey")) for pair in ((50, 0), (48, 20), (50, 49))]
    hard = [list(questions(*pair, 50)) for pair in ((4, 0), (2, 0), (3, 0))]
    found = decide(evidence(*([*one, *other] for one, other in zip(keys, hard, strict=True))))
    assert found is not None
    assert (found.outcome, "finds 49 of 50 hidden keys" in found.headline) == ("go", True)
    assert any("the base answers 4 of 50 of them even within its own window" in reason for reason in found.reasons)


def test_what_a_pilot_left_out_has_a_section_where_it_is_much() -> None:
    report = Report.of(replace(full_pilot(), pilot=replace(PILOT, left_out=[f"No time for {n}." for n in range(4)])))
    assert report.decision is not None
    words = "4 things did not fit into the time, or cannot be told from it; they are listed below."
    assert words in report.decision.reasons
    assert not any("No time for 1." in reason for reason in report.decision.reasons)
    (section,) = [one for one in report.sections if one.title == "What the pilot left out"]
    assert section.tables[0].rows[1] == ("No time for 1.",)


def test_pairs_decide_where_the_evidence_has_them() -> None:
    """Two more of twenty are beyond chance only where nothing else changed; here the pairs say they are not."""
    found = answered((20, 0), (20, 5), (20, 19), of=20, task="passkey")
    contest = Contest.of(found)
    assert contest is not None
    unpaired = contest.gain(contest.interpolated, TARGET)
    assert unpaired is not None
    assert unpaired.value == pytest.approx(0.7)
    assert found.comparison is not None
    pair = Difference(
        arm="interpolation-only", reference="recipe", task="passkey", metric="accuracy", length_tokens=TARGET,
        value=-0.7, ci_low=-0.9, ci_high=-0.4,
    )  # fmt: skip
    for one, ends in ((pair, (0.4, 0.9)), (replace(pair, length_tokens=SHORT), unpaired[1:])):
        paired = Contest.of(replace(found, comparison=replace(found.comparison, differences=[one])))
        assert paired is not None
        gain = paired.gain(paired.interpolated, TARGET)
        assert gain is not None
        assert gain[1:] == pytest.approx(ends)


def test_a_rise_with_length_holds_a_go_back_where_pairs_show_it() -> None:
    """5% more perplexity is within the intervals of 16 documents, and beyond those of their pairs."""
    extended = [*questions(50, 49, 50), *perplexity(8.0, 8.4)]
    found = evidence(list(questions(50, 0, 50)), [*questions(48, 20, 50), *perplexity(9.0, 12.0)], extended)
    rise = Difference(
        arm="recipe", reference="recipe", task="perplexity", metric="perplexity", length_tokens=TARGET, value=0.049,
        ci_low=0.03, ci_high=0.07,
    )  # fmt: skip
    assert found.comparison is not None
    small = replace(rise, value=0.005, ci_low=0.003, ci_high=0.007)
    for rises, outcome in (([], "go"), ([rise], "not yet"), ([replace(rise, arm="pose")], "go"), ([small], "go")):
        decision = decide(replace(found, comparison=replace(found.comparison, rises=rises)))
        assert decision is not None
        assert decision.outcome == outcome


def test_the_difference_of_two_shares_has_newcombes_limits() -> None:
    """Table II of Newcombe (1998): 56 of 70 less 48 of 80, method 10: 0.0524 to 0.3339; 9 of 10 less 3 of 10."""
    from skipwise.records.stats import wilson

    for first, second, low, high in (((56, 70), (48, 80), 0.0524, 0.3339), ((9, 10), (3, 10), 0.1705, 0.8090)):
        found = minus(wilson(*first), wilson(*second))
        assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


def test_how_many_questions_would_tell_is_the_least_number_that_does() -> None:
    def lower(number: int) -> float:
        """By the roots of Wilson's equation at 0.7 and 0.5."""
        z = 1.959963984540054

        def ends(p: float) -> tuple[float, float]:
            centre, root = p + z * z / (2 * number), z * math.sqrt(p * (1 - p) / number + z * z / (4 * number**2))
            return (centre - root) / (1 + z * z / number), (centre + root) / (1 + z * z / number)

        return 0.2 - math.hypot(0.7 - ends(0.7)[0], ends(0.5)[1] - 0.5)

    expected = next(number for number in range(2, 500) if lower(number) > 0)
    assert samples_to_tell(0.7, 0.5) == expected
    assert samples_to_tell(0.5, 0.5) is None
    few = decide(answered((20, 0), (20, 10), (20, 14), of=20, pilot=PILOT))
    assert few is not None
    assert (
        few.reasons[0]
        == f"20 questions are too few to tell: about {expected} would be needed if the shares stay the same."
    )


@pytest.mark.parametrize(
    ("found", "command"),
    [
        (answered((50, 0), (48, 20), (50, 49)), "skipwise extend small --target 32k --data docs"),
        (answered((50, 0), (50, 49), (50, 49)), "skipwise plan small --target 32k"),
        (answered((50, 0), (48, 40), (48, 15)), "skipwise doctor small --target 32k --data docs"),
        (
            answered((50, 0), (50, 10), (50, 9)),
            "skipwise compare runs/c/comparison.yaml --set training.max_steps=400 --output runs/c-longer",
        ),
        (
            replace(answered((50, 0), None, (50, 49)), comparison=WITHOUT_CONTROL),
            "skipwise compare runs/c/comparison.yaml --arms base,recipe,interpolation-only --resume",
        ),
        (
            answered((50, 0), (50, 10), (50, 9), pilot=PILOT),
            "skipwise pilot small --data docs --target 32k --time 4h",
        ),
        (
            answered((50, 0), (50, 10), (50, 9), pilot=replace(PILOT, seconds_given=600, made={})),
            "skipwise pilot small --data docs --target 32k --time 40m",
        ),
        (
            answered(
                (50, 0),
                (50, 10),
                (50, 9),
                pilot=replace(PILOT, made={"command": "skipwise pilot small --time 1h --output p"}),
            ),
            "skipwise pilot small --time 4h --output p-longer",
        ),
    ],
)
def test_the_next_command_follows_from_the_decision(found: Evidence, command: str) -> None:
    decision = decide(found)
    assert decision is not None
    assert decision.next_command == command


def test_a_kind_of_question_that_falls_is_told() -> None:
    kinds = {"facts": (25, 25), "choices": (24, 5)}
    base = [share("suite", "score", SHORT, before / 25, 25, kind=kind) for kind, (before, _) in kinds.items()]
    after = [share("suite", "score", SHORT, now / 25, 25, kind=kind) for kind, (_, now) in kinds.items()]
    found = decide(
        evidence([*base, *questions(None, 0, 50)], [*questions(50, 5, 50)], [*after, *questions(None, 49, 50)])
    )
    assert found is not None
    assert "These questions fall: choices at 4k from 24 of 25 (base) to 5 of 25." in found.gets_worse


def test_where_nobody_was_extended_there_is_nothing_to_decide() -> None:
    alone = Evidence(arms=[arm_of("mine", list(questions(50, 49, 50)))], original_tokens=SHORT)
    assert decide(alone) is None
    report = Report.of(alone)
    assert (report.decision, list(report.decisive)) == (None, [])
    assert report.to_json()["decision"] is None


def demo(right: int, of: int) -> Evidence:
    """As the demo measures: no comparison, arms told by their names."""
    found = {"base": (of, 0), "interpolation only": (of, of // 2), "extended": (right, right)}
    arms: list[Arm] = [arm_of(name, list(questions(*pair, of, "passkey"))) for name, pair in found.items()]
    return Evidence(arms=arms, original_tokens=SHORT)


def test_a_page_does_not_contradict_itself(tmp_path: Path) -> None:
    """All passkeys found: enough of them are an effective length; too few are that and nothing else."""
    enough, few = (Report.of(demo(of, of), next_command="skipwise pilot") for of in (25, 20))
    assert enough.decision is not None
    assert few.decision is not None
    assert (enough.decision.outcome, enough.decision.next_command) == ("go", "skipwise pilot")
    assert few.decision.outcome == "not yet"
    assert any("32k for extended" in word for word in enough.verdict)
    told = [word for word in few.verdict if "relied upon" in word]
    assert told == [
        "How far a window may be relied upon is not stated: 20 samples of a task at a length are too few, since even a "
        "perfect score would not show it; 23 are enough."
    ]
    few.write_page(tmp_path / "few.html")
    page = (tmp_path / "few.html").read_text()
    assert "too few samples" in page
    assert not re.search(r"(?i)effective context length|>none<|passkeys found at 32k", page)


def test_the_page_begins_with_the_decision(tmp_path: Path) -> None:
    report = Report.of(full_pilot())
    report.write_page(tmp_path / "r.html")
    page = re.sub(r"<span>|</span>", "", (tmp_path / "r.html").read_text())
    places = [
        page.index(words)
        for words in (
            "<h1>",
            "</span> Go" if "</span> Go" in page else " Go</p>",
            "At 32k the extended model answers 18 of 20",
            "What gets worse",
            '<pre tabindex="0"><code>skipwise extend small --target 32k --data docs</code></pre>',
            "The numbers behind it",
            "In detail",
            "Perplexity by length",
        )
    ]
    assert places == sorted(places)
    questions_table, requests, runs = report.decisive
    assert questions_table.header == ("Tokens", "extended", "interpolation only", "base")
    assert questions_table.rows == (
        ("4k", "19 of 20", "18 of 20", "20 of 20"),
        ("32k", "18 of 20", "3 of 20", "0 of 20"),
    )
    assert requests.rows[-1] == ("32k", "17 s", "0.04 s", "64 MiB")
    assert runs.rows == (
        ("one A100 80 GB", "9 hours", "$20", "40 GiB"),
        ("one H100", "4 hours", "$25", "40 GiB"),
        ("one L4", "too small", "\N{EN DASH}", "40 GiB"),
    )
    assert report.lines[0] == f"GO: {report.decision.headline}" if report.decision else False
    markdown = report.markdown()
    assert "**Go.** At 32k" in markdown
    assert "```\nskipwise extend small --target 32k --data docs\n```" in markdown
