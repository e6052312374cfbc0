"""The demo: extend a Llama with 2.1M parameters from 256 to 4096 tokens, on the sources of the standard library.

base model -> perplexity and passkeys by length          arm "base"
the same model, interpolated but not trained             arm "interpolation only"
preflight, skip-wise training, the same measurements     arm "extended"
-> a table and a page with two figures

An interrupted demo continues where it stopped. Measurements are kept in a folder until the demo is complete, and
training resumes like any run.
"""

import itertools
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from skipwise.config import DataConfig, RunConfig
from skipwise.data.corpus import store_corpus
from skipwise.evals import SampleCache, evaluate
from skipwise.model import load_model, original_window, read_config
from skipwise.records.results import EvalResult
from skipwise.records.runs import Run
from skipwise.report.evidence import Arm, Evidence
from skipwise.report.report import Report
from skipwise.report.samples import enough_trials
from skipwise.report.tables import results_table
from skipwise.train import begin_or_go_on
from skipwise.window import Window

BASE = Path(__file__).parent / "base"
"""The embedded base model: a plain checkpoint folder, made by `scripts/train_base.py`."""

_NEXT = "skipwise pilot ./my-model --data docs/ --target 32k --time 1h"
"""What to do after the demo: the same on a model and documents of one's own."""

