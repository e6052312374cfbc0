"""One run of `extend`, as a strict value: YAML or flags in, resolved YAML kept with the run.

    model: meta-llama/Llama-2-7b-hf
    target: 32k
    interpolation: {kind: yarn}
    sampler: {kind: pose, skips: flat}
    data: {source: "pile/*.jsonl.zst", min_tokens: 2k}
    tuning: {kind: lora, rank: 64, train_norms: true, train_embeddings: true}
    training: {max_steps: 1000, learning_rate: 2.0e-5, bf16: true}

Whatever is left out has a stated default, whatever is unknown is refused with the nearest name.
"""

import dataclasses
import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from skipwise.config.reading import explain, merge_settings, read_settings, with_kinds
from skipwise.config.recipes import AUTO, RECIPES
from skipwise.errors import ConfigError
from skipwise.names import did_you_mean
from skipwise.positions import PositionSampler, sampler_from
from skipwise.rope import Interpolation, check_carries_factor, interpolation_from
from skipwise.window import Window, length_label, parse_length


def _length(value: Any) -> Any:
    # A ConfigError is no ValueError, so pydantic lets it through as it is: one line that names the allowed forms.
    return value if value is None or isinstance(value, bool) else parse_length(value)


Length = Annotated[int, BeforeValidator(_length)]
"""A number of tokens; `32k` and `"1M"` are read too."""


_TIMES = re.compile(r"(\d+(?:\.\d+)?)x")


def _length_or_times(value: Any) -> Any:
    if isinstance(value, str) and _TIMES.fullmatch(value.strip()):
        return value.strip()
    return _length(value)


GrownWindow = Annotated[int | str, BeforeValidator(_length_or_times)]
"""A number of tokens, or how many times the training window: `4x`."""


def _tokens(given: int | str, window: Window) -> int:
    """A `GrownWindow` in tokens, in a run of these lengths."""
    if isinstance(given, int):
        return given
    return min(window.target, round(float(given.removesuffix("x")) * window.train))


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, Mapping) else value


Share = Annotated[float, Field(ge=0.0, le=1.0)]


class StrictModel(BaseModel):
    """Settings of one kind: frozen, of exact types, and nothing unknown among them."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class DataConfig(StrictModel):
    """What to train on.

    Attributes:
        source: a file, a folder, a pattern, a hub data set or `stdlib`, or a list of these.
        field: entry that holds the text in JSON lines, Parquet and hub data sets; `a.b` for entry `b` of entry `a`.
        skip_unreadable: goes on without files and records that cannot be read (folders without rights, text that is not
            UTF-8, records without the field), with a warning and a count in the run's record, where else all of them
            are listed and nothing is trained. A row that is null or empty is no fault, and counted among the empty.
        min_tokens: documents with fewer tokens are dropped or joined; by default the training window.
        join: joins short documents until they are long enough.
        mask_joints: leaves out the label where a chunk begins with text that does not follow what stands before it.
        held_out: share of documents, told apart by their text, that is kept out of training for validation. Where these
            have fewer tokens than its shortest length, the end of the longest other document is kept out as well.
        retrieval: share of windows that are generated retrieval exercises instead of the documents' text.
        near_labels: share of the labels that are kept in chunks before the last, which have nothing far away to look
            at; below 1, what can be told from afar weighs more in the loss.
        control_tokens: what documents mean that spell control tokens, such as `<|im_end|>`: `text` reads them as the
            letters that they are written in; `tokens` is for corpora that were written for this tokenizer.
        streaming: reads Parquet files or hub data sets as they are trained on, instead of tokenizing them all first;
            for corpora larger than the disk.
        buffer: with `streaming`, documents that each window of a step has in memory and takes in random order.
    """

    source: str | list[str] = Field(
        default="stdlib", description="a file, a folder, a pattern, a hub data set or stdlib, or several of them"
    )
    field: str = "text"
    skip_unreadable: bool = False
    min_tokens: Length | None = None
    join: bool = False
    mask_joints: bool = True
    held_out: Share = 0.1
    retrieval: Share = 0.0
    near_labels: Share = 1.0
    control_tokens: Literal["text", "tokens"] = "text"
    streaming: bool = False
    buffer: int = Field(default=100, ge=1)


class FullTuning(StrictModel):
    """Train every parameter."""

    kind: Literal["full"] = "full"


class LowRankTuning(StrictModel):
    """Train low-rank additions to the linear layers; they are merged into the weights at the end.

    Attributes:
        kind: where the weights that they are added to are.
        rank: rank of each addition.
        alpha: scale of the additions over `rank`; by default twice the rank.
        dropout: share of inputs dropped on the low-rank path.
        target_modules: names of the linear layers; by default all of the decoder.
        train_norms: trains the norms too, in full.
        train_embeddings: trains the embeddings (and the head) too, in full.

    Source: LongLoRA (arXiv 2309.12307) on training norms and embeddings beside the additions.
    """

    kind: str
    rank: int = Field(default=64, ge=1)
    alpha: float | None = Field(default=None, gt=0)
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    target_modules: list[str] | None = None
    train_norms: bool = False
    train_embeddings: bool = False


class LoraTuning(LowRankTuning):
    """Low-rank additions to weights in the run's own dtype."""

    kind: Literal["lora"] = "lora"  # pyright: ignore[reportIncompatibleVariableOverride] - frozen


