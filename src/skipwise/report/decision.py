"""What to do, from all that was measured: go, not yet or no, with the reason, what gets worse and the next command.

The question is that of somebody with an hour and a budget: is the full run worth its money? The first rule that applies
decides. Counts are of questions at the longest length up to the target; "better" and "worse" are by the 95% interval of
the difference (`Contest.gain`). To "hold" is to keep 85% of what the base answers within its own window, by the lower
bound of the relative rule (`samples.passes`). A model's text is "damaged" where its perplexity at the target is over 1%
above the base's own within its window, by the lower bound. Perplexity alone never decides: it can hold a no or a go
back, and it tells two models apart that both answer nearly everything. Of reasoning questions, what is above chance
counts.

    no       refused              preflight failed: the model cannot be trained as it is
    not yet  untrained            no trained model was measured, since its training failed or did not fit into the time
    not yet  unasked              nothing but perplexity was measured at the target, or beyond the original window
    not yet  too_hard             the base answers under 30% even within its own window: these questions tell nothing
    no       worse                the extended model answers worse than the base or interpolation alone
    no       base_holds           the base holds at the target, undamaged, and less than 15 points are to be gained, nor
                                  15% of perplexity
    no       interpolation_holds  interpolation alone does: no training is needed
    not yet  uncontrolled         base or interpolation alone was not asked, so nothing tells what training brought
    not yet  worse_so_far         worse, in a pilot with less than a tenth of the full run's steps
    not yet  few                  it answers more than both, or as much as a perfect score, but so few do not show it
    not yet  no_gain              it does not answer more than both: more steps, or a smaller target
    not yet  predicts_worse       perplexity is over 1% above interpolation alone's, or above its own on short text
    go       reads_better         better than the base and holding; interpolation alone answers nearly as much, but its
                                  text is damaged, and the extended model's perplexity is over 1% below it
    go       holds                better than both, and it holds at the target
    go       rising               better than both in a pilot that trained less than the full run, and at least half as
                                  good at the target as the base within its own window
    not yet  undecided            better than both, but too few samples to say whether it holds
    not yet  falls_short          better than both, and it does not hold at the target
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from skipwise.records.stats import wilson
from skipwise.report.commands import next_command, seconds_to_tell
from skipwise.report.contest import TASKS, Contest, Count, minus, samples_to_tell
from skipwise.report.evidence import Arm, Evidence
from skipwise.report.quantities import shortened
from skipwise.report.samples import RELATIVE_SHARE, fails, least_samples, passes
from skipwise.report.words import say
from skipwise.report.worse import short_perplexities, what_gets_worse

Outcome = Literal["go", "not yet", "no"]

MOST_LEFT_OUT = 3
"""So many sentences on what a pilot left out stand among the reasons; more have a section of their own."""

EARLY_SHARE = 0.1
"""Below this share of the full run's steps, a loss may be one that training only passes through."""

_COULD_GO = ("unasked", "few", "no_gain", "worse_so_far", "undecided", "falls_short")
"""Rules of a "not yet" that more right answers would turn into a go."""

LEARNED_RATIO = 0.95
"""Perplexity beside the base's, within its window, below which training taught the text itself."""

NOTICED = math.log(1.01)
"""How much more perplexity counts as worse, as a logarithm of the ratio: pairs by document tell less than that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What to decide on.

    Attributes:
        outcome: whether the full run is worth its money.
        headline: the first sentence, for readers who know nothing of the method.
        reasons: why, a sentence an entry: first the rule that decided, last what was not measured.
        gets_worse: what the extension costs its users, a sentence an entry.
        next_command: what to run next; None where the evidence does not tell.
    """

    outcome: Outcome
    headline: str
    reasons: Sequence[str]
    gets_worse: Sequence[str]
    next_command: str | None

    def to_json(self) -> dict[str, Any]:
        """All of it, as JSON values."""
        return dataclasses.asdict(self) | {"reasons": list(self.reasons), "gets_worse": list(self.gets_worse)}

    @property
    def lines(self) -> list[str]:
        """The decision for a terminal."""
        return [
            f"{self.outcome.upper()}: {self.headline}",
            *(f"  why: {reason}" for reason in self.reasons),
            *(f"  what gets worse: {worse}" for worse in self.gets_worse),
            *([f"  next: {self.next_command}"] if self.next_command else []),
        ]


