"""Cost of the code around the model: windows a second, two processes against one, share of a step, single rates.

    python benchmarks/scaling.py windows               # sampling plus collation, by sampler
    python benchmarks/scaling.py processes             # tokens a second of `extend` by one and two processes
    python benchmarks/scaling.py step MODEL            # share of skipwise's own code in a training step
    python benchmarks/scaling.py resume                # until a resumed run trains, and the state in its checkpoints
    python benchmarks/scaling.py rates                 # tokenizing, hashing, opening: inputs of estimates

Everything is timed in one process on one thread, except `processes`, where each process has one thread. `windows`,
`processes` and `resume` measure wall time. `step` and `rates` measure processor time, as they are long and the machine
may be busy.
"""

import argparse
import hashlib
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import numpy as np
import yaml

from skipwise.config import DataConfig
from skipwise.data.corpus import TokenStore, store_corpus
from skipwise.data.items import TrainingItems
from skipwise.positions import CREAM, FullLength, Plain, PoSE, PositionSampler, RandPos, SentenceGaps
from skipwise.window import Window

WINDOW = Window(train=2048, original=2048, target=32768)
SAMPLERS: tuple[PositionSampler, ...] = (
    PoSE(),
    PoSE(skips="flat", text="aligned", start="anywhere"),
    PoSE(chunks=3, skips="simplex"),
    PoSE(chunks=64),
    RandPos(),
    CREAM(),
    SentenceGaps(),
    Plain(),
    FullLength(),
)
# Those of the timed parts that skipwise adds to a plain Trainer.
PARTS = ("item", "collate", "around the step", "guard and other callbacks", "logging")


def stdlib_store(tokenizer: Any) -> TokenStore:
    """The training part of the standard library's sources, all of it in the page cache."""
    store = store_corpus(DataConfig(), tokenizer, progress=False).documents("train", min_tokens=WINDOW.train)
    for index in range(store.num_documents):
        store.document(index).max()
    return store


def windows(args: argparse.Namespace) -> None:
    """Prints windows a second, for items and collation together."""
    import torch

    from skipwise.model import load_model
    from skipwise.train.curriculum import collate

    torch.set_num_threads(1)
    store = stdlib_store(load_model("embedded").tokenizer)
    print(f"{WINDOW.train} of {WINDOW.target} positions, {args.batch} windows a batch, {store.num_documents} documents")
    print(f"{'fastest':>8} {'median':>8}  windows a second;  {'fastest':>8}  microseconds a window")
    for sampler in SAMPLERS:
        items = TrainingItems(store, sampler, WINDOW, seed=0)
        places = itertools.cycle(range(len(items)))
        seconds = []
        begun = time.perf_counter()
        while len(seconds) < args.repeats and (len(seconds) < 50 or time.perf_counter() - begun < args.seconds):
            now = time.perf_counter()
            collate([items.item(0, next(places)) for _ in range(args.batch)])
            seconds.append((time.perf_counter() - now) / args.batch)
        fastest, median = min(seconds), statistics.median(seconds)
        print(f"{1 / fastest:8,.0f} {1 / median:8,.0f}{'':20}{1e6 * fastest:8.1f}  {sampler}", flush=True)


