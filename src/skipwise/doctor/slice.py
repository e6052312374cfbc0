"""What is said of a model of which only the first layers were run: how many of each kind, and the tables of all."""

from collections import Counter

from skipwise.doctor.checkpoint import compare_tables
from skipwise.model import Slice
from skipwise.model.library import built_tables
from skipwise.model.rotary import text_config
from skipwise.names import first_line
from skipwise.records.verdict import Verdict, judge
from skipwise.rope import Interpolation
from skipwise.window import Window


def extent(sliced: Slice) -> Verdict:
    """Says which layers were run, and what probes of a slice cannot show."""
    kinds, num_layers, reason = sliced.extent
    if num_layers is None:
        return Verdict(name="slice", status="note", detail=f"the whole model was run, since {reason}")
    run, whole = Counter(kinds[:num_layers]), Counter(kinds)
    named = ", ".join(f"{run[kind]} of {whole[kind]}{f' {kind}' if kind else ' alike'}" for kind in whole)
    detail = (
        f"{num_layers} of {len(kinds)} layers were run ({named}); nothing is known of the weights of the others, of "
        "whether they can be saved and loaded, and of rounding that grows with the number of layers"
    )
    return Verdict(name="slice", status="note", detail=detail)


def whole(sliced: Slice, window: Window, interpolation: Interpolation) -> Verdict:
    """Checks the rotary tables of the whole model, built from its config without weights."""
    model, config = type(sliced.model), sliced.config
    cure = f"the interpolation does not reach every layer of {model.__name__}: report it, and train another model"
    try:
        found = built_tables(lambda: model(config), window.target)
    except Exception as error:  # Third-party model code may raise anything.
        detail = f"without weights, the whole {model.__name__} stops with {type(error).__name__}: {first_line(error)}"
        return Verdict(name="whole", status="fail", detail=detail, cure="try another transformers version")
    faults, fine = compare_tables(found, text_config(config), interpolation, window)
    return judge("whole", not faults, faults or f"without weights: {fine}", cure)