class Ruling(NamedTuple):
    """The rule that decided, with its outcome."""

    outcome: Outcome
    rule: str


def decide(evidence: Evidence) -> Decision | None:
    """The decision that some evidence allows; None where it does not tell who was extended."""
    contest = Contest.of(evidence)
    if contest is None:
        return None
    ruling = rule_of(contest)
    return Decision(
        outcome=ruling.outcome,
        headline=_headline(contest, ruling),
        reasons=_reasons(contest, ruling),
        gets_worse=what_gets_worse(contest),
        next_command=next_command(contest, ruling.outcome, ruling.rule),
    )


def rule_of(contest: Contest) -> Ruling:
    """The first rule that applies."""
    at, base, interpolated = contest.longest, contest.base, contest.interpolated
    if _preflight_error(contest.evidence):
        return Ruling("no", "refused")
    if contest.extended is None:
        return Ruling("not yet", "untrained")
    if at is None or at <= contest.evidence.original_tokens:
        return Ruling("not yet", "unasked")
    if contest.task and contest.unable(contest.task):
        return Ruling("not yet", "too_hard")
    gains = [contest.gain(arm, at) for arm in (base, interpolated)]
    worse = any(gain and gain.high is not None and gain.high < 0 for gain in gains)
    pilot = contest.evidence.pilot
    is_early = pilot is not None and pilot.share_trained < EARLY_SHARE
    if worse and not is_early:
        return Ruling("no", "worse")
    for arm, gain, rule in zip((base, interpolated), gains, ("base_holds", "interpolation_holds"), strict=True):
        nothing_left = gain is not None and gain.high is not None and gain.high < 1 - RELATIVE_SHARE
        if nothing_left and _holds(contest, contest.count(arm, at)) and not _text_gains(contest, arm):
            return Ruling("no", rule)
    known = [gain for gain in gains if gain is not None]
    if len(known) < len(gains):
        return Ruling("not yet", "uncontrolled")
    if worse:
        return Ruling("not yet", "worse_so_far")
    better_than = [gain.low is not None and gain.low > 0 for gain in known]
    if better_than == [True, False] and _reads_better(contest):
        return Ruling("not yet", "predicts_worse") if _predicts_worse(contest) else Ruling("go", "reads_better")
    if not all(better_than):
        few = all(gain.value > 0 for gain in known) or _too_few(contest)
        return Ruling("not yet", "few" if few else "no_gain")
    return _of_a_better_model(contest)


def _too_few(contest: Contest) -> bool:
    """Whether even a perfect score could not show that a model holds, and this one does not fail for certain."""
    count, short = (contest.count(arm, at) for arm, at in _held_to(contest))
    if count is None or count.of >= least_samples():
        return False
    return not (short and fails("relative", count.share, short.share))


def _damaged(contest: Contest, arm: Arm | None) -> bool:
    """Whether an arm predicts text at the target worse, for certain, than the base does within its window."""
    beside = contest.perplexity_beside_short(arm)
    return beside is not None and beside.low is not None and beside.low > NOTICED


def _text_gains(contest: Contest, arm: Arm | None) -> bool:
    """Whether the extended model has to offer what an arm lacks in text: undamaged text, or 15% less perplexity."""
    beside = contest.perplexity_ratio(arm)
    much = beside is not None and beside[1].high is not None and beside[1].high < math.log(RELATIVE_SHARE)
    return much or _damaged(contest, arm)


def _reads_better(contest: Contest) -> bool:
    """Whether text tells the extended model from interpolation alone, where questions do not."""
    beside = contest.perplexity_ratio(contest.interpolated)
    lower = beside is not None and beside[1].high is not None and beside[1].high < -NOTICED
    return lower and _damaged(contest, contest.interpolated) and _holds(contest, contest.count(*_held_to(contest)[0]))


def _of_a_better_model(contest: Contest) -> Ruling:
    """The ruling on a model that answers more than base and interpolation alone."""
    if _predicts_worse(contest):
        return Ruling("not yet", "predicts_worse")
    count, short = (contest.count(arm, at) for arm, at in _held_to(contest))
    if _holds(contest, count):
        return Ruling("go", "holds")
    pilot = contest.evidence.pilot
    # Half of the way is enough to expect the rest of a full run; less is a hope.
    if pilot and pilot.share_trained < 1 and count and short and 2 * count.share.value >= short.share.value:
        return Ruling("go", "rising")
    if count is None or short is None:
        return Ruling("not yet", "undecided")
    possible = passes("relative", count.perfect, short.share)
    falls = possible or fails("relative", count.share, short.share)
    return Ruling("not yet", "falls_short" if falls else "undecided")