class QloraTuning(LowRankTuning):
    """Low-rank additions to weights in 4 bits, by the package bitsandbytes; the model at the end is in full precision.

    Attributes:
        quant: the 16 values that a weight may have in its block of 64: `nf4` has them where normal numbers are, `fp4`
            as a float of 4 bits does.
        double_quant: the scales of the blocks are in 8 bits themselves.

    Source: QLoRA (arXiv 2305.14314), section 3.
    """

    kind: Literal["qlora"] = "qlora"  # pyright: ignore[reportIncompatibleVariableOverride] - frozen
    quant: Literal["nf4", "fp4"] = "nf4"
    double_quant: bool = True


Tuning = FullTuning | LoraTuning | QloraTuning
"""Which parameters are trained, and over what."""


class GrowthConfig(StrictModel):
    """What is larger in the last steps of a run: the training window, still with skips, or how far skips reach.

    Skip-wise training never shows a query more keys than the window holds; some wider steps at the end teach attention
    to stay sharp among more of them. A step keeps its tokens: one wide window takes the place of as many short ones,
    down to one at a time on each device, or with `keep_tokens` to one a step.

    Attributes:
        window: training window of those steps: tokens, or `4x` for four times the run's own; never beyond the target.
        target: how far skips reach in those steps, likewise; by default the run's target. The interpolation is that of
            the run's target throughout.
        sampler: fields of the sampler that are others in those steps, such as `{chunks: 3}`.
        share: which last share of the steps it is used for, unless a later stage takes over; 1 for all steps.
    """

    window: GrownWindow = "1x"
    target: GrownWindow | None = None
    sampler: dict[str, Any] = {}
    share: float = Field(default=0.1, gt=0.0, le=1.0)

    @property
    def changes_nothing(self) -> bool:
        """Whether these steps are as the run's own are."""
        return self.window == "1x" and self.target is None and not self.sampler

    def lengths(self, window: Window) -> Window:
        """The lengths of these steps, in a run of those lengths.

        Raises:
            PositionError: they contradict each other.
        """
        target = window.target if self.target is None else _tokens(self.target, window)
        return dataclasses.replace(window, train=_tokens(self.window, window), target=target)


class ValidationConfig(StrictModel):
    """Perplexity of the same last tokens with growing left context, on held-out documents, while training.

    Attributes:
        lengths: context lengths; by default the original window and doublings of it up to the target.
        num_documents: how many held-out documents are read at each length.
        every_steps: how often between the first step and the last, before and after which it always is; 0 for never,
            by default after each quarter of the run.
    """

    lengths: list[Length] | None = None
    num_documents: int = Field(default=4, ge=1)
    every_steps: int | None = Field(default=None, ge=0)


class GuardConfig(StrictModel):
    """What a run does about steps that go wrong: nothing is learnt from them, and too many end it.

    Attributes:
        bad_steps: so many end the run, with their items saved; under DeepSpeed, which learns from it, the first does.
        rise: a loss is bad that is no number, or by so much, in nats a token, above the median of the last ones logged.
    """

    bad_steps: int = Field(default=3, ge=1)
    rise: float = Field(default=4.0, gt=0.0)


