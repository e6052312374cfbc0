"""What a pilot says before it starts: how the time is split, what it tells, and what it cannot tell."""

from dataclasses import replace

from skipwise.pilot.measures import LEAST_TRIALS, Wanted
from skipwise.pilot.preparing import Prepared
from skipwise.pilot.schedule import Schedule, duration_label, least_seconds, longest_target, minutes
from skipwise.window import length_label


def too_short(given: float, used: float, prepared: Prepared) -> str:
    """Why a time does not do for any pilot, with the least that does, and what it would do for."""
    wanted, costs, training = prepared.wanted, prepared.costs, prepared.training(False)
    target, label = length_label(wanted.target), duration_label(given)
    least, to_decide = (
        duration_label(least_seconds(used, replace(wanted, small=small), costs, prepared.training(small)))
        for small in (True, False)
    )
    shorter = longest_target(given, used, wanted, costs, training)
    instead = f"{label} would do for --target {length_label(shorter)}" if shorter else "no shorter target would fit"
    one = minutes(costs.one_pass(wanted.target))
    return (
        f"--time {label} is too short for {target}: the least is --time {least}, which tells perplexity, seconds and "
        f"memory. One pass over {target} tokens takes {one} here, and to ask three models {LEAST_TRIALS} questions "
        f"each, fewer of which tell nothing, takes {3 * LEAST_TRIALS} of them: --time {to_decide}; {instead}, and an "
        "accelerator is faster"
    )


def small_told(schedule: Schedule, target_tokens: int) -> str:
    """What a small pilot tells and what it cannot, in one line."""
    target, given = length_label(target_tokens), duration_label(schedule.seconds_given)
    also = "" if target_tokens in schedule.measures.serving else " of shorter requests"
    return (
        f"in {given} this tells perplexity at {target}, and time and memory{also}; it cannot tell whether the model "
        f"finds things there: {LEAST_TRIALS} questions to each of three models need --time "
        f"{duration_label(schedule.to_decide or 0.0)}"
    )


def not_told(schedule: Schedule, prepared: Prepared) -> list[str]:
    """What cannot be told from a small pilot, with the time that would tell; nothing of one that can decide."""
    if schedule.to_decide is None:
        return []
    target, costs, training = prepared.window.target, prepared.costs, prepared.trained_window(small=True).train
    label, to_decide = length_label(target), duration_label(schedule.to_decide)
    said = [
        f"It cannot tell whether the model finds things at {label}: {LEAST_TRIALS} questions to each of three models, "
        f"fewer of which prove nothing, need --time {to_decide} on this machine; an accelerator is faster."
    ]
    if shorter := longest_target(
        schedule.seconds_given, schedule.seconds_used, prepared.wanted, costs, prepared.training(False)
    ):
        said.append(f"The same time does for questions at {length_label(shorter)}: --target {length_label(shorter)}.")
    if target not in schedule.measures.serving:
        said.append(
            f"A request of {label} tokens is not timed; by shorter ones it takes {minutes(costs.one_pass(target))}."
        )
    if training < prepared.window.train:
        said.append(
            f"Training reads windows of {length_label(training)} tokens, not {length_label(prepared.window.train)}."
        )
    return said


def schedule_table(schedule: Schedule, wanted: Wanted) -> str:
    """How the time is split, a line each, and what is left out."""
    lines = [
        f"how {duration_label(schedule.seconds_given)} are split, from {length_label(wanted.original)} to "
        f"{length_label(wanted.target)} tokens:"
    ]
    for name, seconds, what in schedule.rows:
        lines.append(f"  {name:<31} {minutes(seconds):>12}  {what}".rstrip())
    return "\n".join([*lines, *(f"  left out: {sentence}" for sentence in schedule.left_out)])
