"""Settings of one run of `extend`, validated when they are read. Unknown names are refused with the nearest known one.

model: meta-llama/Llama-2-7b-hf
target: 32k
interpolation: {kind: yarn}
sampler: {kind: pose, skips: flat}
data: {source: "pile/*.jsonl.zst", min_tokens: 2k}
tuning: {kind: lora, rank: 64, train_norms: true, train_embeddings: true}
training: {max_steps: 1000, learning_rate: 2.0e-5, bf16: true}
"""

import dataclasses
import itertools
import re
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from skipwise.config.base import Length, Share, StrictModel, as_length
from skipwise.config.loss import LossConfig
from skipwise.config.mixture import SourceConfig, check_mixture, places_of, sources_of
from skipwise.config.parallel import ParallelConfig
from skipwise.config.reading import explain, merge_settings, read_settings, with_kinds
from skipwise.config.recipes import AUTO, RECIPES
from skipwise.errors import ConfigError
from skipwise.names import did_you_mean
from skipwise.own_samplers import is_own
from skipwise.positions import PositionSampler, sampler_from
from skipwise.rope import Interpolation, check_carries_factor, interpolation_from
from skipwise.window import Window, length_label

_TIMES = re.compile(r"(\d+(?:\.\d+)?)x")


def _length_or_times(value: Any) -> Any:
    if isinstance(value, str) and _TIMES.fullmatch(value.strip()):
        return value.strip()
    return as_length(value)


GrownWindow = Annotated[int | str, BeforeValidator(_length_or_times)]
"""A number of tokens, or a multiple of the training window such as `4x`."""


def _tokens(given: int | str, window: Window) -> int:
    """A `GrownWindow` in tokens."""
    if isinstance(given, int):
        return given
    return min(window.target, round(float(given.removesuffix("x")) * window.train))


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, Mapping) else value