def _held_to(contest: Contest) -> tuple[tuple[Arm | None, int | None], tuple[Arm | None, int | None]]:
    """Arm and length of the score that is judged, and of the short one that it is held to."""
    return (contest.extended, contest.longest), (contest.base, contest.short)


def _holds(contest: Contest, count: Count | None) -> bool:
    """Whether a score keeps its share of what the base answers within its own window."""
    short = contest.count(contest.base, contest.short)
    return bool(count and short and count.share.value > 0 and passes("relative", count.share, short.share))


def _predicts_worse(contest: Contest) -> bool:
    beside, rise = contest.perplexity_ratio(contest.interpolated), contest.perplexity_rise()
    found = [estimate for *_, estimate in filter(None, (beside, rise))]
    return any(estimate.low is not None and estimate.low > NOTICED for estimate in found)


def _preflight_error(evidence: Evidence) -> str | None:
    """The message of a failed preflight, where no trained arm has any results."""
    runs = [run for arm in evidence.compared.values() if arm.trained for run in arm.runs]
    errors = [run.error for run in runs if run.error and run.error.startswith("preflight failed")]
    return errors[0].rstrip(".") if errors and not any(run.status == "done" for run in runs) else None


def _headline(contest: Contest, ruling: Ruling) -> str:
    arms = (contest.extended, contest.interpolated, contest.base)
    asked = [arm for arm in arms if arm is not None]
    at = contest.longest or max((at for arm in asked for at in _lengths(contest, arm)), default=None)
    (headline,) = say(
        "decision.headline",
        ruling=ruling,
        at=at,
        target=contest.target,
        task=contest.task,
        extended=contest.count(contest.extended, at),
        interpolated=contest.count(contest.interpolated, at),
        base=contest.count(contest.base, at),
        full=_full_run(contest.evidence),
        pilot=contest.evidence.pilot,
        perplexities=_perplexities(contest),
    )
    return headline


def _perplexities(contest: Contest) -> dict[str, Any]:
    """Perplexity of text by arm, at the longest length up to the target that all have; nothing within the window."""
    arms = {
        "the extended model": contest.extended,
        "interpolation alone": contest.interpolated,
        "the base": contest.base,
    }
    found = {name: arm.by_length(contest.evidence.perplexity) for name, arm in arms.items() if arm is not None}
    common = set.intersection(*map(set, found.values())) if found else set()
    at = max((length for length in common if length <= contest.target), default=0)
    if at <= contest.evidence.original_tokens:
        return {}
    return {"at": at, "of": {name: records[at] for name, records in found.items()}}


def _lengths(contest: Contest, arm: Any) -> list[int]:
    return [length for length in {record.length_tokens for record in arm.results} if contest.count(arm, length)]


def _full_run(evidence: Evidence) -> Any:
    """The cheapest machine that holds the full run, else the fastest; None where there is none."""
    fitting = [run for run in evidence.pilot.full_runs if run.fits] if evidence.pilot else []
    priced = [run for run in fitting if run.cost is not None]
    return (
        min(priced, key=lambda run: run.cost or 0.0)
        if priced
        else min(fitting, key=lambda run: run.hours, default=None)
    )


