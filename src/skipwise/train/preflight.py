"""The probes of `doctor` on a model as a run would load and train it, without the run."""

from accelerate import PartialState
from transformers import PreTrainedConfig

from skipwise.config import RunConfig
from skipwise.doctor import Verdict, doctor, doctor_of_slice
from skipwise.model import LoadedModel, check_read_as_stored, load_model
from skipwise.model.source import locate
from skipwise.model.tokenizer import has_tokenizer
from skipwise.train.arguments import CHECKPOINTING, mixed_precision, training_arguments, training_settings
from skipwise.train.quantized import quantization_of
from skipwise.window import Window


def load_as_trained(run: RunConfig, window: Window, model_config: PreTrainedConfig) -> LoadedModel:
    """Loads a run's model, on the device and in the dtype that it is trained in; its tokenizer may be missing.

    Raises:
        SkipwiseError: it cannot be loaded, or not as it is stored.
    """
    arguments = training_arguments(run)  # Before the device is chosen, which depends on `use_cpu`.
    loaded = load_model(
        run.model,
        needs_tokenizer=False,
        interpolation=run.build_interpolation(),
        window=window,
        original=run.original,
        dtype=run.dtype,
        attention=run.attention,
        quantization=quantization_of(run, arguments, model_config),
        trust_remote_code=run.trust_remote_code,
    )
    check_read_as_stored(loaded.model)
    loaded.model.to(PartialState().device)  # pyright: ignore[reportArgumentType]
    return loaded


def probe(loaded: LoadedModel, run: RunConfig, window: Window) -> list[Verdict]:
    """Probes a model that `load_as_trained` has loaded."""
    verdicts = doctor(
        loaded.model,
        window,
        run.build_interpolation(),
        tokenizer=loaded.tokenizer,
        gradient_checkpointing=training_settings(run)[CHECKPOINTING],
        mixed_precision=mixed_precision(training_arguments(run)),
        check_dilution=run.dilution,
        check_reload=True,
        seed=run.seed,
    )
    return [*verdicts, *_without_tokenizer(run)]


def probe_slice(run: RunConfig, window: Window, model_config: PreTrainedConfig) -> list[Verdict]:
    """Loads and probes only the first layers of a run's model, otherwise as it is trained.

    Raises:
        SkipwiseError: as `load_as_trained`.
    """
    arguments = training_arguments(run)  # Before the device is chosen, which depends on `use_cpu`.
    verdicts = doctor_of_slice(
        run.model,
        window,
        run.build_interpolation(),
        original=run.original,
        dtype=run.dtype,
        attention=run.attention,
        quantization=quantization_of(run, arguments, model_config),
        trust_remote_code=run.trust_remote_code,
        device=PartialState().device,  # pyright: ignore[reportArgumentType]
        gradient_checkpointing=training_settings(run)[CHECKPOINTING],
        mixed_precision=mixed_precision(arguments),
        check_dilution=run.dilution,
        seed=run.seed,
    )
    return [*verdicts, *_without_tokenizer(run)]


def _without_tokenizer(run: RunConfig) -> list[Verdict]:
    """A note if the model has no tokenizer; doctor needs none."""
    if has_tokenizer(locate(run.model, weights=False)):
        return []
    detail = f"{run.model} has no tokenizer, which extend needs: put its files beside config.json"
    return [Verdict(name="tokenizer", status="note", detail=detail)]
