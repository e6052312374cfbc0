"""Recipes, named sets of settings; and `resolve`, which chooses what a run leaves open.

A recipe determines positions, text and windows, not steps, learning rate or batch. Which one is best was measured on a
small model (docs/results/recipes-x16.md). A new recipe is one entry here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

from skipwise.window import Window

if TYPE_CHECKING:
    from skipwise.config.run import RunConfig

_DILUTED: Mapping[str, Any] = {
    "sampler": {"kind": "pose", "skips": "flat", "text": "aligned", "start": "mixed"},
    "dilution": True,
    "data": {"retrieval": 0.25},
}

RECIPES: Mapping[str, Mapping[str, Any]] = {
    # PoSE as in the paper (arXiv 2309.10400): all defaults.
    "paper": {},
    # Text as far apart as its positions, a quarter of it from the beginnings of documents; diluted attention; a quarter
    # of retrieval exercises; and windows that grow to a few times the training window, so that queries learn to attend
    # among more and more keys.
    "growing": {
        **_DILUTED,
        "growth": [{"window": "4x", "share": 0.7}, {"window": "8x", "share": 0.3}],
        "keep_tokens": True,
    },
    # The same without growth, so that memory is that of the training window whatever the target.
    "diluted": _DILUTED,
}

AUTO = "auto"
"""Leaves the recipe to `resolve`."""

SHOWN_AT_MOST = 16
"""If each long document would be repeated in grown windows more often than this, `resolve` chooses no growth."""

_TAKE_A_MASK = (None, "sdpa", "eager")
_MAY_BE_RESOLVED = {"recipe", "interpolation", "sampler", "growth", "keep_tokens", "dilution"}


class LongDocuments(NamedTuple):
    """The training documents of some length; of a mixture, those that would be repeated most often.

    Attributes:
        number: of documents.
        share: of the run's tokens that they have.
        source: name of the entry of the mixture; empty without one.
    """

    number: int
    share: Fraction | int = 1
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Facts about model, documents and machine that choices depend on; None if not known yet.

    Attributes:
        window: lengths of the run, in tokens.
        refuses_mask: why a layer does not apply an explicit mask; None if all do.
        interpolation: settings of the interpolation that the model already has for this target.
        own_sampler: the caller passes a position sampler.
        steps: optimizer steps of the run.
        step_windows: training windows per step, over all processes.
        long_documents: the training documents with at least that many tokens.
        shortest_exercise: tokens of the shortest retrieval exercise.
    """

    window: Window
    refuses_mask: str | None = None
    interpolation: Mapping[str, Any] | None = None
    own_sampler: bool = False
    steps: int
    step_windows: int
    long_documents: Callable[[int], LongDocuments] | None = None
    shortest_exercise: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """A run with everything chosen.

    Attributes:
        config: the run.
        reasons: each choice and its reason, one line each.
        warnings: doubtful settings that were asked for, one line each.
    """

    config: "RunConfig"
    reasons: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def resolve(given: "RunConfig", facts: Facts) -> Resolved:
    """Chooses what a run leaves open: recipe, exercises and interpolation. Given settings are kept.

    Args:
        given: the run as asked for.
        facts: about its model and documents; unknown ones are assumed to be favourable.
    """
    chosen: dict[str, Any] = {}
    reasons: list[str] = []
    if given.recipe == AUTO:
        chosen["recipe"], why = _recipe(given, facts)
        reasons.append(f"recipe: {chosen['recipe']}, {why}")
        if own := _own_sampler_fields(given, chosen["recipe"]):
            reasons.append(f"sampler: that of the recipe {chosen['recipe']}, with {own} as given")
        if exercises := _exercises(given, facts, chosen["recipe"]):
            share, line = exercises
            chosen["data"] = {"retrieval": share}
            reasons.append(line)
    else:
        reasons.append(f"recipe: {given.recipe}, as asked for")
    if "interpolation" not in given.model_fields_set:
        chosen["interpolation"], why = _interpolation(given, facts)
        reasons.append(f"interpolation: {chosen['interpolation']['kind']}, {why}")
    if facts.long_documents is not None and "source" not in given.data.model_fields_set:
        reasons.append(f"data: {given.data.source} (Python's own source files), because none is given")
    config = given.over(chosen)
    warnings = (_told_of_few_documents(config, facts),)
    return Resolved(config=config, reasons=tuple(reasons), warnings=tuple(filter(None, warnings)))


