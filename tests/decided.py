"""Evidence to decide on: answers and perplexities of base, interpolation only and the extended model."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from made_up_results import arm_of, record, regression, serving, share

from skipwise.records.comparison import ComparedArm, Comparison
from skipwise.records.pilot import FullRun, Pilot
from skipwise.report.evidence import Evidence
from skipwise.window import Window

SHORT, TARGET = 4096, 32768
Line = dict[str, Any]

A100 = FullRun(machine="a100-80", count=1, hours=9.2, cost=20.3, price_per_hour=2.2, total_bytes=40 * 2**30, fits=True)
PILOT = Pilot(
    model="small",
    target_tokens=TARGET,
    original_tokens=SHORT,
    seconds_given=3600,
    seconds_used=3500,
    steps=40,
    full_steps=1000,
    full_runs=[
        A100,
        replace(A100, machine="h100", hours=4.0, cost=25.0),
        replace(A100, machine="l4", cost=3.0, fits=False),
    ],
    next_command="skipwise extend small --target 32k --data docs",
    made={"command": "skipwise pilot small --data docs --target 32k --time 1h"},
)


def questions(at_short: int | None, at_target: int | None, of: int, task: str = "suite") -> Iterator[Line]:
    """Right answers at the two lengths; of a suite half are of each of two kinds."""
    for length, right in ((SHORT, at_short), (TARGET, at_target)):
        if right is None:
            continue
        if task != "suite":
            yield share(task, "accuracy", length, right / of, of)
            continue
        for kind, of_kind in (("facts", right // 2), ("choices", right - right // 2)):
            yield share(task, "score", length, of_kind / (of // 2), of // 2, kind=kind)


def perplexity(at_short: float, at_target: float, task: str = "perplexity") -> Iterator[Line]:
    for length, value in ((SHORT, at_short), (TARGET, at_target)):
        yield record(task, "perplexity", length, value, value * 0.97, value * 1.03, 16)


def evidence(
    base: Sequence[Line] = (),
    interpolated: Sequence[Line] = (),
    extended: Sequence[Line] = (),
    *,
    pilot: Pilot | None = None,
    **how: Any,
) -> Evidence:
    """Of a comparison with these records."""
    names = {"base": base, "interpolation-only": interpolated, "recipe": extended}
    arms = {
        name: ComparedArm(
            like=name, trained=name == "recipe", interpolation=None if name == "base" else {"kind": "yarn"}
        )
        for name in names
    }
    settings = {"data": {"source": "docs"}, "output": "runs/c", "tuning": {"kind": "lora"}}
    comparison = Comparison(
        model="small",
        window=Window(train=2048, original=SHORT, target=TARGET),
        arms=arms | how.pop("arms", {}),
        steps=100,
        settings=settings,
        **how,
    )
    return Evidence(
        arms=[arm_of(name, lines) for name, lines in names.items() if lines],
        original_tokens=SHORT,
        target_tokens=TARGET,
        comparison=comparison,
        pilot=pilot,
    )


def answered(*pairs: tuple[int | None, int | None] | None, of: int = 50, task: str = "suite", **how: Any) -> Evidence:
    """Evidence of right answers, at the short length and at the target, of base, interpolation only and extended."""
    lines = [[] if pair is None else list(questions(*pair, of, task)) for pair in pairs]
    return evidence(*lines, **how)


def full_pilot() -> Evidence:
    """Everything that a pilot measures, with 18 of 20 at the target."""
    extended = [
        *questions(19, 18, 20),
        *perplexity(8.1, 7.9),
        *(line for length in (2048, TARGET) for line in serving(length)),
        *regression(2048, math.log(1.06), "model"),
    ]
    interpolated = [*questions(18, 3, 20), *perplexity(8.6, 9.4)]
    return evidence([*questions(20, 0, 20), *perplexity(8.0, 170.0)], interpolated, extended, pilot=PILOT)
