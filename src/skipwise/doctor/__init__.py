"""The preflight: a few tiny forward and backward passes that show whether skip-wise training works on this model.

Skip-wise training can fail silently. If the chunks cannot attend to each other, if the model ignores positions, or if
the scaling did not reach the rotary tables, the loss looks normal but nothing is learned. This depends on the model
class, the attention backend and the installed versions. It is therefore measured on the user's own setup.

    bench.py       the model under test, and the passes that probes are made of
    chunks.py      probes of what the chunks see of each other, and of what positions do
    layers.py      the probe of what the chunks see of each other in every layer
    checkpoint.py  probes of rotary tables, of the loss, and of saving and loading again
    slice.py       what is said of a model of which only the first layers were run
    checkup.py     faults in the files of a checkpoint that others made, and a fixed copy
    patient.py     these files while they are looked at and fixed
    file_checks.py one check a fault
"""

import gc
import os
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from skipwise.allocator import give_back_free_memory
from skipwise.bars import Bar
from skipwise.doctor.bench import Bench, undisturbed
from skipwise.doctor.checkpoint import local, loss, precision, reload, tables, unapplied
from skipwise.doctor.chunks import causal, dilution, mask, positions, reach, rows, shift
from skipwise.doctor.layers import layers
from skipwise.doctor.slice import extent, whole
from skipwise.model import FourBits, check_read_as_stored, load_slice
from skipwise.names import first_line
from skipwise.records.verdict import Verdict, require_healthy
from skipwise.rope import Interpolation
from skipwise.window import Window

__all__ = ["Verdict", "doctor", "doctor_of_slice", "require_healthy"]

_PROBES = (reach, layers, mask, causal, shift, positions, rows, local, unapplied, tables, precision, loss)


def doctor(
    model: PreTrainedModel,
    window: Window,
    interpolation: Interpolation,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    gradient_checkpointing: bool = False,
    mixed_precision: torch.dtype | None = None,
    check_dilution: bool = False,
    check_reload: bool = True,
    seed: int = 0,
) -> list[Verdict]:
    """Probes whether skip-wise training can work on a model that is already extended.

    Modes, gradients, checkpointing, rotary tables and random state are restored afterwards.

    Args:
        model: built with the interpolation in its config, on the device and in the dtype that training uses.
        window: lengths of the extension, in tokens.
        interpolation: the interpolation that the model was extended with.
        tokenizer: its special tokens are not used in probes. It is saved and loaded together with the model.
        gradient_checkpointing: whether training will use gradient checkpointing; the probes then use it too.
        mixed_precision: 16-bit dtype of training's autocast; None if training does not use autocast.
        check_dilution: also probe the attention mask of diluted attention (`RunConfig.dilution`).
        check_reload: also save the model to a temporary folder and load it again.
        seed: seed of the random tokens.

    Returns:
        One verdict per probe. Probes that do not apply to the model give none (`local`, `unapplied`).
    """
    probes = (*_PROBES, *([dilution] if check_dilution else []), *([reload] if check_reload else []))
    with undisturbed(model, gradient_checkpointing=gradient_checkpointing):
        bench = Bench(model, window, interpolation, tokenizer, seed, mixed_precision)
        # None hides it where there is no terminal.
        hidden = None if os.environ.get("RANK", "0") == "0" else True
        bar = Bar(probes, desc="checking the model", unit="check", delay=2, leave=False, disable=hidden)
        return [verdict for probe in bar if (verdict := _run(probe, bench)) is not None]


def doctor_of_slice(
    source: str | Path,
    window: Window,
    interpolation: Interpolation,
    *,
    original: int | None = None,
    dtype: str | torch.dtype | None = None,
    attention: str | None = None,
    quantization: FourBits | None = None,
    trust_remote_code: bool = False,
    device: str | torch.device = "cpu",
    gradient_checkpointing: bool = False,
    mixed_precision: torch.dtype | None = None,
    check_dilution: bool = False,
    check_reload: bool = True,
    seed: int = 0,
    also: Callable[[PreTrainedModel], Verdict] | None = None,
) -> list[Verdict]:
    """Probes a model that is too large for one device: on its first layers, with a layer of every kind among them.

    The first layers are loaded, probed as by `doctor`, and freed again. The rotary tables of the whole model are
    checked too, without weights. A model that has no such slice is loaded and probed whole.

    Args:
        source, original, dtype, attention, quantization, trust_remote_code: as for `load_model`.
        window: lengths of the extension, in tokens.
        interpolation: how the rotary tables are stretched.
        device: the device that training uses.
        gradient_checkpointing, mixed_precision, check_dilution, check_reload, seed: as for `doctor`.
        also: a further probe of the slice.

    Returns:
        The verdicts of `doctor` on the slice, and of `also`; `whole` on the whole model's tables; and `slice`, a note
        of which layers were run and what that cannot show.

    Raises:
        SkipwiseError: the model cannot be loaded, as for `load_model`, or its 4-bit weights are misread.
    """
    sliced = load_slice(
        source,
        interpolation=interpolation,
        window=window,
        original=original,
        dtype=dtype,
        attention=attention,
        quantization=quantization,
        trust_remote_code=trust_remote_code,
    )
    check_read_as_stored(sliced.model)
    verdicts = doctor(
        sliced.model.to(device),  # pyright: ignore[reportArgumentType]
        window,
        interpolation,
        tokenizer=sliced.tokenizer,
        gradient_checkpointing=gradient_checkpointing,
        mixed_precision=mixed_precision,
        check_dilution=check_dilution,
        check_reload=check_reload,
        seed=seed,
    )
    if also is not None:
        verdicts.append(also(sliced.model))
    if sliced.extent.num_layers is not None:
        verdicts.append(whole(sliced, window, interpolation))
    verdicts.append(extent(sliced))
    del sliced
    gc.collect()
    give_back_free_memory()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return verdicts


def _run(probe: Callable[[Bench], Verdict | None], bench: Bench) -> Verdict | None:
    """Runs a probe. An exception becomes a failed verdict, because training would meet the same error."""
    try:
        return probe(bench)
    except Exception as error:  # Third-party model code may raise anything.
        return Verdict(
            name=probe.__name__,
            status="fail",
            detail=f"the probe stopped with {type(error).__name__}: {first_line(error)}",
            cure="training would stop in the same way: try --set attention=eager, no gradient checkpointing or another "
            "transformers version",
        )
