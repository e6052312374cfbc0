"""The preflight: a few tiny forward passes that prove, or disprove, that skip-wise training works on this very model.

Skip-wise training fails silently: where the chunks cannot see each other, or the positions are ignored, or the scaling
never reached the rotary tables, the loss looks normal and nothing is learnt. Whether that happens depends on the model
class, the attention backend and the installed versions, so it is measured on the user's own, never assumed.

    bench.py       the model under test, and the passes that probes are made of
    chunks.py      probes of what the chunks see of each other, and of what positions do
    layers.py      the probe of what the chunks see of each other in every layer
    checkpoint.py  probes of rotary tables, of the loss, and of saving and loading again
    checkup.py     faults in the files of a checkpoint that others made, and a mended copy
    patient.py     these files while they are looked at and mended
    file_checks.py one check a fault
"""

from collections.abc import Callable

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from skipwise.doctor.bench import Bench, undisturbed
from skipwise.doctor.checkpoint import local, loss, precision, reload, tables, unapplied
from skipwise.doctor.chunks import causal, dilution, mask, positions, reach, rows, shift
from skipwise.doctor.layers import layers
from skipwise.records.verdict import Verdict, require_healthy
from skipwise.rope import Interpolation
from skipwise.window import Window

__all__ = ["Verdict", "doctor", "require_healthy"]

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

    Modes, gradients, checkpointing, rotary tables and random state are afterwards as they were.

    Args:
        model: built with the interpolation in its config, on the device and in the dtype that training uses.
        window: lengths of the extension, in tokens.
        interpolation: what the model was extended by.
        tokenizer: names the special tokens to avoid, and is saved and loaded again with the model.
        gradient_checkpointing: probe with it, as training will run.
        mixed_precision: 16-bit type that training computes in by autocast; None where it has none.
        check_dilution: also probe the mask of diluted attention, as `RunConfig.dilution` has it used.
        check_reload: also save to a temporary folder and load again.
        seed: of the random tokens.

    Returns:
        The verdicts, one a probe; the probe of local attention has none for a model without it.
    """
    probes = (*_PROBES, *([dilution] if check_dilution else []), *([reload] if check_reload else []))
    with undisturbed(model, gradient_checkpointing=gradient_checkpointing):
        bench = Bench(model, window, interpolation, tokenizer, seed, mixed_precision)
        return [verdict for probe in probes if (verdict := _run(probe, bench)) is not None]


def _run(probe: Callable[[Bench], Verdict | None], bench: Bench) -> Verdict | None:
    """A pass that cannot even be made is a verdict as well: training would meet the same error."""
    try:
        return probe(bench)
    except Exception as error:  # The model's code is anyone's and may raise anything.
        message = next(iter(str(error).strip().splitlines()), "no message")
        return Verdict(
            name=probe.__name__,
            status="fail",
            detail=f"the probe stopped with {type(error).__name__}: {message[:200]}",
            cure="training would stop alike: try --attention eager, no checkpointing, or another transformers version",
        )
