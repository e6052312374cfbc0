"""Reasoning tasks have a verdict of their own, in which who guesses has nothing. All numbers here are made up."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_up_results import arm_of, record, share
from transformers import LlamaConfig

from skipwise.cli.verdict import Rule, state_verdict
from skipwise.errors import DataError
from skipwise.records.results import EvalResult
from skipwise.report.contest import Contest
from skipwise.report.decision import decide, rule_of
from skipwise.report.effective import effective_length, mean_scores
from skipwise.report.evidence import Evidence
from skipwise.report.model_card import state_effective_length
from skipwise.report.report import Report
from skipwise.report.samples import least_samples

WINDOWS: dict[str, Any] = {"advertised_tokens": 8192, "original_tokens": 1024}
SHORT, TARGET = 1024, 8192
Line = dict[str, Any]


def answers(at_short: int, at_target: int, of: int = 50, chance: float = 0.25, task: str = "chains") -> Iterator[Line]:
    for length, right in ((SHORT, at_short), (TARGET, at_target)):
        yield share(f"reasoning_{task}", "score", length, right / of, of, chance=chance)


def of_group(*lines: Line, rule: Any = "ruler") -> Any:
    return effective_length(arm_of("a", lines).results, rule=rule, group="reasoning", **WINDOWS)


def test_a_mean_is_0_at_chance_and_1_where_all_is_right() -> None:
    guessed, all_right, between = (
        mean_scores(arm_of("a", answers(right, right, of=100)).results, "reasoning")[0] for right in (25, 100, 40)
    )
    assert (guessed.value, all_right.value, between.value) == pytest.approx((0, 1, 0.2))
    # Wilson's interval of 40 of 100 is 0.3094 to 0.4980.
    assert (between.ci_low, between.ci_high) == pytest.approx(
        ((0.3094 - 0.25) / 0.75, (0.4980 - 0.25) / 0.75), abs=1e-4
    )
    two = [*answers(40, 40, of=100), *answers(15, 15, of=100, chance=0.01, task="walks")]
    mean = mean_scores(arm_of("a", two).results, "reasoning")[0]
    assert mean.value == pytest.approx((0.2 + 0.14 / 0.99) / 2)
    assert mean.chances == (0.25, 0.01)


def test_a_group_has_its_own_verdict() -> None:
    passkeys = [share("passkey", "accuracy", length, 1.0) for length in (SHORT, TARGET)]
    results = arm_of("a", [*passkeys, *answers(50, 20)]).results
    assert effective_length(results, **WINDOWS).holds
    found = effective_length(results, group="reasoning", **WINDOWS)
    assert (found.outcome, found.effective_tokens) == ("falls short", SHORT)
    assert found.line.startswith("effective context length in reasoning 1k under RULER's rule")
    assert (found.to_json()["group"], found.to_json()["tasks"]) == ("reasoning", ["reasoning_chains"])
    assert "0 is chance and 1 all right" in found.to_json()["basis"]
    with pytest.raises(DataError, match="no record has a reasoning score"):
        mean_scores(arm_of("a", passkeys).results, "reasoning")
    with pytest.raises(DataError, match="no record has a retrieval score"):
        mean_scores(arm_of("a", answers(50, 20)).results)


def test_a_model_that_guesses_everywhere_does_not_keep_its_share_of_chance() -> None:
    for at_target in (12, 14, 40):
        found = of_group(*answers(14, at_target), rule="relative")
        assert (found.decided, found.threshold, found.holds, found.guesses) == (False, None, False, True)
        assert "at 1k it is not shown to answer more than a guesser" in found.line
    # 25 of 50 is more than one in four, and 45 of 50 more than that.
    assert of_group(*answers(25, 45), rule="relative").holds
    # Raw, 30 of 50 would be more than 85% of 34; above chance it is 35% of 43%.
    assert of_group(*answers(340, 300, of=500), rule="relative").effective_tokens == SHORT


@pytest.mark.parametrize("chance", [0.0, 0.25, 0.5])
def test_a_perfect_score_of_so_many_samples_is_enough(chance: float) -> None:
    least = least_samples(1, (chance,))

    def low(number: int) -> float:
        return (1 / (1 + 1.959963984540054**2 / number) - chance) / (1 - chance)

    assert low(least) >= 0.856
    assert of_group(*answers(least, least, of=least, chance=chance)).holds
    few = least - 1
    found = of_group(*answers(few, few, of=few, chance=chance))
    assert found.outcome == "not decided" or low(few) >= 0.856
    if found.too_few:
        assert f"measure {least} or more" in found.line


def evidence(**arms: list[Line]) -> Evidence:
    names = {"base": "base", "alone": "interpolation only", "extended": "extended"}
    return Evidence(
        arms=[arm_of(names[name], lines) for name, lines in arms.items()], original_tokens=SHORT, target_tokens=TARGET
    )


@pytest.mark.parametrize(
    ("base", "alone", "extended", "rule"),
    [
        ((50, 12), (48, 20), (50, 49), "holds"),
        ((14, 12), (14, 12), (14, 13), "too_hard"),
        # Above chance, 40 of 50 are 73% of what the base answers.
        ((50, 12), (50, 20), (50, 40), "falls_short"),
        ((50, 12), (48, 40), (48, 20), "worse"),
    ],
)
def test_reasoning_alone_can_decide(base: Any, alone: Any, extended: Any, rule: str) -> None:
    found = evidence(base=[*answers(*base)], alone=[*answers(*alone)], extended=[*answers(*extended)])
    contest = Contest.of(found)
    assert contest is not None
    assert contest.task == "reasoning"
    assert rule_of(contest).rule == rule
    decision = decide(found)
    assert decision is not None
    assert "reasoning questions" in decision.headline


def test_what_falls_in_reasoning_is_told_where_other_questions_decide() -> None:
    short = share("passkey", "accuracy", SHORT, 1.0)
    never, always = ([short, share("passkey", "accuracy", TARGET, found)] for found in (0.0, 1.0))
    found = evidence(
        base=[*never, *answers(49, 12)], alone=[*never, *answers(48, 12)], extended=[*always, *answers(20, 12)]
    )
    decision = decide(found)
    assert decision is not None
    assert "reasoning chains at 1k from 49 of 50 (base) to 20 of 50" in " ".join(decision.gets_worse)


def test_perplexity_alone_decides_nothing() -> None:
    lines = [record("perplexity", "perplexity", length, 8.0, 7.9, 8.1, 16) for length in (SHORT, TARGET)]
    decision = decide(evidence(base=lines, alone=lines, extended=lines))
    assert decision is not None
    assert decision.outcome == "not yet"


def test_a_page_has_a_table_of_each_group(tmp_path: Path) -> None:
    passkeys = [share("passkey", "accuracy", length, 1.0) for length in (SHORT, TARGET)]
    walks = [*answers(40, 20, chance=0.01, task="walks")]
    report = Report.of(evidence(extended=[*passkeys, *answers(50, 20), *walks]))
    titles = [section.title for section in report.sections]
    assert titles.index("Reasoning by task and length") == titles.index("Retrieval by task and length") + 1
    (retrieval,) = [section for section in report.sections if section.title.startswith("Retrieval")]
    (reasoning,) = [section for section in report.sections if section.title.startswith("Reasoning")]
    assert "chains" not in str([table.rows for table in retrieval.tables])
    rows = {row[0]: row for row in reasoning.tables[1].rows}
    assert list(rows) == ["reasoning chains (chance 25%)", "reasoning walks (chance 1%)", "mean"]
    assert report.to_json()["effective_in_reasoning"]["extended"]["ruler"]["effective_tokens"] == 0
    assert any("Effective context length in reasoning" in words for words in report.verdict)


def test_the_verb_prints_both_groups_and_fails_where_one_falls_short(tmp_path: Path, capsys: Any) -> None:
    passkeys = [share("passkey", "accuracy", length, 1.0) for length in (SHORT, TARGET)]
    config = LlamaConfig(max_position_embeddings=TARGET)
    for lines, holds in ((answers(50, 20), False), (answers(50, 50), True)):
        results = arm_of("a", [*passkeys, *lines]).results
        assert state_verdict(results, config, Rule.BOTH, card_folder=None, as_json=False) is holds
        printed = capsys.readouterr().out
        assert printed.count("verdict over 1 task") == 2
        assert "effective context length 8k under RULER's rule" in printed
        assert ("holds: effective context length in reasoning 8k" in printed) is holds
    guessing: list[EvalResult] = list(arm_of("a", answers(13, 13)).results)
    assert not state_verdict(guessing, config, Rule.RELATIVE, card_folder=None, as_json=False)


def test_a_card_states_both_groups(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("- Effective context length: not measured\n")
    passkeys = [share("passkey", "accuracy", length, 1.0) for length in (SHORT, TARGET)]
    results = arm_of("a", [*passkeys, *answers(50, 20)]).results
    found = [
        effective_length(results, rule=rule, group=group, **WINDOWS)
        for group in ("retrieval", "reasoning")
        for rule in ("ruler", "relative")
    ]
    state_effective_length(tmp_path, found)
    (line,) = (tmp_path / "README.md").read_text().splitlines()
    assert line.startswith("- Effective context length: 8k under RULER's rule")
    assert "in reasoning 1k under RULER's rule" in line
    assert line.count("mean score") >= 2