class DataConfig(StrictModel):
    """The documents to train on.

    Attributes:
        source: a file, a folder, a glob pattern, a hub data set or `stdlib` (the Python sources of the running
            interpreter), or a list of these. With `mixture` it is left out.
        mixture: several sources, each with its weight. Settings that an entry leaves out are those given here. `data:
            [...]` is short for `data: {mixture: [...]}`.
        format: what records hold. `conversations` are `messages` in OpenAI's format or `conversations` in ShareGPT's.
            The model's chat template formats them, and only the assistant's turns are labels. `auto` looks at the first
            records.
        field: field of a record with its text or messages, in JSON, JSON lines, CSV, Parquet and hub data sets. `a.b`
            is field `b` of field `a`.
        skip_unreadable: skips files and records that cannot be read, and counts them in the run's record. Otherwise the
            run reports all of them and stops. A null or empty row counts as empty, not as unreadable.
        min_tokens: minimum length of a document. Shorter ones are dropped, or with `join` joined. By default the
            training window.
        join: joins short documents until they are long enough. By default conversations are joined and texts are not.
        skips_at: where skips fall in conversations. `turns` moves a skip to the beginning of a turn, if one is within a
            quarter of a window, so that the turn stays whole. Windows begin at a turn in either case.
        mask_joints: leaves the first token of a chunk out of the loss, unless the token before it in the window is also
            the one before it in the text.
        held_out: share of documents, chosen by their text, that is held out of training for validation. If they are too
            short for validation, the end of the longest other document is held out too.
        retrieval: share of windows that are generated retrieval exercises instead of text from documents.
        retrieval_language: code of the language of the exercises: `en`, `de`, `fr`, `es`, `ja`, `zh` or `ko`.
        near_labels: share of the labels that is kept in all chunks before the last. The last chunk has the most distant
            context, so a value below 1 gives distant context more weight in the loss.
        control_tokens: how the text of a control token, such as `<|im_end|>` written in a document, is tokenized: as
            ordinary text, or as the control token, for corpora written for this tokenizer.
        streaming: reads Parquet files or hub data sets during training instead of tokenizing them first, for corpora
            larger than the disk.
        buffer: with `streaming`, number of consecutive documents that are shuffled together. Each window of a step
            keeps so many in memory.
    """

    source: str | list[str] = Field(
        default="stdlib", description="a file, a folder, a pattern, a hub data set or stdlib, or several of them"
    )
    mixture: list[SourceConfig] = Field(default=[])
    format: Literal["auto", "text", "conversations"] = "auto"
    field: str = "text"
    skip_unreadable: bool = False
    min_tokens: Length | None = None
    join: bool | None = None
    skips_at: Literal["turns", "anywhere"] = "turns"
    mask_joints: bool = True
    held_out: Share = 0.1
    retrieval: Share = 0.0
    retrieval_language: str = "en"
    near_labels: Share = 1.0
    control_tokens: Literal["text", "tokens"] = "text"
    streaming: bool = False
    buffer: int = Field(default=100, ge=1)

    _check_mixture = field_validator("mixture", mode="wrap")(check_mixture)

    @model_validator(mode="before")
    @classmethod
    def _with_sources_of_mixture(cls, given: Any) -> Any:
        """Sets `source` to the sources of all entries, for whoever asks only where documents come from."""
        mixture = given.get("mixture") if isinstance(given, Mapping) else None
        if not isinstance(mixture, list) or not mixture:
            return given
        sources = [source for entry in mixture for source in sources_of(entry)]
        if given.get("source", sources) != sources:
            raise ConfigError(
                f"settings 'data.source' ({given['source']!r}) and 'data.mixture' are both given; give one of them"
            )
        return {**given, "source": sources}

    def model_post_init(self, context: Any, /) -> None:
        """Refuses a mixture that is streamed."""
        if self.mixture and self.streaming:
            raise ConfigError(
                "settings 'data.mixture' and 'data.streaming' are both given; shares are exact for stored documents "
                "only: leave streaming out, or stream a single source"
            )

    @property
    def replay_share(self) -> Fraction:
        """Share of the run's tokens that replay entries of the mixture have."""
        replay = sum((entry.exact_weight for entry in self.mixture if entry.replay), Fraction(0))
        return replay and replay / sum(entry.exact_weight for entry in self.mixture)

    def entries(self) -> list["DataConfig"]:
        """The settings of each source: of each entry of the mixture that has one; without a mixture, these."""
        if not self.mixture:
            return [self]
        own = [entry.settings() for entry in self.mixture if entry.source is not None]
        return [self.model_copy(update={"mixture": [], **settings}) for settings in own]

    def of_source(self, source: str | list[str]) -> "DataConfig | None":
        """The settings of the entry that has a source, or these without a mixture; None if it is another source."""
        wanted = places_of(source)
        own = next((own for own in self.entries() if wanted <= places_of(own.source)), None)
        return own and own.model_copy(update={"source": source})

    def measured_on(self, source: str | list[str] | None = None) -> "DataConfig":
        """The settings to measure on documents of any length: these, or those of one entry or of another source."""
        found = self
        if source not in (None, self.source):
            other = {"source": source, "format": "auto", "mixture": []}
            found = self.of_source(source) or self.model_copy(update=other)
        entries = [entry.model_copy(update={"min_tokens": None}) for entry in found.mixture]
        return found.model_copy(update={"min_tokens": None, "streaming": False, "mixture": entries})

    def without_replay(self) -> "DataConfig":
        """The same without the replay entries of the mixture."""
        if not self.mixture:
            return self
        kept = [entry for entry in self.mixture if not entry.replay]
        sources = [source for entry in kept for source in sources_of(entry)]
        return self.model_copy(update={"mixture": kept, "source": sources})


class FullTuning(StrictModel):
    """Train every parameter."""

    kind: Literal["full"] = "full"


