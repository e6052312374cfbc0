"""Memory of each process when a model is split over several: loading, a step, saving, resuming, writing.

    python benchmarks/shards.py [--billions 1] [--processes 1 2 4] [--folder runs/shards]

A random Llama is made once. `extend` then trains two steps of it with one process and with several (gloo, FSDP2), is
killed after its second step, and resumes for a third, after which the model is written. Every process watches its own
private memory: pages of files that are mapped, such as safetensors, are left out, as the system takes them back when it
likes.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SHAPE = {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32, "num_key_value_heads": 8}
PHASES = ("load", "step", "save", "write")


def main() -> None:
    """Measures each number of processes in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--billions", type=float, default=1.0, help="parameters of the model")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--folder", type=Path, default=Path("runs/shards"))
    parser.add_argument("--tuning", default="full")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    model = args.folder / f"model-{args.billions:g}"
    parameters = made(model, args.billions)
    print(f"{parameters / 1e9:.3f} billion parameters, {parameters * 2 / 2**30:.2f} GiB in bfloat16; {args.tuning}")
    print(f"{'processes':>9} {'run':>8} " + " ".join(f"{phase:>9}" for phase in PHASES) + "   GiB, most of a process")
    for processes in args.processes:
        run = args.folder / f"run-{processes}"
        shutil.rmtree(run, ignore_errors=True)
        for number, kind in enumerate(("first", "resumed")):
            peaks = launched(model, run, processes, args.tuning, resume=bool(number))
            row = " ".join(f"{peaks[phase] / 2**30:9.2f}" for phase in PHASES)
            print(f"{processes:>9} {kind:>8} {row}", flush=True)
        shutil.rmtree(run)


def made(folder: Path, billions: float) -> int:
    """Writes a random Llama of about this size with the embedded model's tokenizer, once; returns its parameters."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from skipwise.model.place import find_place

    layer = 2 * SHAPE["hidden_size"] ** 2 * 5 // 4 + 3 * SHAPE["hidden_size"] * SHAPE["intermediate_size"]
    config = AutoConfig.for_model(
        "llama", **SHAPE, vocab_size=32000, num_hidden_layers=round(billions * 1e9 / layer), dtype="bfloat16",
        max_position_embeddings=512, rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    )  # fmt: skip
    if not folder.exists():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
        AutoTokenizer.from_pretrained(find_place("embedded").name).save_pretrained(folder)
    with torch.device("meta"):
        skeleton: Any = AutoModelForCausalLM.from_config(config)
    return sum(parameter.numel() for parameter in skeleton.parameters())


def launched(model: Path, run: Path, processes: int, tuning: str, *, resume: bool) -> dict[str, int]:
    """Most private bytes of any process by phase."""
    told = run.parent / f"told-{processes}"
    shutil.rmtree(told, ignore_errors=True)
    told.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command += [__file__, "worker", model, run, tuning, told, "resume" if resume else "begin"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    files = sorted(told.glob("*.json"))
    if len(files) < processes:
        raise SystemExit(done.stderr[-3000:])
    peaks = [json.loads(file.read_text()) for file in files]
    return {phase: max(each[phase] for each in peaks) for phase in PHASES}


def private_bytes() -> int:
    """Memory of this process that is no page of a file."""
    kept = ("RssAnon", "RssShmem")
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(kept))


class Watch:
    """Peaks of private memory by phase, sampled by a thread."""

    def __init__(self) -> None:
        self.phase: str = "load"
        self.peaks: dict[str, int] = dict.fromkeys(PHASES, 0)
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while True:
            self.peaks[self.phase] = max(self.peaks[self.phase], private_bytes())
            time.sleep(0.005)

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Context in which memory counts for a phase."""
        before, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = "write" if phase == "step" else before


def worker(model: str, run: str, tuning: str, told: str, how: str) -> None:
    """One process of `extend`; it ends as if killed after the second step's checkpoint, or goes on from it."""
    from skipwise.config import RunConfig
    from skipwise.train import extend
    from skipwise.train.trainer import SkipwiseTrainer

    watch, rank = Watch(), os.environ["RANK"]
    processes = int(os.environ["WORLD_SIZE"])

    def counted(name: str, phase: str) -> Callable[..., Any]:
        own = getattr(SkipwiseTrainer, name)

        def method(trainer: Any, *given: Any, **named: Any) -> Any:
            with watch.during(phase):
                done = own(trainer, *given, **named)
            if name == "_save_checkpoint" and how == "begin" and trainer.state.global_step == 2:
                ended()
            return done

        return method

    def ended() -> None:
        Path(told, f"{rank}.json").write_text(json.dumps(watch.peaks))
        import torch

        if torch.distributed.is_initialized():
            torch.distributed.barrier()
        os._exit(0)

    for name, phase in (("_inner_training_loop", "step"), ("_save_checkpoint", "save")):
        setattr(SkipwiseTrainer, name, counted(name, phase))
    extend(
        RunConfig.from_mapping(
            {
                "model": model, "target": "4k", "window": 128, "output": run, "tuning": tuning, "recipe": "paper",
                "dtype": "bfloat16", "data": {"source": "stdlib", "held_out": 0.0},
                "parallel": {"shard": processes > 1},
                "training": {
                    "max_steps": 3, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 4 // processes,
                    "use_cpu": True, "save_steps": 2, "save_total_limit": 1,
                },
            }
        ),
        resume=how == "resume",
    )  # fmt: skip
    ended()


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        worker(*sys.argv[2:])
    else:
        main()