def _reasons(contest: Contest, ruling: Ruling) -> list[str]:
    at, evidence = contest.longest, contest.evidence
    extended, interpolated, base = (
        contest.count(arm, at) for arm in (contest.extended, contest.interpolated, contest.base)
    )
    over = {"the base": contest.gain(contest.base, at), "interpolation alone": contest.gain(contest.interpolated, at)}
    facts = {
        "ruling": ruling,
        "task": contest.task,
        "at": at,
        "target": contest.target,
        "original": evidence.original_tokens,
        "extended": extended,
        "interpolated": interpolated,
        "base": base,
        "gains": {name: gain for name, gain in over.items() if gain and gain.low is not None},
        "short": contest.count(contest.base, contest.short),
        "short_at": contest.short,
        "kept": RELATIVE_SHARE,
        "least": least_samples(),
        "needed": (needed := _needed(extended, base, interpolated)),
        "seconds": seconds_to_tell(contest, needed),
        "pilot": evidence.pilot,
        "steps": _steps(evidence),
        "tried": contest.tried,
        "name": contest.extended.name if contest.extended else "",
        "failure": _preflight_error(evidence) or _failure(evidence),
        "beside": contest.perplexity_ratio(contest.interpolated),
        "rise": contest.perplexity_rise(),
        "damage": contest.perplexity_beside_short(contest.interpolated),
        "learned": _learned(contest),
        "missing": _missing(contest),
        "noticed": NOTICED,
        "unable": {task: count for task in TASKS if (count := contest.unable(task))},
        "most": MOST_LEFT_OUT,
        "go": _to_go(contest, ruling, extended, (base, interpolated)),
    }
    facts["left_out"] = evidence.pilot.left_out if evidence.pilot else ()
    told = [*say(f"decision.rules.{ruling.rule}", **facts), *say("decision.reasons", **facts)]
    return [*told, *(facts["left_out"] if len(facts["left_out"]) <= MOST_LEFT_OUT else ())]


def _learned(contest: Contest) -> tuple[int, Any, Any] | None:
    """A length within the base's window, and perplexities of base and extended model, if training alone improved it.

    None where an arm of plain short windows was measured, which tells what such training brings.
    """
    within = short_perplexities(contest)
    arms = contest.evidence.comparison.arms if contest.evidence.comparison else {}
    if within is None or any(arm.like == "plain" for arm in arms.values()):
        return None
    return within if within[2].value < LEARNED_RATIO * within[1].value else None


def _to_go(
    contest: Contest, ruling: Ruling, extended: Count | None, others: Sequence[Count | None]
) -> dict[str, Any] | None:
    """The least number of right answers at which a pilot says go, by `_of_a_better_model`; None where that is moot.

    Where nothing was asked, the base is taken to answer all within its own window, and no other arm any at the target.
    """
    pilot = contest.evidence.pilot
    if pilot is None or ruling.rule not in _COULD_GO:
        return None
    number, asked = extended.of if extended else least_samples(), contest.count(contest.base, contest.short)
    short = asked.share if asked else wilson(number, number)
    known = [other.share for other in others if other] or [wilson(0, number)]

    def would_go(right: int) -> bool:
        share = wilson(right, number)
        enough = 2 * share.value >= short.value if pilot.share_trained < 1 else passes("relative", share, short)
        return enough and all((minus(share, other).low or 0.0) > 0 for other in known)

    right = next(filter(would_go, range(number + 1)), None)
    return {"right": right, "of": number, "assumed": extended is None or asked is None}


def _needed(extended: Count | None, *others: Count | None) -> int | None:
    """About how many questions would tell the extended model from the others, if shares stay as they are."""
    if extended is None:
        return None
    told = [samples_to_tell(extended.rate, other.rate) for other in others if other] or [None]
    if None in told:
        return max(least_samples(), 2 * extended.of)
    most = max(number for number in told if number)
    # Intervals over several kinds of question are wider than those of one share.
    return most if most > extended.of else 2 * extended.of


def _steps(evidence: Evidence) -> int | None:
    """Training steps of the extended model, where they are known."""
    if evidence.pilot:
        return evidence.pilot.steps
    return evidence.comparison.steps if evidence.comparison else next((run.steps for run in evidence.runs), None)


def _failure(evidence: Evidence) -> str | None:
    """Why training failed, where it did."""
    failed = [run for arm in evidence.compared.values() if arm.trained for run in arm.failed]
    return shortened(" ".join((failed[0].error or failed[0].why).split()), 200).rstrip(".") if failed else None


def _missing(contest: Contest) -> list[str]:
    """What a decision would like to know and nobody measured."""
    tasks = {record.task for record in contest.extended.results} if contest.extended else set()
    known = {
        "questions": "suite" in tasks or contest.task is None,
        "perplexity": contest.evidence.perplexity.task in tasks or contest.extended is None,
        "short": "regression" in tasks or contest.extended is None,
        "serving": any(record.task == "serving" for record in contest.evidence.records),
    }
    return [say(f"decision.missing.{name}")[0] for name, is_known in known.items() if not is_known]
