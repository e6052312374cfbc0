"""Settings of a comparison: those that all arms share, and what each arm changes.

    model: ./my-model
    target: 32k
    data: {source: docs/}
    training: {max_steps: 200}
    arms: [base, interpolation-only, plain, randpos, pose, {name: flat, like: pose, sampler: {skips: flat}}, full]
    reference: pose
    seeds: [0, 1]

All other settings are those of `skipwise.config.RunConfig` and hold for every arm.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from skipwise.config import Length, RunConfig, StrictModel
from skipwise.config.reading import explain, merge_settings, read_settings
from skipwise.errors import ConfigError, SkipwiseError
from skipwise.names import did_you_mean
from skipwise.report.samples import enough_trials

Measured = Literal["plain", "by_length", "dual_chunk", "shifted"]


class ArmKind(StrictModel):
    """A kind of arm.

    Attributes:
        measured: how an untrained arm is measured: as it is, or without a change of its weights by other means.
            `by_length`: interpolated to the length of each input, not to the target; inputs within the original window
            are read as by the base. `dual_chunk` and `shifted`: under other distances (`runtime.relative`).
        settings: of its run, over those that all arms share.
        whole_target: whether it trains at the target length instead of short windows, with as many tokens a step.
        as_long_as_reference: whether it takes as many steps as fit into the reference's training time, instead of as
            many tokens.
    """

    trained: bool = True
    interpolated: bool = True
    measured: Measured = "plain"
    settings: dict[str, Any] = Field(default={})
    whole_target: bool = False
    as_long_as_reference: bool = False


ARM_KINDS: dict[str, ArmKind] = {
    "base": ArmKind(trained=False, interpolated=False),
    "interpolation-only": ArmKind(trained=False),
    "dynamic-ntk": ArmKind(trained=False, measured="by_length", settings={"interpolation": {"kind": "dynamic"}}),
    "dca": ArmKind(trained=False, interpolated=False, measured="dual_chunk"),
    "string": ArmKind(trained=False, measured="shifted"),
    "plain": ArmKind(settings={"sampler": {"kind": "plain"}}),
    "randpos": ArmKind(settings={"sampler": {"kind": "randpos"}}),
    "cream": ArmKind(settings={"sampler": {"kind": "cream"}}),
    "sentences": ArmKind(settings={"sampler": {"kind": "sentences"}}),
    "endprompt": ArmKind(settings={"sampler": {"kind": "endprompt"}}),
    "pose": ArmKind(settings={"sampler": {"kind": "pose"}}),
    "recipe": ArmKind(settings={"recipe": "growing"}),
    "full": ArmKind(settings={"sampler": {"kind": "full"}}, whole_target=True),
    "full-equal-time": ArmKind(settings={"sampler": {"kind": "full"}}, whole_target=True, as_long_as_reference=True),
}
"""Kinds of arms by name. Full length is there twice: for the same tokens and for the same time."""

_NAME = re.compile(r"[^\W_][\w .,+=-]{0,59}")
_OF_ALL_ARMS = ("model", "target", "output", "seed", "dtype", "attention", "validation", "trust_remote_code")
_OF_EQUAL_TOKENS = ("max_steps", "per_device_train_batch_size", "gradient_accumulation_steps")


class Arm(StrictModel):
    """One side of a comparison.

    Attributes:
        like: its kind, or the kind that it is a variant of: a key of `ARM_KINDS`.
        settings: of its run, over those of its kind.
    """

    name: str
    like: str
    settings: dict[str, Any] = Field(default={})

    @property
    def kind(self) -> ArmKind:
        """Its kind."""
        return ARM_KINDS[self.like]

    def run_settings(self, shared: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of its run: its own over its kind's over the shared ones."""
        return merge_settings(merge_settings(shared, self.kind.settings), self.settings)

    def run_config(self, shared: Mapping[str, Any]) -> RunConfig:
        """The same, validated; a ConfigError names the arm."""
        try:
            run = RunConfig.from_mapping(self.run_settings(shared))
        except SkipwiseError as error:
            raise ConfigError(f"arm {self.name!r}: {error}", page=error.page) from error
        if run.parallel.context > 1 or run.parallel.shard:
            raise ConfigError(
                f"arm {self.name!r}: a comparison trains each arm in one process: leave parallel.context and "
                "parallel.shard out",
                page="parallel-run",
            )
        return run

    @classmethod
    def from_setting(cls, given: Any) -> "Arm":
        """Reads an arm as YAML gives it: a name of `ARM_KINDS`, or a mapping with `name`, `like` and run settings.

        Raises:
            ConfigError: the kind is unknown, or a setting is one that all arms share.
        """
        tree = {"name": given} if isinstance(given, str) else dict(given) if isinstance(given, Mapping) else None
        if not tree or not isinstance(tree.get("name"), str):
            raise ConfigError(
                f"setting 'arms' has {given!r}; give one of {', '.join(ARM_KINDS)}, or {{name:, like:, ...}}"
            )
        name = tree.pop("name")
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"arm {name!r} cannot be called that, as its folder is; give up to 60 letters, digits, spaces and "
                ". , _ + = - of which the first is a letter or digit"
            )
        like = tree.pop("like", name)
        if not isinstance(like, str) or like not in ARM_KINDS:
            hint = did_you_mean(like, ARM_KINDS)
            what = "" if like == name else f"like {like!r}, "
            raise ConfigError(f"arm {name!r} is {what}no kind of arm; {hint}known: {', '.join(ARM_KINDS)}")
        if shared := next((setting for setting in _OF_ALL_ARMS if setting in tree), None):
            raise ConfigError(
                f"arm {name!r} sets {shared!r}, which all arms of a comparison share; set it above them",
                page="unequal-arms",
            )
        training = tree.get("training")
        of_training = training if isinstance(training, Mapping) else ()
        if shared := next((setting for setting in _OF_EQUAL_TOKENS if setting in of_training), None):
            raise ConfigError(
                f"arm {name!r} sets 'training.{shared}'; arms are compared on equal tokens: set it for all of them",
                page="unequal-arms",
            )
        return cls(name=name, like=like, settings=tree)


