"""The verdict of `skipwise eval --verdict`: the effective context length, printed and put into the model card."""

from collections.abc import Sequence
from enum import StrEnum
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skipwise.errors import ConfigError

if TYPE_CHECKING:
    from skipwise.evals import EvalResult, Task
    from skipwise.report.effective import EffectiveLength


class Rule(StrEnum):
    """The threshold of a verdict."""

    RULER = "ruler"
    RELATIVE = "relative"
    BOTH = "both"


def scored_tasks() -> tuple[str, ...]:
    """Tasks with a score of answers, whose mean a verdict is based on; each is needed at every length."""
    from skipwise.evals import TASK_GROUPS

    return ("passkey", "needles", "suite", *TASK_GROUPS["ruler"], *TASK_GROUPS["reasoning"])


def require_retrieval(tasks: Sequence["Task"]) -> None:
    """Raises ConfigError if none of the tasks has a score of answers."""
    if not any(task.name in scored_tasks() for task in tasks):
        raise ConfigError(
            f"--verdict needs retrieval scores, and {', '.join(task.name for task in tasks)} has none; add passkey, "
            "needles, ruler, reasoning or suite to --task, or leave out --verdict"
        )


def require_short_length(rule: Rule, config: Any, lengths: Sequence[int]) -> None:
    """Raises ConfigError for the relative rule alone without a short length; both rules report it as undecided."""
    from skipwise.model import rope_state
    from skipwise.report.effective import short_limit

    state = rope_state(config)
    limit = short_limit(state.original, state.maximum)
    if rule is Rule.RELATIVE and min(lengths) > limit:
        raise ConfigError(
            f"--rule relative compares with the model's own short score, and the shortest length is {min(lengths)} "
            f"tokens; measure a length of at most {limit} too (its original window, or half of one that was never "
            "extended)",
            page="length-does-not-fit",
        )


def state_verdict(
    results: Sequence["EvalResult"], config: Any, rule: Rule, *, card_folder: Path | None, as_json: bool
) -> bool:
    """Prints the mean scores and the effective length of each group of tasks under each rule asked for.

    False if a length falls short, or was measured with too few samples for any score to pass, or if the model answers
    no more than a guesser.

    The card of the model in `card_folder`, if one is given, gets the verdicts of both rules.
    """
    from skipwise.distributed import process_state
    from skipwise.model import rope_state
    from skipwise.records.runs import RECORD_FILE
    from skipwise.report.effective import GROUPS, effective_length, group_of, is_score
    from skipwise.report.model_card import state_effective_length

    window = rope_state(config)
    windows = {"advertised_tokens": window.maximum, "original_tokens": window.original}
    measured = {group_of(result.task) for result in results if is_score(result)}
    found = [
        effective_length(results, rule=name, group=group, **windows)
        for group in GROUPS
        if group in measured or not measured
        for name in ("ruler", "relative")
    ]
    asked = [one for one in found if rule in (Rule.BOTH, one.rule)]
    if process_state().is_main_process:
        _print(asked, as_json)
        if card_folder is not None and (card_folder / RECORD_FILE).exists():
            state_effective_length(card_folder, found)
    return all(one.outcome != "falls short" and one.too_few is None and not one.guesses for one in asked)


def _print(asked: Sequence["EffectiveLength"], as_json: bool) -> None:
    from skipwise.cli.evaluate_tables import print_mean_scores
    from skipwise.cli.options import print_json
    from skipwise.report.effective import basis

    if as_json:
        for one in asked:
            print_json(one.to_json())
        return
    for _, of_group in groupby(asked, key=lambda one: one.group):
        rules = list(of_group)
        scores = rules[0].scores
        print()
        print_mean_scores(scores)
        print(f"verdict {basis(scores)}")
        for one in rules:
            print(f"{one.outcome}: {one.line}")