class LowRankTuning(StrictModel):
    """Train a LoRA adapter on the linear layers. It is merged into the weights at the end.

    Attributes:
        kind: dtype of the weights under the adapter: the run's (`lora`) or 4 bits (`qlora`).
        rank: LoRA rank.
        alpha: LoRA alpha: the adapter is multiplied by `alpha / rank`. By default twice the rank.
        dropout: dropout of the adapter's inputs.
        target_modules: names of the linear layers that get an adapter. By default all linear layers of the decoder.
        train_norms: also trains the norms, with all their parameters.
        train_embeddings: also trains embeddings and output head, with all their parameters.

    Source: LongLoRA (arXiv 2309.12307) on norms and embeddings.
    """

    kind: str
    rank: int = Field(default=64, ge=1)
    alpha: float | None = Field(default=None, gt=0)
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    target_modules: list[str] | None = None
    train_norms: bool = False
    train_embeddings: bool = False


class LoraTuning(LowRankTuning):
    """Train a LoRA adapter over weights in the run's own dtype. It is merged into the weights at the end."""

    kind: Literal["lora"] = "lora"  # pyright: ignore[reportIncompatibleVariableOverride] - frozen


class QloraTuning(LowRankTuning):
    """Train a LoRA adapter over weights in 4 bits (bitsandbytes). The final model is in full precision.

    Attributes:
        quant: number format of the 4-bit weights: quantiles of a normal distribution (`nf4`) or 4-bit floats (`fp4`).
        double_quant: also quantizes the scales of the weight blocks, to 8 bits.

    Source: QLoRA (arXiv 2305.14314), section 3.
    """

    kind: Literal["qlora"] = "qlora"  # pyright: ignore[reportIncompatibleVariableOverride] - frozen
    quant: Literal["nf4", "fp4"] = "nf4"
    double_quant: bool = True


Tuning = FullTuning | LoraTuning | QloraTuning
"""Which parameters are trained."""


class GrowthConfig(StrictModel):
    """A stage of growth: the last steps of a run train on longer windows or with farther skips.

    In skip-wise training a query never sees more keys than the window holds. A few longer windows at the end teach
    attention to stay sharp among more keys. Tokens per step stay the same: one long window replaces several short ones,
    down to one per device, or with `keep_tokens` to one per step.

    Attributes:
        window: length of a training window in these steps, at most the target.
        target: target of the skips in these steps. By default the run's. The interpolation stays that of the run's
            target.
        sampler: settings of the sampler that differ in these steps, such as `{chunks: 3}`.
        share: where the stage begins: when this share of the run's steps is left. It ends where the next stage begins,
            so shares must fall from stage to stage.
    """

    window: GrownWindow = "1x"
    target: GrownWindow | None = None
    sampler: dict[str, Any] = Field(default={})
    share: float = Field(default=0.1, gt=0.0, le=1.0)

    @property
    def changes_nothing(self) -> bool:
        """Whether these steps are like the run's own."""
        return self.window == "1x" and self.target is None and not self.sampler

    def lengths(self, window: Window) -> Window:
        """The lengths of these steps, given the run's.

        Raises:
            PositionError: they contradict each other.
        """
        target = window.target if self.target is None else _tokens(self.target, window)
        return dataclasses.replace(window, train=_tokens(self.window, window), target=target)


class ValidationConfig(StrictModel):
    """Validation during training: perplexity of the last tokens of held-out documents, the same ones for each length.

    Attributes:
        lengths: context lengths. By default the original window and its doublings up to the target.
        num_documents: number of held-out documents per length.
        every_steps: number of steps from one validation to the next. Validation also runs before the first and after
            the last step; 0 means only then. By default a quarter of the run.
    """

    lengths: list[Length] | None = None
    num_documents: int = Field(default=4, ge=1)
    every_steps: int | None = Field(default=None, ge=0)


class GuardConfig(StrictModel):
    """What happens at a bad step: the optimizer skips it, and too many of them end the run.

    Attributes:
        bad_steps: number of bad steps after which the run stops. Their items are listed in `bad-items.json`. DeepSpeed
            cannot skip a step, so its first bad step stops the run.
        rise: a step is bad if its loss is this far above the median of recent steps, in nats per token. It is also bad
            if its loss or gradient is not finite.
    """

    bad_steps: int = Field(default=3, ge=1)
    rise: float = Field(default=4.0, gt=0.0)