class EvaluationConfig(StrictModel):
    """How every arm is measured, on the same held-out documents and prompts.

    Attributes:
        tasks: what is measured: names of tasks, or mappings of `kind`, the task's settings and `lengths` of its own.
        lengths: input lengths. By default the original window and its doublings up to the target.
        suites: folders of suites made by `skipwise eval build-suite`, measured at their own lengths.
        documents: source of the documents; by default the run's own `data.source`. What a run on it would hold out is
            measured, and all of it with `data.held_out: 0`.
        regression: also measures how far each arm has moved from the base on short text, with the task `regression`.
        dtype: number format of the parameters when they are measured, and of LongPPL's scorer and the base of task
            `regression`; by default the run's `dtype`. `bfloat16` is faster where the processor computes in it.
        seed: seed of prompts and of the choice of documents.
    """

    tasks: list[str | dict[str, Any]] = Field(
        default=[
            {"kind": "perplexity", "num_documents": 16},
            {"kind": "passkey", "trials": enough_trials(5), "num_depths": 5},
        ]
    )
    lengths: list[Length] | None = None
    suites: list[str] = Field(default=[])
    documents: str | list[str] | None = None
    regression: bool = True
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    seed: int = Field(default=0, ge=0)


class CostConfig(StrictModel):
    """Time and memory of a training step by target length, each in a process of its own.

    Attributes:
        targets: context lengths.
        arms: the arms to time. By default the reference and `full`.
        steps: number of timed steps of one window each, after one for warm-up.
    """

    targets: list[Length] = Field(min_length=1)
    arms: list[str] | None = None
    steps: int = Field(default=3, ge=1)


