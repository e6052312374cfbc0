"""`skipwise calibrate rope`: searches rotary frequencies for a base model, before it is trained."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from skipwise.cli import options
from skipwise.cli.calibrate import SEARCH, DocumentsOption, FieldOption, texts_of
from skipwise.cli.loading import loading
from skipwise.cli.options import check_writable, given, option, print_json
from skipwise.model.place import find_place

if TYPE_CHECKING:
    from skipwise.calibrate.frequencies import FoundFrequencies


def calibrate_rope(
    model: options.Model,
    target: Annotated[int, option("--target TOKENS", "Context window to extend to, such as 32k.", shown=False)],
    kind: Annotated[
        Literal["longrope", "yarn"] | None,
        option(
            "--kind NAME", "longrope: a divisor for each pair of dimensions. yarn: ramp and factors.", shown="longrope"
        ),
    ] = None,
    out: Annotated[
        Path | None, option("--out FILE", "Write settings of a run, for `skipwise extend --config FILE`.")
    ] = None,
    documents: DocumentsOption = None,
    field: FieldOption = None,
    skip_unreadable: options.SkipUnreadable = False,
    candidates: Annotated[
        int | None, option("--candidates N", "Number of interpolations to try.", shown="48", group=SEARCH)
    ] = None,
    trials: Annotated[
        int | None, option("--trials N", "Needles that each is tried on.", shown="16", group=SEARCH)
    ] = None,
    judged: Annotated[
        int | None, option("--judged N", "Other needles that the best one is judged on.", shown="48", group=SEARCH)
    ] = None,
    seed: options.Seed = 0,
    dtype: options.Dtype = None,
    attention: options.Attention = None,
    trust_remote_code: options.Trust = False,
    as_json: options.Json = False,
) -> None:
    """Search rotary frequencies before training.

    Tries interpolations on the untrained model, by the likelihood of needles hidden at the target. Prints the settings
    of the best one if it is measurably better than YaRN's rule on other needles, else those of YaRN.

    Example: skipwise calibrate rope embedded --target 1k --kind yarn --candidates 12

    Example: skipwise calibrate rope ./my-model --target 32k --documents docs/ --out run.yaml
    """
    check_writable("--out", out)
    find_place(model)
    with loading(f"reading the model {model}"):
        from skipwise.calibrate.frequencies import FrequencySearch, search_frequencies
        from skipwise.cli.evaluate_documents import HeldOut
        from skipwise.config import DataConfig, RunConfig
        from skipwise.data.corpus import look_at
        from skipwise.distributed import process_state
        from skipwise.model import load_model, original_window, read_config

    search = FrequencySearch(**given({"kind": kind, "candidates": candidates, "trials": trials, "judged": judged}))
    base = read_config(model, trust_remote_code=trust_remote_code)
    window = RunConfig(model=model, target=target).resolve_window(original_window(base))
    run = HeldOut(DataConfig())
    data = run.reading(documents, field, skip_unreadable=skip_unreadable)
    sources = look_at(data)
    loaded = load_model(model, dtype=dtype, attention=attention, trust_remote_code=trust_remote_code)
    network: Any = loaded.model
    network.to(process_state().device)
    texts = texts_of(run, data, sources, loaded.tokenizer, target, progress=not as_json)
    found = search_frequencies(
        network.eval(), loaded.tokenizer, texts, window, search=search, seed=seed, progress=not as_json
    )
    if process_state().is_main_process:
        _report(found, {"model": model, "target": target, "interpolation": found.settings}, out, as_json)


def _report(found: "FoundFrequencies", settings: dict[str, Any], out: Path | None, as_json: bool) -> None:
    import yaml

    text = yaml.safe_dump(settings, sort_keys=False, default_flow_style=None, width=110)
    if out is not None:
        out.write_text(text, encoding="utf-8")
    before, after = found.nlls
    if as_json:
        from skipwise.calibrate.frequencies import settings_of

        scores = {"nlls": {"yarn": before, "best": after}, "difference": found.difference._asdict()}
        print_json({**settings, "best": settings_of(found.best), **scores, "tried": found.tried})
        return
    print(text, end="")
    value, low, high = found.difference
    interval = "" if low is None or high is None else f" ({low:+.3f} to {high:+.3f})"
    verdict = "measurably better" if found.is_better else "not measurably better, so YaRN's rule stays"
    print(f"# {found.tried} tried; nats per answer token on other needles: YaRN's rule {before:.3f}, best {after:.3f}")
    print(f"# difference {value:+.3f}{interval}: {verdict}")
    if out is not None:
        print(f"# written: {out}; train with: skipwise extend --config {out}")
