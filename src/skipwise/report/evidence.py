"""Everything that a report is made from, in one value."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from skipwise.records.comparison import ComparedArm, Comparison, Cost, Difference, ExtendedRun
from skipwise.records.results import EvalResult
from skipwise.report.records import Arm


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """What a model wrote in one sample, shown only when asked for.

    Attributes:
        task: of the sample.
        length_tokens: of its input.
        output: what the model wrote.
        expected: what was right, where that is known.
    """

    task: str
    length_tokens: int
    output: str
    expected: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What was measured and how it came about.

    Attributes:
        arms: models under comparison, with their records.
        original_tokens: window of the base model.
        target_tokens: window that the arms are to handle; None where nothing says it.
        comparison: how the arms were trained, where they were compared.
        runs: of `skipwise extend`.
        outputs: samples to show.
    """

    arms: Sequence[Arm]
    original_tokens: int
    target_tokens: int | None = None
    comparison: Comparison | None = None
    runs: Sequence[ExtendedRun] = ()
    outputs: Sequence[Output] = ()

    @property
    def compared(self) -> Mapping[str, ComparedArm]:
        """How each arm was trained, by name; none where nothing was compared."""
        return {} if self.comparison is None else self.comparison.arms

    @property
    def costs(self) -> Sequence[Cost]:
        """Of training steps."""
        return () if self.comparison is None else self.comparison.costs

    @property
    def differences(self) -> Sequence[Difference]:
        """Between arms and the reference."""
        return () if self.comparison is None else self.comparison.differences

    @property
    def records(self) -> list[EvalResult]:
        """Of all arms."""
        return [record for arm in self.arms for record in arm.results]

    @property
    def longest_tokens(self) -> int:
        """The longest length measured on any arm; 0 where nothing was."""
        return max((record.length_tokens for record in self.records), default=0)

    @property
    def advertised_tokens(self) -> int:
        """The window that effective lengths are held against: the target, or as far as was measured."""
        return self.target_tokens or self.longest_tokens

    @property
    def many(self) -> bool:
        """Whether there are too many arms for a column each."""
        return len(self.arms) > 4

    @property
    def names(self) -> list[str]:
        """Every arm's name, those without any result last; an arm's place gives it its colour in all figures."""
        return list(dict.fromkeys((*(arm.name for arm in self.arms), *self.compared)))

    def number(self, name: str) -> int:
        """The place of an arm among all, which gives it its colour."""
        return [*self.names, name].index(name)

    def is_base(self, arm: Arm) -> bool:
        """Whether an arm is the model as it was: said by the comparison, or by its name."""
        if known := self.compared.get(arm.name):
            return not known.trained and (known.interpolation or {}).get("kind", "none") == "none"
        return arm.name == "base"

    @property
    def base(self) -> Arm | None:
        """The arm that is the model as it was."""
        return next((arm for arm in self.arms if self.is_base(arm)), None)
