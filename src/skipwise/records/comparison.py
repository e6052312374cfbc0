"""What `skipwise compare` leaves as `comparison.json`: arms, paired differences, costs and failures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, FiniteFloat

from skipwise.window import Window

COMPARISON_FILE, RECORDS_FILE = "comparison.json", "records.jsonl"

Status = Literal["done", "failed"]


def one_line(name: str) -> str:
    """A name without line breaks and without letters that a drawing cannot hold."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in name).split()) or "unnamed"


# A name as it is read from a file.
Name = Annotated[str, AfterValidator(one_line)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmRun:
    """One training run of an arm.

    Attributes:
        status: whether the run was completed.
        seed: seed of training; None where nothing is trained.
        failure: kind of failure, such as `out of memory`.
        error: message of the failure.
        steps: optimizer steps.
        tokens: tokens trained on.
        training_seconds: seconds within the steps alone, without data, preflight and validation.
        peak_bytes: peak memory of the process, in bytes, when training ended.
    """

    status: Status
    seed: int | None = None
    failure: str | None = None
    error: str | None = None
    steps: int | None = None
    tokens: int | None = None
    training_seconds: FiniteFloat | None = None
    peak_bytes: int | None = None

    @property
    def why(self) -> str:
        """Why it failed, in a few words."""
        return self.failure or self.error or "no reason given"


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedArm:
    """One way to extend the model.

    Attributes:
        like: kind of the arm, or the kind that it is a variant of; None if unknown.
        trained: false for an arm that is measured without training.
        interpolation: its interpolation, kind and settings; None if it has none.
        sampler: its position sampler, kind and settings; None if nothing is trained, or if the sampler does not tell
            its settings.
        settings: settings in which the arm differs from the others.
        runs: its runs, one for each seed.
    """

    like: str | None = None
    trained: bool = True
    interpolation: Mapping[str, Any] | None = None
    sampler: Mapping[str, Any] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    runs: Sequence[ArmRun] = ()

    @property
    def done(self) -> list[ArmRun]:
        """The runs that were completed."""
        return [run for run in self.runs if run.status == "done"]

    @property
    def failed(self) -> list[ArmRun]:
        """The runs that failed."""
        return [run for run in self.runs if run.status == "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """An arm against the reference, paired by document or prompt, with its 95% interval.

    Attributes:
        arm: name of the arm.
        reference: name of the arm that it is compared with.
        task: what was measured.
        metric: name of the metric, as in the results.
        length_tokens: length of the input, in tokens.
        value: ln(arm / reference) for the metrics `perplexity` and `longppl`; arm - reference for shares.
        ci_low: lower end of the interval.
        ci_high: upper end of the interval.
        num_pairs: number of documents or prompts that both were measured on.
        num_seeds: number of seeds of training that both have.
    """

    arm: Name
    reference: Name
    task: str
    metric: str
    length_tokens: int
    value: FiniteFloat
    ci_low: FiniteFloat | None = None
    ci_high: FiniteFloat | None = None
    num_pairs: int | None = None
    num_seeds: int | None = None

    @property
    def is_log_ratio(self) -> bool:
        """Whether it is a logarithm of a ratio, written in per cent."""
        return self.metric in ("perplexity", "longppl")

    @property
    def turned(self) -> "Difference":
        """The same difference, of the reference against the arm."""
        low, high = (None if end is None else -end for end in (self.ci_high, self.ci_low))
        return replace(self, arm=self.reference, reference=self.arm, value=-self.value, ci_low=low, ci_high=high)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """How many training tokens an arm needed to reach a perplexity.

    Attributes:
        arm: name of the arm.
        seed: seed of training.
        perplexity: the perplexity to reach.
        length_tokens: context length of the validation, in tokens.
        tokens: number of training tokens; None if the arm never reached the perplexity.
    """

    arm: Name
    seed: int
    perplexity: FiniteFloat
    length_tokens: int
    tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one training step of an arm takes for a target window.

    Attributes:
        arm: name of the arm.
        target_tokens: the target window, in tokens.
        step_seconds: seconds of a step; None if it failed.
        peak_bytes: peak memory of the process, in bytes; None if it failed.
        status: whether it was completed.
        error: message of the failure.
    """

    arm: Name
    target_tokens: int
    step_seconds: FiniteFloat | None = None
    peak_bytes: int | None = None
    status: Status = "done"
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Arms trained on equal tokens and measured alike.

    Attributes:
        model: the base model.
        window: `train`, `original` and `target`, in tokens.
        reference: the arm that others are compared with.
        seeds: seeds of training.
        steps: optimizer steps of each run.
        tokens_per_step: training tokens of a step.
        arms: the arms by name.
        differences: differences of each arm from the reference.
        rises: how much each arm's perplexity at longer lengths differs from its own at the shortest, paired by
            document.
        reached: training tokens to reach a perplexity, by arm and seed.
        costs: costs of a step, by arm and target.
        made: when, where and with which versions it was made.
        settings: settings of the comparison.
        kind: always `comparison`, which tells the file from others.
    """

    model: str
    window: Window
    reference: Name | None = None
    seeds: Sequence[int] = ()
    steps: int | None = None
    tokens_per_step: int | None = None
    arms: Mapping[Name, ComparedArm] = field(default_factory=dict)
    differences: Sequence[Difference] = ()
    rises: Sequence[Difference] = ()
    reached: Sequence[Reached] = ()
    costs: Sequence[Cost] = ()
    made: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    kind: Literal["comparison"] = "comparison"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtendedRun:
    """One run of `skipwise extend`, from the `skipwise.json` in its folder.

    `corpus` has the fingerprint and counts of the text; seconds and peak bytes are of this process alone.
    """

    name: Name
    window: Window
    config: Mapping[str, Any]
    sampler: str
    interpolation: str
    corpus: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    versions: Mapping[str, str] = field(default_factory=dict)
    steps: int | None = None
    seconds: FiniteFloat | None = None
    peak_bytes: int | None = None