class ParallelConfig(StrictModel):
    """How several processes share what a run trains.

    Attributes:
        context: so many processes hold each window together, a part of its tokens each, so that a window of the whole
            target fits where one device has no memory for it; by default each process has windows of its own.
    """

    context: int = Field(default=1, ge=1)


class RunConfig(StrictModel):
    """One run of `extend`.

    Attributes:
        model: a folder, a hub name, a `.gguf` file, or `embedded` for the small model that comes with the package.
        recipe: a name of `skipwise.config.recipes.RECIPES`, whose settings lie under the run's own; or `auto`, by which
            `skipwise.config.recipes.resolve` chooses one.
        target: context length to extend to, in tokens.
        window: training window in tokens; by default the smaller of the original window and 2k.
        original: window that the base model was pre-trained for, in tokens, where its config does not tell: Qwen3's
            says 40960 where it was 32768. By default what the config says.
        output: folder of the extended model; by default `runs/<model>-<target>`.
        interpolation: kind and fields of the interpolation; by default what the model is scaled by already, else YaRN.
        sampler: kind and fields of the position sampler.
        data: what to train on.
        tuning: which parameters are trained.
        growth: larger windows for the last steps, in the order that they take over; none by default.
        keep_tokens: a step of grown windows has no more tokens than others even where one window is more than a device
            takes at a time; some of its batches are then empty. Not where processes hold a model or windows together.
        short_steps: share of the steps, spread evenly, whose windows are the base model's own: without skips, from the
            beginnings of documents and from anywhere in them. They keep what the model could do before.
        dilution: lets each key of an earlier chunk count for all that its skip leaves out, so that attention learns to
            find its way among as many keys as the target has (see `skipwise.loss.diluted_mask`). Best with text that is
            as far apart as its positions: `sampler: {kind: pose, text: aligned, start: mixed}`.
        validation: what is measured while training.
        calibrate: chooses an attention factor for the target after training (see `skipwise.calibrate`).
        guard: what is done about steps whose loss is no number, or explodes.
        parallel: how processes share windows; what is trained does not depend on it, but for the recipe that `auto`
            chooses where windows are split.
        training: any of `transformers.TrainingArguments`. Left out, the paper's recipe: AdamW, learning rate 2e-5, 10
            warm-up steps (of few steps a tenth), 1000 steps, 64 windows a step, gradient checkpointing.
        dtype: of the parameters while they are trained: `float32`, `bfloat16`, `float16`, or `auto` for the
            checkpoint's own.
        attention: attention implementation of the transformers library; by default the model's own choice.
        seed: source of every draw.
        trust_remote_code: runs code that a hub repository brings along.
    """

    model: str
    recipe: str = AUTO
    target: Length
    window: Length | None = None
    original: Length | None = None
    output: str | None = None
    interpolation: dict[str, Any] = {"kind": "yarn"}
    sampler: dict[str, Any] = {"kind": "pose"}
    data: DataConfig = DataConfig()
    tuning: Annotated[Tuning, Field(discriminator="kind")] = FullTuning()
    growth: Annotated[list[GrowthConfig], BeforeValidator(_listed)] = []
    keep_tokens: bool = False
    short_steps: float = Field(default=0.0, ge=0.0, lt=1.0)
    dilution: bool = False
    validation: ValidationConfig = ValidationConfig()
    calibrate: bool = False
    guard: GuardConfig = GuardConfig()
    parallel: ParallelConfig = ParallelConfig()
    training: dict[str, Any] = {}
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    attention: str | None = None
    seed: int = Field(default=0, ge=0)
    trust_remote_code: bool = False

    def model_post_init(self, context: Any, /) -> None:
        """Builds what the settings describe once, so that a wrong one is found before any work."""
        interpolation = self.build_interpolation()
        if self.calibrate:
            check_carries_factor(interpolation.kind)
        self.build_sampler()
        for stage in self.growth:
            self.build_sampler(stage)
        if self.dilution and self.parallel.context > 1:
            raise ConfigError(
                f"setting 'dilution' is true and 'parallel.context' is {self.parallel.context}; diluted attention has "
                "a mask, which parts of a window cannot be given: leave one of them out"
            )
        if self.growth and self.growth[0].changes_nothing:
            raise ConfigError(
                "setting 'growth' begins with a stage that changes nothing; give it a window, target or sampler, such "
                "as `window: 4x`"
            )
        shares = [stage.share for stage in self.growth]
        if any(later >= earlier for earlier, later in itertools.pairwise(shares)):
            raise ConfigError(
                f"setting 'growth' has the shares {shares}; each stage takes over for the last share of the steps, so "
                "give them falling"
            )

    def build_interpolation(self) -> Interpolation:
        """The interpolation that the settings describe."""
        return interpolation_from(self.interpolation)

    def build_sampler(self, stage: GrowthConfig | None = None) -> PositionSampler:
        """The position sampler that the settings describe, or its variant in a stage of growth."""
        changed = {} if stage is None else {"sampler": stage.sampler}
        return sampler_from(merge_settings({"sampler": self.sampler}, changed)["sampler"])

    def over(self, below: Mapping[str, Any]) -> "RunConfig":
        """The run's own settings over those below, as `merge_settings` lays them.

        Raises:
            ConfigError: the two do not go together.
        """
        return RunConfig.from_mapping(merge_settings(below, self.given_settings()))

    def with_data(self, **changes: Any) -> "RunConfig":
        """The run with other settings of its documents."""
        return self.model_copy(update={"data": self.data.model_copy(update=changes)})

    def given_settings(self) -> dict[str, Any]:
        """The settings that were given, of documents the single ones, as a recipe has some of these too.

        Others are whole: what a variant is told by is a default of its own. Without a recipe that is left open.
        """
        given = {name: value for name, value in self.model_dump().items() if name in self.model_fields_set}
        if self.recipe == AUTO:
            given.pop("recipe", None)
        return given | {name: self.data.model_dump(exclude_unset=True) for name in given if name == "data"}

    @property
    def output_folder(self) -> Path:
        """Where the extended model goes."""
        name = Path(self.model.rstrip("/")).name.removesuffix(".gguf")
        return Path(self.output or f"runs/{name}-{length_label(self.target)}")

    def resolve_window(self, original: int) -> Window:
        """The three lengths of the run, given the original window of the model in tokens.

        Raises:
            ConfigError: the target is no longer than that.
            PositionError: the training window is longer than the target, or too short.
        """
        if self.target <= original:
            raise ConfigError(
                f"target is {self.target} tokens and the model already handles {original}: give a target above that"
            )
        return Window(train=self.window or min(original, 2048), original=original, target=self.target)

    @classmethod
    def from_mapping(cls, settings: Mapping[str, Any]) -> "RunConfig":
        """Checks settings as YAML gives them.

        Raises:
            ConfigError: on the first setting that is unknown, missing or out of range, with the nearest name.
        """
        settings = _over_recipe(with_kinds(settings))
        try:
            return cls.model_validate(settings)
        except ValidationError as error:
            raise ConfigError(explain(cls, error)) from None

    @classmethod
    def from_yaml(cls, path: str | Path) -> "RunConfig":
        """Reads a run's YAML file.

        Raises:
            ConfigError: as `read_settings` and `from_mapping`.
        """
        return cls.from_mapping(read_settings(path))

    def to_yaml(self) -> str:
        """The run as YAML, every default spelled out; of a run without a recipe yet, what its recipe is chosen by."""
        return yaml.safe_dump(self.given_settings() if self.recipe == AUTO else self.model_dump(), sort_keys=False)


def _over_recipe(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings over those of their recipe."""
    name = settings.get("recipe", AUTO)
    if name == AUTO:
        return settings
    if name not in list(RECIPES):  # A dict cannot be asked for what has no hash, such as a list.
        known = [*RECIPES, AUTO]
        raise ConfigError(f"setting 'recipe' is {name!r}; {did_you_mean(name, known)}known: {', '.join(known)}")
    return merge_settings(RECIPES[name], settings)
