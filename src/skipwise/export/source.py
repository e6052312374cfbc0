"""The trained model that an export is made of, in float32: a finished run's, low-rank additions merged, or a
checkpoint's.

Additions that were trained over weights in 4 bits belong to these, dequantized (`skipwise.train.quantized`): such a run
has merged them so itself, and its own weights are what is exported.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from skipwise.config import QloraTuning
from skipwise.errors import CheckpointError, ConfigError
from skipwise.model import load_model, named_path, original_window, read_config, rope_state, with_scaled_attention
from skipwise.records.runs import ADAPTER, Run
from skipwise.train.tuning import load_additions, merged

_ADAPTER_FILE = "adapter_config.json"
_SAME = ("kind", "theta", "original", "maximum", "factor", "attention_factor")


class Trained(NamedTuple):
    """A trained model.

    Attributes:
        model: float32, in evaluation mode, additions merged in float32.
        tokenizer: that goes with it.
        folder: of the run or checkpoint.
        base: that the run extended; None for a checkpoint that is no run and whose base was not given.
        adapter: folder of the low-rank additions to the base; None where there are none.
        stored: dtype of the checkpoint.
        four_bit: whether it was trained as additions to weights in 4 bits.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    folder: Path
    base: str | None
    adapter: Path | None
    stored: str
    four_bit: bool = False


def load_trained(source: str | Path, *, base: str | None = None, trust_remote_code: bool = False) -> Trained:
    """Loads what a run has trained.

    Args:
        source: the output folder of a finished run, or any checkpoint folder.
        base: where the base model is now, if it is not where the run found it.
        trust_remote_code: run Python code that comes with the model.

    Raises:
        ConfigError: the run is not finished.
        CheckpointError, UnsupportedModelError, ConfigError: as `load_model`.
    """
    folder = named_path(source)
    run = Run.open(folder)
    if run.is_begun and not run.is_finished:
        raise ConfigError(
            f"the run in {str(folder)!r} is not finished; go on with skipwise extend --resume, export afterwards"
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
            "additions are merged in float32 into the base model that they were trained on, and that cannot be "
            f"loaded: {error}; say where it is now with --base"
        ) from error
    try:
        model = merged(load_additions(loaded.model, folder / ADAPTER))
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(
            f"adapter {str(folder / ADAPTER)!r} does not fit {base!r}: {str(error).splitlines()[0]}; give its base "
            "with --base"
        ) from error
    # Calibrated, or given another factor by hand: the run's config is what is in force.
    state = rope_state(read_config(folder, **trusted))
    if state.trained_factor is not None:
        model = with_scaled_attention(model, state.attention_scale)
    if [getattr(rope_state(model.config), name) for name in _SAME] != [getattr(state, name) for name in _SAME]:
        raise CheckpointError(
            f"config.json of {str(folder)!r} does not say what its run.yaml makes of {base!r}; look with: skipwise "
            f"doctor {folder}, or give the run's own base with --base"
        )
    return Trained(model.eval(), loaded.tokenizer, folder, base, folder / ADAPTER, _stored(folder))


def _stored(folder: Path) -> str:
    """The dtype that a checkpoint's config names."""
    if not (folder / "config.json").is_file():
        return "float32"
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text = config.get("text_config", {})
    return next((one[name] for one in (config, text) for name in ("dtype", "torch_dtype") if one.get(name)), "float32")
