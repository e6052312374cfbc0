"""The next command that follows from a decision, from the settings that the evidence has."""

import math
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from skipwise.report.contest import Contest
from skipwise.report.evidence import Measure
from skipwise.window import length_label

_LONGER = 4
"""How many times the steps, where the steps were too few."""

_SLOWER = 1.1
"""How many times as long the same machine may take next time."""


def next_command(contest: Contest, outcome: str, rule: str) -> str | None:
    """What to run next; None where the evidence does not tell the model's name.

    Args:
        contest: what was measured.
        outcome: go, not yet or no.
        rule: the one that decided.
    """
    pilot, comparison = contest.evidence.pilot, contest.evidence.comparison
    model = pilot.model if pilot else comparison.model if comparison else None
    if model is None:
        return None
    target = length_label(contest.target)
    if outcome == "no":
        return _instead(model, target, rule, _source(contest))
    if outcome == "go":
        return (pilot.next_command if pilot else "") or _extend(contest, model, target)
    if rule == "too_hard":
        # The base's own score stays as it is, however long the pilot.
        short = length_label(contest.short or contest.evidence.original_tokens)
        return shlex.join(["skipwise", "eval", model, "--task", "passkey", "--length", short])
    if rule == "untrained" and not pilot:
        return shlex.join(["skipwise", "doctor", model, "--target", target])
    return _longer_pilot(contest, rule) if pilot else _more(contest, rule)


def seconds_to_tell(contest: Contest, needed: int | None) -> float | None:
    """About how long the questions that are still missing take on all arms, from measured requests."""
    count = contest.count(contest.extended, contest.longest)
    if needed is None or count is None or contest.extended is None or contest.longest is None:
        return None
    seconds = contest.extended.by_length(Measure("serving", "prefill_seconds"))
    nearest = min(seconds, key=lambda length: abs(length - (contest.longest or 0)), default=None)
    if nearest is None or not 0.5 <= nearest / contest.longest <= 2:
        return None
    arms = sum(arm is not None for arm in (contest.base, contest.interpolated, contest.extended))
    return max(0, needed - count.of) * arms * seconds[nearest].value


def _instead(model: str, target: str, rule: str, source: str | None) -> str:
    """What to do where nothing is to be trained."""
    if rule in ("refused", "worse"):
        documents = ["--data", source] if source and rule == "worse" else []
        return shlex.join(["skipwise", "doctor", model, "--target", target, *documents])
    # Tells the settings with which engines serve the model at the target without training.
    return shlex.join(["skipwise", "plan", model, "--target", target])


def _extend(contest: Contest, model: str, target: str) -> str:
    """The full run with the settings of the arm that was decided for."""
    comparison, source = contest.evidence.comparison, _source(contest)
    arm = comparison.arms.get(contest.extended.name) if comparison and contest.extended else None
    recipe = arm.settings.get("recipe", comparison.settings.get("recipe") if comparison else None) if arm else None
    sampler = (arm.sampler or {}).get("kind") if arm and recipe is None else None
    command = ["skipwise", "extend", model, "--target", target, *(["--data", source] if source else [])]
    if recipe:
        command += ["--recipe", str(recipe)]
    elif sampler:
        command += ["--recipe", "paper", "--set", f"sampler.kind={sampler}"]
    return shlex.join(command)


def _longer_pilot(contest: Contest, rule: str) -> str | None:
    """The same pilot with more time."""
    pilot = contest.evidence.pilot
    if pilot is None:
        return None
    count = contest.count(contest.extended, contest.longest)
    more = seconds_to_tell(contest, 2 * count.of) if rule in ("few", "undecided") and count else None
    longer = pilot.seconds_given + more if more else _LONGER * pilot.seconds_given
    time = _time(_SLOWER * pilot.seconds_to_decide if pilot.seconds_to_decide else longer)
    # `--time=1h` as two words.
    given = re.sub(r" (--time|--output)=", r" \1 ", str(pilot.made.get("command", "")))
    words = shlex.split(given)
    if "pilot" in words[:2] and "--time" in words[:-1]:
        words[words.index("--time") + 1] = time
    elif "pilot" in words[:2]:
        words += ["--time", time]
    else:
        source = _source(contest)
        documents = ["--data", source] if source else []
        target = length_label(pilot.target_tokens)
        words = ["skipwise", "pilot", pilot.model, *documents, "--target", target, "--time", time]
    # The folder of this pilot is taken; the default one has the time in its name.
    if "--output" in words[:-1]:
        words[words.index("--output") + 1] += "-longer"
    return shlex.join(words)


def _more(contest: Contest, rule: str) -> str | None:
    """The same comparison with more questions, or with more steps."""
    comparison = contest.evidence.comparison
    output = comparison.settings.get("output") if comparison else None
    if comparison is None or not isinstance(output, str):
        return None
    command = ["skipwise", "compare", str(Path(output) / "comparison.yaml")]
    if rule in ("few", "undecided", "unasked"):
        if contest.task == "suite":
            return _larger_suite(contest)
        tasks = "[{kind: perplexity, num_documents: 16}, {kind: passkey, trials: 100, num_depths: 5}]"
        return shlex.join([*command, "--set", f"evaluation.tasks={tasks}", "--output", f"{output}-more"])
    if rule == "uncontrolled":
        named = [name for name, arm in comparison.arms.items() if arm.like == name]
        missing = [name for name in ("base", "interpolation-only") if name not in named]
        if len(named) < len(comparison.arms):
            return None  # Arms with settings of their own are in the file.
        return shlex.join([*command, "--arms", ",".join([*named, *missing]), "--resume"])
    if comparison.steps is None:
        return None
    steps = f"training.max_steps={_LONGER * comparison.steps}"
    return shlex.join([*command, "--set", steps, "--output", f"{output}-longer"])


def _larger_suite(contest: Contest) -> str | None:
    """More questions about the same documents, within the original window, too."""
    comparison, source = contest.evidence.comparison, _source(contest)
    if comparison is None or source is None:
        return None
    lengths = ",".join(map(length_label, (contest.evidence.original_tokens, contest.target)))
    command = ["skipwise", "eval", "build-suite", source, "--held-out", "--out", "suite-larger", "--items", "100"]
    return shlex.join([*command, "--tokenizer", comparison.model, "--length", lengths])


def _source(contest: Contest) -> str | None:
    """Where the documents come from; None for several sources."""
    comparison = contest.evidence.comparison
    data: Any = comparison.settings.get("data") if comparison else None
    source = data.get("source") if isinstance(data, Mapping) else None
    return source if isinstance(source, str) else None


def _time(seconds: float) -> str:
    """A time to give, rounded up: `40m`, `3h`."""
    minutes = math.ceil(seconds / 60)
    return f"{math.ceil(minutes / 10) * 10}m" if minutes <= 90 else f"{math.ceil(minutes / 60)}h"