_SAMPLES = ".samples"
"""Folder with the measurements so far. It exists only while the demo is incomplete."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSettings:
    """Sizes of the demo.

    Attributes:
        target: longest context that is measured, in tokens.
        headroom: factor by which trained positions exceed `target`. Training sees the longest distances least often, so
            the model is extended beyond the measured lengths.
        steps: optimizer steps of 4096 tokens: 30% with windows of 256 tokens, 40% with windows of a quarter of the
            target, the last 30% with windows of half of it.
        trials: number of passkeys per length.
        num_depths: number of depths that the passkeys are spread over.
        num_documents: number of held-out documents for perplexity.
        scored_tokens: number of tokens per document that perplexity is measured on.
    """

    target: int = 4096
    headroom: float = 1.25
    steps: int = 120
    trials: int = enough_trials(5)
    num_depths: int = 5
    num_documents: int = 16
    scored_tokens: int = 192

    @property
    def extended_target(self) -> int:
        """Context length that the model is extended to, in tokens."""
        return round(self.target * self.headroom)

    def run_config(self, model_folder: Path, seed: int) -> RunConfig:
        """The run that extends the base model, with the recipe that works best at this size."""
        return RunConfig.from_mapping(
            {
                "model": str(BASE),
                "target": self.extended_target,
                "output": str(model_folder),
                "interpolation": {"kind": "yarn"},
                "recipe": "growing",
                # Trained for long text only: in two-mode serving, the base model answers short requests.
                "sampler": {"start": "anywhere"},
                "data": {"source": "stdlib", "retrieval": 0.12},
                "growth": [
                    {"window": self.target // 4, "share": 0.7},
                    {"window": self.target // 2, "share": 0.3},
                ],
                "validation": {"lengths": [self.target], "num_documents": 2, "every_steps": 0},
                "training": {
                    "max_steps": self.steps,
                    "per_device_train_batch_size": 16,
                    "gradient_accumulation_steps": 1,
                    "learning_rate": 2e-3,
                    "adam_beta2": 0.95,
                    "lr_scheduler_type": "warmup_stable_decay",
                    "lr_scheduler_kwargs": {"num_decay_steps": round(0.83 * self.steps), "decay_type": "linear"},
                    "gradient_checkpointing": False,
                    "save_strategy": "no",
                },
                "seed": seed,
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """The demo's claims about the extended model, computed from its records.

    Attributes:
        perplexity_falls: whether the perplexity of the same tokens is lower at each longer length.
        worst_passkeys: smallest share of passkeys found at any length.
    """

    perplexity_falls: bool
    worst_passkeys: float

    @classmethod
    def of(cls, results: Sequence[EvalResult]) -> "Claims":
        """Reads the records of one arm."""
        perplexities = [result.value for result in _by_length(results, "perplexity")]
        passkeys = [result.value for result in _by_length(results, "accuracy")]
        falling = all(longer < shorter for shorter, longer in itertools.pairwise(perplexities))
        return cls(perplexity_falls=falling, worst_passkeys=min(passkeys))

    @property
    def retrieves(self) -> bool:
        """Whether at least 90% of passkeys are found at every length."""
        return self.worst_passkeys >= 0.9

    @property
    def passkeys_found(self) -> str:
        """How many passkeys are found, in words."""
        if self.worst_passkeys == 1:
            return "all passkeys are found at every length"
        return f"at the worst length, {self.worst_passkeys:.0%} of the passkeys are found"

    @property
    def hold(self) -> bool:
        """Whether all claims are true for this run."""
        return self.perplexity_falls and self.retrieves


def run_demo(folder: Path, *, settings: DemoSettings | None = None, seed: int = 0) -> list[Arm]:
    """Runs the demo and writes `model/`, `records.jsonl` and `report.html` into a folder.

    Args:
        folder: where to write. An interrupted demo is continued; the results of a finished one are replaced.
        settings: sizes; the defaults take a few minutes on two cores.
        seed: seed of training and evaluation.

    Returns:
        The arms "base", "interpolation only" and "extended", with their results.

    Raises:
        KeyboardInterrupt: training was stopped on request. The same call continues it.
    """
    settings = settings or DemoSettings()
    console, begun = Console(), time.monotonic()
    model_folder, report = folder / "model", folder / "report.html"
    run = settings.run_config(model_folder, seed)
    if _goes_on(folder, run):
        console.print(f"continuing the demo in {folder}", soft_wrap=True)
    else:
        shutil.rmtree(model_folder, ignore_errors=True)
        shutil.rmtree(folder / _SAMPLES, ignore_errors=True)
        report.unlink(missing_ok=True)
    bench = _Bench(folder, settings, seed, console)
    window = Window(train=bench.original, original=bench.original, target=settings.extended_target)
    console.print(
        f"A Llama of {bench.num_parameters / 1e6:.1f}M parameters with a window of {bench.original} tokens is "
        f"extended to {settings.target} (and {settings.headroom - 1:.0%} headroom: {settings.extended_target}), on the "
        "sources of Python's standard library; "
        f"{len(bench.documents)} long files are held out for the measurements."
    )
    arms = [
        bench.measure("base", BASE),
        bench.measure("interpolation only", BASE, interpolation=run.build_interpolation(), window=window),
    ]
    console.print(f"extending: preflight, then {settings.steps} steps of skip-wise training")
    trained = begin_or_go_on(run)
    if trained is None:
        raise KeyboardInterrupt
    arms.append(bench.measure("extended", model_folder))

    console.print(results_table(arms))
    seconds = time.monotonic() - begun
    evidence = Evidence(arms=arms, original_tokens=bench.original)
    made = _report(evidence, trained, target=settings.target, seconds=seconds, seed=seed)
    made.write_page(report)
    shutil.rmtree(folder / _SAMPLES)
    claims = Claims.of(arms[-1].results)
    console.print(
        f"perplexity of the same tokens {'falls' if claims.perplexity_falls else 'does NOT fall'} with every doubling "
        f"of the context; {claims.passkeys_found}"
    )
    for line in made.decision.lines if made.decision else ():
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    console.print(f"{seconds:.0f} s in all. Model: {model_folder}   Page: {report}", soft_wrap=True)
    return arms


class _Bench:
    """The measurements of the demo, the same for every arm; their records are written anew, from the sample cache too.

    Attributes:
        original: window of the base model, in tokens.
        num_parameters: of the base model.
        documents: held-out documents, token ids of each.
    """

    def __init__(self, folder: Path, settings: DemoSettings, seed: int, console: Console) -> None:
        self._seed, self._console = seed, console
        self._records, self._samples = folder / "records.jsonl", SampleCache(folder / _SAMPLES)
        self._records.unlink(missing_ok=True)
        self._samples.folder.mkdir(parents=True, exist_ok=True)
        self.original = original_window(read_config(BASE))
        self._lengths = [self.original * 2**power for power in range((settings.target // self.original).bit_length())]
        self._tasks = [
            {
                "kind": "perplexity",
                "num_documents": settings.num_documents,
                "scored_tokens": settings.scored_tokens,
            },
            {"kind": "passkey", "trials": settings.trials, "num_depths": settings.num_depths},
        ]
        model, tokenizer = load_model(BASE)
        self.num_parameters = model.num_parameters()
        held_out = store_corpus(DataConfig(), tokenizer).documents("held_out", min_tokens=settings.target)
        self.documents = [held_out.document(index) for index in range(held_out.num_documents)]

    def measure(self, name: str, source: Path, **how: Any) -> Arm:
        """Perplexity and passkeys of one arm."""
        self._console.print(f"measuring [bold]{name}[/bold]")
        results = evaluate(
            *load_model(source, **how),
            self._tasks,
            self._lengths,
            self.documents,
            seed=self._seed,
            out=self._records,
            cache=self._samples,
            allow_beyond=True,
            progress=self._console.is_terminal,
        )
        return Arm(name=name, results=results)


def _goes_on(folder: Path, run: RunConfig) -> bool:
    """Whether the folder contains an incomplete demo with the same settings."""
    begun = Run.open(run.output_folder).config()
    return (folder / _SAMPLES).exists() and begun in (None, run)


def _report(evidence: Evidence, trained: Mapping[str, Any], *, target: int, seconds: float, seed: int) -> Report:
    made = {
        "command": "skipwise demo",
        "training": f"{trained['steps']} steps, {trained['seconds']:.0f} s",
        "in all": f"{seconds:.0f} s",
        "seed": str(seed),
        "versions": ", ".join(f"{name} {version}" for name, version in trained["versions"].items()),
    }
    title = f"From {evidence.original_tokens} to {target} tokens"
    return Report.of(evidence, title=title, made=made, next_command=_NEXT)


def _by_length(results: Sequence[EvalResult], metric: str) -> list[EvalResult]:
    """Records of one metric, shortest first."""
    return sorted((result for result in results if result.metric == metric), key=lambda result: result.length_tokens)