def as_begun(given: "RunConfig", begun: "RunConfig") -> "RunConfig":
    """A resumed run: what it leaves open is as it was resolved when the run began.

    Args:
        given: the run as asked for now.
        begun: the run as resolved then.
    """
    data = begun.data.model_dump(include={"retrieval", "control_tokens", "format"})
    # Without a named recipe, given fields of a sampler override those of the chosen recipe.
    left_open = _MAY_BE_RESOLVED - given.model_fields_set | ({"recipe", "sampler"} if given.recipe == AUTO else set())
    return given.over(begun.model_dump(include=left_open) | {"data": data})


def _recipe(given: "RunConfig", facts: Facts) -> tuple[str, str]:
    """The recipe of a run that names none, and the reason."""
    if why := _why_papers(given, facts):
        return "paper", f"without diluted attention, growth of its own and exercises: {why}"
    if "growth" in given.model_fields_set:
        return "diluted", "whose windows stay short, because growth is set to none"
    if given.data.streaming:
        return "diluted", "whose windows stay short: nobody knows how long streamed documents are"
    if few := _few_documents(given.over({"recipe": "growing"}), facts):
        return "diluted", f"whose windows stay short: {few}"
    why = "which measured best: diluted attention, retrieval exercises, and longer windows in the last steps"
    if given.parallel.shard or given.training.get("deepspeed"):
        why += "; these steps have more tokens, because the model is sharded"
    return "growing", why


def _why_papers(given: "RunConfig", facts: Facts) -> str | None:
    """Why a run does not get diluted attention by default; None if it does."""
    if facts.own_sampler:
        return "the caller passes a position sampler"
    if (kind := given.sampler.get("kind", "pose")) != "pose":
        return f"they need the sampler pose, and this run has {kind}"
    if facts.refuses_mask:
        return facts.refuses_mask
    if given.attention not in _TAKE_A_MASK:
        return f"attention {given.attention} takes no additive mask"
    if given.parallel.context > 1:
        return "context parallelism takes no additive mask"
    if given.growth:
        return (
            "growth is given, and the mask's memory grows with the square of the windows; name the recipe diluted to "
            "use it all the same"
        )
    return None


def _own_sampler_fields(given: "RunConfig", recipe: str) -> str:
    """Given sampler fields that override the recipe's, with commas."""
    fields = [name for name in given.sampler if name != "kind"] if "sampler" in given.model_fields_set else []
    return ", ".join(fields) if "sampler" in RECIPES[recipe] else ""


def _exercises(given: "RunConfig", facts: Facts, recipe: str) -> tuple[float, str] | None:
    """The share of exercises and the reason; None if the run gives it, or the recipe has none."""
    share = RECIPES[recipe].get("data", {}).get("retrieval", 0.0)
    if not share or "retrieval" in given.data.model_fields_set:
        return None
    shortest, train = facts.shortest_exercise, facts.window.train
    if shortest is not None and train < shortest:
        return 0.0, f"exercises: none, as windows have {train} tokens and the shortest exercise takes {shortest}"
    return share, f"exercises: {share:.0%} of the windows are generated, as the recipe says"


def _interpolation(given: "RunConfig", facts: Facts) -> tuple[dict[str, Any], str]:
    """The interpolation of a run that names none, and the reason."""
    if facts.interpolation:
        return dict(facts.interpolation), "as the model is scaled by it already"
    return dict(given.interpolation), "as the model is not scaled yet"


def _few_documents(config: "RunConfig", facts: Facts) -> str | None:
    """A description of too few long documents, which grown windows would memorise; None if there are enough."""
    if facts.long_documents is None:
        return None
    from skipwise.config.stages import run_stages  # Here, since it imports numpy, which help texts do without.

    window = facts.window
    stages = run_stages(config, window, facts.steps)
    ends = [*(stage.begin for stage in stages[1:]), facts.steps]
    for stage, end in zip(stages, ends, strict=True):
        tokens = stage.window.train
        if tokens <= window.train:
            continue
        documents, share, source = facts.long_documents(tokens)
        shown = (end - stage.begin) * max(1, facts.step_windows * window.train // tokens) * share
        if shown > SHOWN_AT_MOST * documents:
            each = f", and each would be shown {float(shown) / documents:.0f} times" if documents else ""
            of = f" of {source}" if source else ""
            what = "joined texts" if config.data.join else "documents"
            return f"{documents:,} {what}{of} have the {tokens} tokens of a window that has grown{each}"
    return None


def _told_of_few_documents(config: "RunConfig", facts: Facts) -> str | None:
    """A warning for growth that was asked for."""
    if config.data.streaming or not config.growth or not (few := _few_documents(config, facts)):
        return None
    return f"growth: {few}; give longer ones, or data.join: true"