class RunConfig(StrictModel):
    """One run of `extend`.

    Attributes:
        model: a folder, a hub name, a `.gguf` file, or `embedded` for the small model of the package.
        recipe: a named set of settings. Settings that the run gives itself override it. `auto` chooses by model and
            documents.
        target: window to extend to.
        window: length of a training window. By default the original window, at most 2k.
        original: window that the base model was pre-trained for, if its config does not say it (Qwen3's says 40960, but
            it was 32768).
        output: folder of the extended model. By default `runs/<model>-<target>`.
        interpolation: how rotary frequencies change. By default the model's own interpolation, else YaRN.
        sampler: how positions skip in a training window, and with which text; or `FILE.py:CLASS`, a sampler of yours.
        data: what to train on: settings, or a list of sources with weights.
        tuning: which parameters are trained. By default all of them.
        growth: stages with longer windows for the last steps, in order. By default none.
        keep_tokens: keeps the number of tokens of a step while windows grow, even if one window has more tokens than a
            device's share of a step. Some micro-batches are then empty. Not with sharded models or context parallelism.
        short_steps: share of the steps that have windows of the original length without skips. They are evenly spaced
            and preserve short-context quality. Not together with `replay` entries of a mixture, which do the same.
        dilution: diluted attention: a key of an earlier chunk also stands for the keys that the skip leaves out, so
            that attention learns to cope with as many keys as the target has. It works best with text aligned to
            positions: `sampler: {kind: pose, text: aligned, start: mixed}`.
        loss: what is added to the next-token loss. By default nothing.
        validation: what is measured during training.
        calibrate: chooses an attention factor for the target after training, as `skipwise calibrate` does.
        guard: what happens at steps whose loss is not finite or explodes.
        parallel: how processes share windows. It does not change what is trained, except that `auto` chooses the recipe
            `paper` with context parallelism.
        training: settings of the Trainer: any of `transformers.TrainingArguments`. Defaults are the paper's: AdamW,
            learning rate 2e-5, 10 warm-up steps, 1000 steps, 64 windows per step, gradient checkpointing.
        dtype: number format of the parameters in training. `auto` is the checkpoint's own.
        attention: attention implementation of transformers. By default the model's own choice.
        seed: seed of all random draws.
        trust_remote_code: runs Python code that comes with the model. Read that code first.
    """

    model: str
    recipe: str = AUTO
    target: Length
    window: Length | None = None
    original: Length | None = None
    output: str | None = None
    interpolation: dict[str, Any] = Field(default={"kind": "yarn"})
    sampler: dict[str, Any] = Field(default={"kind": "pose"})
    data: DataConfig = DataConfig()
    tuning: Annotated[Tuning, Field(discriminator="kind")] = FullTuning()
    growth: Annotated[list[GrowthConfig], BeforeValidator(_listed)] = Field(default=[])
    keep_tokens: bool = False
    short_steps: float = Field(default=0.0, ge=0.0, lt=1.0)
    dilution: bool = False
    loss: LossConfig = LossConfig()
    validation: ValidationConfig = ValidationConfig()
    calibrate: bool = False
    guard: GuardConfig = GuardConfig()
    parallel: ParallelConfig = ParallelConfig()
    training: dict[str, Any] = Field(default={})
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    attention: str | None = None
    seed: int = Field(default=0, ge=0)
    trust_remote_code: bool = False

    def model_post_init(self, context: Any, /) -> None:
        """Builds everything once, so that wrong settings are found before any work."""
        interpolation = self.build_interpolation()
        if self.calibrate:
            check_carries_factor(interpolation.kind)
        for stage in (None, *self.growth):
            # This class also reads records of runs elsewhere, and must not run the code that they name.
            if not is_own(self._sampler_settings(stage).get("kind")):
                self.build_sampler(stage)
        if self.short_steps and self.data.replay_share:
            raise ConfigError(
                f"setting 'short_steps' is {self.short_steps:g} and 'data.mixture' has replay, which takes its place; "
                "leave short_steps out"
            )
        if self.dilution and self.parallel.context > 1:
            raise ConfigError(
                f"setting 'dilution' is true and 'parallel.context' is {self.parallel.context}; diluted attention has "
                "a mask, which parts of a window cannot be given: leave one of them out",
                page="parallel-run",
            )
        self.parallel.check(calibrate=self.calibrate, training=self.training)
        self.loss.check(context=self.parallel.context, streaming=self.data.streaming)
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
        """Builds the interpolation."""
        return interpolation_from(self.interpolation)

    def build_sampler(self, stage: GrowthConfig | None = None) -> PositionSampler:
        """Builds the position sampler, or its variant in a stage of growth; imports a sampler of the user's own."""
        return sampler_from(self._sampler_settings(stage))

    def _sampler_settings(self, stage: GrowthConfig | None) -> dict[str, Any]:
        changed = {} if stage is None else {"sampler": stage.sampler}
        return merge_settings({"sampler": self.sampler}, changed)["sampler"]

    @property
    def short_share(self) -> Fraction | float:
        """Share of the steps that are short: by `short_steps`, or the replay of a mixture."""
        return self.short_steps or self.data.replay_share

    def over(self, below: Mapping[str, Any]) -> "RunConfig":
        """The run with these settings below its own, as in `merge_settings`.

        Raises:
            ConfigError: the two contradict each other.
        """
        return RunConfig.from_mapping(merge_settings(below, self.given_settings()))

    def with_data(self, **changes: Any) -> "RunConfig":
        """The run with changed settings of its documents."""
        return self.model_copy(update={"data": self.data.model_copy(update=changes)})

    def without_short_steps(self) -> "RunConfig":
        """The run without `short_steps` and replay."""
        return self.model_copy(update={"short_steps": 0.0, "data": self.data.without_replay()})

    def given_settings(self) -> dict[str, Any]:
        """The settings that were given explicitly; a recipe of `auto` is left out.

        Within `data` only the given ones, since recipes set some of them. Other groups are complete, since their `kind`
        may be a default.
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
        """The three lengths of the run.

        Args:
            original: original window of the model, in tokens.

        Raises:
            ConfigError: the target is not longer than that.
            PositionError: the training window is longer than the target, or too short.
        """
        if self.target <= original:
            raise ConfigError(
                f"target is {self.target} tokens and the model already handles {original}: give a target above that",
                page="target-not-longer",
            )
        return Window(train=self.window or min(original, 2048), original=original, target=self.target)

    @classmethod
    def from_mapping(cls, settings: Mapping[str, Any]) -> "RunConfig":
        """Checks settings as read from YAML.

        Raises:
            ConfigError: settings are unknown, missing or out of range; the message names the nearest known ones.
        """
        settings = _over_recipe(with_kinds(settings))
        try:
            return cls.model_validate(settings)
        except ValidationError as error:
            raise ConfigError(explain(cls, error)) from None

    @classmethod
    def from_yaml(cls, path: str | Path) -> "RunConfig":
        """Reads a run's YAML file; raises ConfigError as `read_settings` and `from_mapping`."""
        return cls.from_mapping(read_settings(path))

    def to_yaml(self) -> str:
        """The run as YAML with all defaults. With recipe `auto` only the given settings: the choice depends on them."""
        return yaml.safe_dump(self.given_settings() if self.recipe == AUTO else self.model_dump(), sort_keys=False)


def _over_recipe(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings, with those of their recipe below them."""
    name = settings.get("recipe", AUTO)
    if name == AUTO:
        return settings
    if name not in list(RECIPES):  # A list, since `name` may be unhashable.
        known = [*RECIPES, AUTO]
        raise ConfigError(f"setting 'recipe' is {name!r}; {did_you_mean(name, known)}known: {', '.join(known)}")
    return merge_settings(RECIPES[name], settings)