def processes(args: argparse.Namespace) -> None:
    """Prints tokens a second of one and two processes in turn, from the log of each run."""
    speeds: dict[int, list[float]] = defaultdict(list)
    losses: dict[int, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        for turn, count in itertools.product(range(args.rounds), (1, 2)):
            output = Path(name) / f"{turn}-{count}"
            settings = {
                "model": "embedded",
                "recipe": "paper",
                "target": "1k",
                "output": str(output),
                "data": {"source": "stdlib"},
                "validation": {"every_steps": 0},
                "training": {
                    "max_steps": args.steps,
                    "per_device_train_batch_size": 4,
                    "gradient_accumulation_steps": 4 // count,
                    "save_strategy": "no",
                    "disable_tqdm": True,
                    "use_cpu": True,
                },
            }
            file = Path(name) / "run.yaml"
            file.write_text(yaml.safe_dump(settings), encoding="utf-8")
            command = [sys.executable, "-m", "skipwise", "extend", "--config", str(file)]
            command += ["--launch", "ddp", "--nproc", str(count)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                sys.exit(done.stderr[-3000:])
            log = [entry for entry in json.loads((output / "skipwise.json").read_text())["log"] if "loss" in entry]
            # The first step warms up.
            speeds[count] += [entry["tokens_per_second"] for entry in log[1:]]
            losses[count] = [entry["loss"] for entry in log]
    for count, found in speeds.items():
        print(
            f"{count} process{'es' * (count > 1)}: {statistics.median(found):,.0f} tokens a second "
            f"({min(found):,.0f} to {max(found):,.0f}, {len(found)} steps)"
        )
    print(f"two against one, medians: {statistics.median(speeds[2]) / statistics.median(speeds[1]):.2f}")
    apart = max(abs(one - two) for one, two in zip(losses[1], losses[2], strict=True))
    print(f"losses of the two differ by {apart:.1e} at most")


def cpu_seconds() -> float:
    """Processor time of this process and the children it waited for; other work affects it less than wall time."""
    used = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


class Parts:
    """Processor time spent in functions, by the part that they belong to."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wraps a function to count its seconds."""

        def call(*arguments: Any, **keywords: Any) -> Any:
            begun = time.process_time()
            try:
                return function(*arguments, **keywords)
            finally:
                self.seconds[part] += time.process_time() - begun

        return call


def step(args: argparse.Namespace) -> None:
    """Prints the share of each part of skipwise's code in the training steps of a real model."""
    import torch
    import transformers
    from transformers import TrainerCallback

    from skipwise.config import GuardConfig, RunConfig
    from skipwise.loss import use_chunked_loss
    from skipwise.model import load_model
    from skipwise.train.arguments import training_arguments
    from skipwise.train.curriculum import Curriculum, collate
    from skipwise.train.guard import BadItems, StepGuard
    from skipwise.train.layout import Layout
    from skipwise.train.progress import StopOnRequest
    from skipwise.train.trainer import SkipwiseTrainer

    torch.set_num_threads(1)
    model, tokenizer = load_model(args.model, dtype="float32")
    parts, seed = Parts(), 0

    class Timed(Curriculum):
        """A curriculum whose items are timed."""

        def __getitem__(self, place: int) -> Any:
            return parts.timed("item", super().__getitem__)(place)

    class TimedTrainer(SkipwiseTrainer):
        """The Trainer of `extend`; times what it adds to the base class."""

        def training_step(self, *arguments: Any, **keywords: Any) -> Any:
            before = parts.seconds["the Trainer's step"]
            begun = time.process_time()
            loss = super().training_step(*arguments, **keywords)
            inner = parts.seconds["the Trainer's step"] - before
            parts.seconds["around the step"] += time.process_time() - begun - inner
            return loss

        def log(self, *arguments: Any, **keywords: Any) -> None:
            parts.timed("logging", super().log)(*arguments, **keywords)

    class WholeSteps(TrainerCallback):
        """Records the time and the seconds of all parts at the end of each step."""

        def __init__(self) -> None:
            self.ends: list[tuple[float, dict[str, float]]] = []

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.ends.append((time.process_time(), dict(parts.seconds)))

    store = stdlib_store(tokenizer)
    items = TrainingItems(store, PoSE(), WINDOW, seed)
    with tempfile.TemporaryDirectory() as folder:
        training = {
            "max_steps": args.steps + 1,
            "gradient_accumulation_steps": 1,
            "save_strategy": "no",
            "disable_tqdm": True,
            "use_cpu": True,
        }
        config = RunConfig.from_mapping(
            {"model": "-", "recipe": "paper", "target": WINDOW.target, "output": folder, "training": training}
        )
        layout = Layout(
            stages=[(0, WINDOW.train)],
            num_steps=args.steps + 1,
            window_tokens=WINDOW.train,
            items_per_step=1,
            items_at_a_time=1,
        )
        curriculum = Timed(layout, [items])
        use_chunked_loss(model)
        inner = transformers.Trainer.training_step
        transformers.Trainer.training_step = parts.timed("the Trainer's step", inner)
        clock = WholeSteps()
        trainer = TimedTrainer(
            guard=StepGuard(GuardConfig(), BadItems(Path(folder)), curriculum.describe, print),
            model=model.train(),
            args=training_arguments(config),
            train_dataset=curriculum,
            data_collator=parts.timed("collate", collate),
            tokenizer=tokenizer,
            callbacks=[StopOnRequest(print), clock],
        )
        for callback in trainer.callback_handler.callbacks:
            # Callbacks of logging count with logging.
            for name in ("on_step_begin", "on_pre_optimizer_step", "on_optimizer_step", "on_step_end"):
                if type(callback).__module__.startswith("skipwise"):
                    part = "guard and other callbacks"
                    setattr(callback, name, parts.timed(part, getattr(callback, name)))
        trainer.train()
    # The first step warms up.
    (begun, before), (ended, after) = clock.ends[0], clock.ends[-1]
    whole = (ended - begun) / args.steps
    print(f"{args.model}: {args.steps} steps of one window of {WINDOW.train}, {whole:.2f} s of the processor each")
    total = 0.0
    for part in PARTS:
        each = (after.get(part, 0.0) - before.get(part, 0.0)) / args.steps
        total += each
        print(f"{1e6 * each:10,.0f} microseconds  {100 * each / whole:.4f}%  {part}")
    print(f"{1e6 * total:10,.0f} microseconds  {100 * total / whole:.4f}%  together")


def tiny_trainer(folder: Path, steps: int, *, saves: bool = False, **how: Any) -> Any:
    """A Trainer of a tiny model and so many steps of one window; its `train_dataset.first` is when one is asked for."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from skipwise.config import RunConfig
    from skipwise.data.items import TrainingItem
    from skipwise.train.arguments import training_arguments
    from skipwise.train.curriculum import collate
    from skipwise.train.trainer import SkipwiseTrainer

    class Windows(torch.utils.data.Dataset):
        """Windows of four tokens."""

        first = 0.0

        def __len__(self) -> int:
            return steps

        def __getitem__(self, place: int) -> TrainingItem:
            self.first = self.first or time.perf_counter()
            return TrainingItem(np.arange(4), np.arange(4), np.arange(4), place=place)

    training = {
        "max_steps": steps,
        "gradient_accumulation_steps": 1,
        "gradient_checkpointing": False,
        "save_strategy": "steps" if saves else "no",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    config = RunConfig.from_mapping({"model": "-", "target": 64, "output": str(folder), "training": training})
    small: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    model = LlamaForCausalLM(LlamaConfig(vocab_size=16, **small))
    arguments = training_arguments(config)
    return SkipwiseTrainer(model=model, args=arguments, train_dataset=Windows(), data_collator=collate, **how)


def resume(args: argparse.Namespace) -> None:
    """Prints how long a resumed run takes until it asks for a window, and what a checkpoint has of the log."""
    from transformers import TrainerState

    from skipwise.train.log import LOG_FILE, RunLog

    with tempfile.TemporaryDirectory() as name:
        tiny_trainer(Path(name), 1, saves=True).train()
        checkpoint = Path(name) / "checkpoint-1"
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        for done in args.steps:
            state.global_step = done
            state.save_to_json(str(checkpoint / "trainer_state.json"))
            trainer = tiny_trainer(Path(name), done + 1)
            begun = time.perf_counter()
            trainer.train(resume_from_checkpoint=str(checkpoint))
            print(
                f"{trainer.train_dataset.first - begun:10.3f} s until the first window after {done:,} steps", flush=True
            )
    entry = {"loss": 2.7182818284, "grad_norm": 1.41421356237, "learning_rate": 1.9e-05}
    for in_file, entries in itertools.product((False, True), args.entries):
        with tempfile.TemporaryDirectory() as name:
            log = RunLog(Path(name), None) if in_file else None
            trainer = tiny_trainer(Path(name), 1, log=log)
            if log is not None:
                log.on_train_begin(trainer.args, trainer.state, trainer.control)
            begun = time.perf_counter()
            for _ in range(entries):
                trainer.log(dict(entry))
            logged = time.perf_counter()
            trainer.state.save_to_json(f"{name}/trainer_state.json")
            saved = time.perf_counter()
            each, saving = 1e6 * (logged - begun) / entries, saved - logged
            files = [file for file in Path(name).iterdir() if file.name in ("trainer_state.json", LOG_FILE)]
            sizes = ", ".join(f"{file.name} {file.stat().st_size:,}" for file in sorted(files))
            where = "a file" if in_file else "the state"
            print(
                f"{entries:,} entries, all in {where}: {each:.0f} microseconds each, {saving:.3f} s to save the state; "
                f"bytes: {sizes}",
                flush=True,
            )


def rates(args: argparse.Namespace) -> None:
    """Prints the rates that the estimate for large runs uses; one thread each."""
    from skipwise.data.documents import read_documents, split_point
    from skipwise.data.store import StoreWriter, View
    from skipwise.data.tokens import Encoder, tokenized
    from skipwise.model import load_model

    encoder = Encoder(load_model(args.model).tokenizer)
    documents = list(itertools.islice(read_documents("stdlib"), 400))
    text_bytes = sum(len(document.text.encode()) for document in documents)
    pieces: list[Any] = []

    def rate(what: str, amount: float, unit: str, function: Callable[[], Any], times: int = 3) -> None:
        seconds = []
        for _ in range(times):
            begun = cpu_seconds()
            function()
            seconds.append(cpu_seconds() - begun)
        print(f"{amount / min(seconds):14,.1f} {unit:20} {what}", flush=True)

    def tokenize() -> None:
        pieces[:] = tokenized(iter(documents), encoder, 1)

    rate("tokenizing", text_bytes / 1e6, "MB a second", tokenize, times=2)
    tokens = sum(len(piece.ids) for piece in pieces)
    print(f"{text_bytes / tokens:14.2f} {'bytes':20} of text a token")

    def written() -> None:
        with tempfile.TemporaryDirectory() as folder, StoreWriter(Path(folder), encoder.dtype) as writer:
            for piece in pieces:
                writer.add(*piece)
            writer._flush()

    rate("writing tokens into a store", tokens / 1e6, "million tokens a s", written)
    block = np.random.default_rng(0).bytes(1 << 26)
    rate("CRC-32, as a store is verified", len(block) / 1e9, "GB a second", lambda: zlib.crc32(block))
    rate("SHA-256, as a checkpoint is sealed", len(block) / 1e9, "GB a second", lambda: hashlib.sha256(block))
    count = args.documents
    with tempfile.TemporaryDirectory() as folder:
        with StoreWriter(Path(folder), np.dtype(np.uint16)) as writer:
            one = np.zeros(1, np.uint16)
            for number in range(count):
                writer.add(f"a:{number + 1}", one, split_point(str(number)))
            writer.finish(separator_id=None, sentence_ends=np.zeros(1, bool), tokenizer_fingerprint="")
        rate("opening a store", count / 1e6, "million documents a s", lambda: TokenStore(folder, View(part="train")))
    begin = [sys.executable, "-c", "import skipwise.train.extending"]
    rate("starts of a process that imports training", 1, "a second", lambda: subprocess.run(begin, check=True))


def main() -> None:
    """Runs one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(required=True)
    one = parts.add_parser("windows")
    one.add_argument("--batch", type=int, default=8)
    one.add_argument("--repeats", type=int, default=4000)
    one.add_argument("--seconds", type=float, default=8.0, help="time limit for each sampler")
    one.set_defaults(run=windows)
    one = parts.add_parser("processes")
    one.add_argument("--steps", type=int, default=8)
    one.add_argument("--rounds", type=int, default=2)
    one.set_defaults(run=processes)
    one = parts.add_parser("step")
    one.add_argument("model")
    one.add_argument("--steps", type=int, default=3)
    one.set_defaults(run=step)
    one = parts.add_parser("resume")
    one.add_argument("--steps", type=int, nargs="+", default=[10, 10**5, 10**6, 10**7])
    one.add_argument("--entries", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    one.set_defaults(run=resume)
    one = parts.add_parser("rates")
    one.add_argument("--model", default="embedded", help="whose tokenizer is timed")
    one.add_argument("--documents", type=int, default=1_000_000)
    one.set_defaults(run=rates)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
