"""Load the trained model for an export, in float32: of a finished run, with its adapter merged, or of a checkpoint.

An adapter that was trained on 4-bit weights fits only these weights, dequantized (`skipwise.train.quantized`). The run
has already merged it, so the run's own weights are exported.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from skipwise.config import QloraTuning
from skipwise.errors import CheckpointError, ConfigError
from skipwise.inference.origin import is_rounded, stored_tensors
from skipwise.model import load_model, named_path, original_window, read_config, rope_state, with_scaled_attention
from skipwise.names import first_line
from skipwise.records.runs import ADAPTER, Run
from skipwise.train.tuning import load_additions, merged

_ADAPTER_FILE = "adapter_config.json"
_SAME = ("kind", "theta", "original", "maximum", "factor", "attention_factor")


class Trained(NamedTuple):
    """A trained model.

    Attributes:
        model: float32, in evaluation mode, with the adapter merged in float32.
        tokenizer: the model's tokenizer.
        folder: folder of the run or checkpoint.
        base: base model of the run; None for a checkpoint that is not a run and whose base was not given.
        adapter: folder of the run's adapter; None if there is none.
        stored: dtype of the checkpoint.
        four_bit: whether the adapter was trained on 4-bit weights.
        base_weight: share of the base model in a weighted mean (`skipwise.export.merging`); None if it is no mean.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    folder: Path
    base: str | None
    adapter: Path | None
    stored: str
    four_bit: bool = False
    base_weight: float | None = None

    @property
    def name(self) -> str:
        """For files and titles."""
        name = self.folder.name.removesuffix(".gguf")
        return name if self.base_weight is None else f"{name}-base-{self.base_weight:g}"


def load_trained(source: str | Path, *, base: str | None = None, trust_remote_code: bool = False) -> Trained:
    """Loads the trained model of a run, or a checkpoint.

    Args:
        source: the output folder of a finished run, or any checkpoint folder.
        base: where the base model is now, if it has moved since the run.
        trust_remote_code: whether to run Python code that comes with the model.

    Raises:
        ConfigError: the run is not finished, or as for `load_model`.
        CheckpointError: the base model cannot be loaded, the adapter does not fit it, or the config does not match the
            run's settings; or as for `load_model`.
        UnsupportedModelError: as for `load_model`.
    """
    folder = named_path(source)
    run = Run.open(folder)
    if run.is_begun and not run.is_finished:
        raise ConfigError(
            f"the run in {str(folder)!r} is not finished; continue it with skipwise extend --resume, then export"
        )
    config = run.config()
    trusted: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    four_bit = config is not None and isinstance(config.tuning, QloraTuning)
    if config is None or four_bit or not (folder / ADAPTER / _ADAPTER_FILE).is_file():
        loaded = load_model(source, dtype="float32", **trusted)
        named = base or (None if config is None else config.model)
        return Trained(loaded.model, loaded.tokenizer, folder, named, None, _stored(folder), four_bit)
    base = base or config.model
    try:
        trusted["original"] = config.original
        window = config.resolve_window(original_window(read_config(base, **trusted)))
        loaded = load_model(base, interpolation=config.build_interpolation(), window=window, dtype="float32", **trusted)
        del trusted["original"]
    except CheckpointError as error:
        raise CheckpointError(
            "the adapter is merged in float32 into the base model that it was trained on, but that cannot be loaded: "
            f"{error}; say where it is now with --base",
            page="wrong-base",
        ) from error
    try:
        model = merged(load_additions(loaded.model, folder / ADAPTER))
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(
            f"adapter {str(folder / ADAPTER)!r} does not fit {base!r}: {first_line(error)}; give its base "
            "model with --base",
            page="wrong-base",
        ) from error
    _check_weights(model, folder, base)
    # After calibration or a manual change, the attention factor in the run's config is the valid one.
    state = rope_state(read_config(folder, **trusted))
    if state.trained_factor is not None:
        model = with_scaled_attention(model, state.attention_scale)
    if [getattr(rope_state(model.config), name) for name in _SAME] != [getattr(state, name) for name in _SAME]:
        raise CheckpointError(
            f"config.json of {str(folder)!r} does not match {base!r} extended with the settings in run.yaml; check it "
            f"with: skipwise doctor {folder}, or give the run's own base model with --base",
            page="run-changed",
        )
    return Trained(model.eval(), loaded.tokenizer, folder, base, folder / ADAPTER, _stored(folder))


def _check_weights(model: PreTrainedModel, folder: Path, base: str) -> None:
    """Refuses a base model that does not make the run's weights with its adapter, by the first and the last matrix."""
    matrices = {name: parameter for name, parameter in model.named_parameters() if parameter.ndim > 1}
    for name, stored in stored_tensors(folder, {*[*matrices][:1], *[*matrices][-1:]}):
        if not is_rounded(stored, matrices[name].detach(), torch.float32):
            raise CheckpointError(
                f"{base!r} and the adapter of {str(folder)!r} do not make its weights ({name} differs), so it is not "
                "the model that was extended, or has changed since; name the right one with --base",
                page="wrong-base",
            )


def _stored(folder: Path) -> str:
    """The dtype that a checkpoint's config names."""
    if not (folder / "config.json").is_file():
        return "float32"
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text = config.get("text_config", {})
    return next((one[name] for one in (config, text) for name in ("dtype", "torch_dtype") if one.get(name)), "float32")