class Comparison(StrictModel):
    """Arms over one base model with the same tokens, seeds, optimizer and evaluation.

    Attributes:
        run: settings that all arms share, as `skipwise.config.RunConfig` has them.
        arms: what is compared.
        reference: the arm that the others are compared with. By default the first of kind `pose`, else the first that
            is trained.
        seeds: seeds of training. Every trained arm runs once with each.
        reach: a validation perplexity at the target, above 1. The comparison counts the training tokens that each arm
            takes to reach it. By default the last one of the reference.
        evaluation: what is measured.
        costs: time and memory of a step by target length. By default not measured.
        output: folder of all results. By default the run's own output with `-compared`.
    """

    run: dict[str, Any]
    arms: list[Arm] = Field(min_length=1)
    reference: str
    seeds: list[int] = Field(default=[0], min_length=1)
    reach: float | None = Field(default=None, gt=1.0)
    evaluation: EvaluationConfig = EvaluationConfig()
    costs: CostConfig | None = None
    output: str

    @classmethod
    def from_mapping(cls, settings: Mapping[str, Any]) -> "Comparison":
        """Validates settings as YAML gives them.

        Raises:
            ConfigError: a setting is unknown, missing, out of range or contradicts another.
        """
        tree = dict(settings)
        if "seed" in tree:
            raise ConfigError("setting 'seed' is of a single run; a comparison has 'seeds', such as [0, 1, 2]")
        given = tree.pop("arms", None)
        if not isinstance(given, list) or not given:
            raise ConfigError(f"setting 'arms' is {given!r}; give a list such as [base, plain, pose, full]")
        arms = [Arm.from_setting(arm) for arm in given]
        own = {name: tree.pop(name) for name in cls.model_fields if name in tree and name not in ("run", "arms")}
        run = merge_settings({"data": {}, "training": {}, "validation": {}}, tree)
        # Arms do what their names say; the default recipe is an arm of its own.
        run.setdefault("recipe", "paper")
        shared = RunConfig.from_mapping(run)
        run["data"] = {"min_tokens": shared.target, **run["data"]}
        for arm in arms:
            arm.run_config(run)
        trained = [arm.name for arm in arms if arm.kind.trained]
        like_pose = [arm.name for arm in arms if arm.like == "pose"]
        own.setdefault("reference", (like_pose or trained or [arm.name for arm in arms] or [""])[0])
        own.setdefault("output", f"{shared.output_folder}-compared")
        try:
            comparison = cls.model_validate({"run": run, "arms": [arm.model_dump() for arm in arms], **own})
        except ValidationError as error:
            raise ConfigError(explain(cls, error)) from None
        comparison._check_names()
        return comparison

    @classmethod
    def from_yaml(cls, path: Any) -> "Comparison":
        """Reads a comparison's YAML file; raises ConfigError as `from_mapping`."""
        return cls.from_mapping(read_settings(path))

    def to_mapping(self) -> dict[str, Any]:
        """The settings as in YAML, with all defaults."""
        own = self.model_dump(exclude={"run", "arms"})
        arms = [{"name": arm.name, "like": arm.like, **arm.settings} for arm in self.arms]
        return {**self.run, "arms": arms, **own}

    def to_yaml(self) -> str:
        """The same as YAML text."""
        return yaml.safe_dump(self.to_mapping(), sort_keys=False)

    def arm(self, name: str) -> Arm:
        """The arm with this name."""
        return next(arm for arm in self.arms if arm.name == name)

    def _check_names(self) -> None:
        names = [arm.name for arm in self.arms]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"setting 'arms' has {repeated[0]!r} more than once; give each arm a name of its own")
        if self.reference not in names:
            raise ConfigError(
                f"setting 'reference' is {self.reference!r}; it must be one of the arms {', '.join(names)}",
                page="unequal-arms",
            )
        if len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ConfigError(f"setting 'seeds' is {self.seeds}; give different whole numbers of 0 or more")
        for name in (self.costs and self.costs.arms) or ():
            if name not in names or not self.arm(name).kind.trained:
                raise ConfigError(f"setting 'costs.arms' has {name!r}; give arms that are compared and trained")
        timed = [arm.name for arm in self.arms if arm.kind.as_long_as_reference]
        if timed and not self.arm(self.reference).kind.trained:
            raise ConfigError(
                f"arm {timed[0]!r} trains as long as the reference {self.reference!r}, which is not trained; give a "
                "reference that is",
                page="unequal-arms",
            )
