"""Kills and resumes a run at random moments, and compares its final weights with those of an undisturbed run.

    python benchmarks/faults.py [--kills 50] [--elastic-kills 12] [--seed 0]

A run of the embedded model is started, killed with SIGKILL, resumed, killed, and so on; then it is left to finish. A
third of the moments are drawn from the whole life of a process, a third while it trains, and a third while it writes a
checkpoint, as writing is short. After every kill each checkpoint must match the hashes in its seal. The same follows
with two processes under torchrun: one is killed each time, and the elastic agent restarts both.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import yaml

from skipwise.train.durable import STAGING, damage, sealed_checkpoints

STEPS = 60
PHASES = ("any", "training", "writing")


def settings(output: Path, documents: Path) -> dict[str, object]:
    """Settings of a run with short steps and a checkpoint every second step."""
    return {
        "model": "embedded",
        "recipe": "paper",
        "target": 1024,
        "window": 64,
        "output": str(output),
        "data": {"source": str(documents), "held_out": 0.0},
        "validation": {"every_steps": 0},
        "training": {
            "max_steps": STEPS,
            "save_steps": 2,
            "save_total_limit": 2,
            "learning_rate": 1e-3,
            "gradient_accumulation_steps": 4,
            "disable_tqdm": True,
            "use_cpu": True,
        },
    }


class Run:
    """A run in its own folder."""

    def __init__(self, folder: Path, documents: Path, launch: list[str]) -> None:
        self.output = folder / "run"
        self._folder = folder
        folder.mkdir()
        (folder / "run.yaml").write_text(yaml.safe_dump(settings(self.output, documents)))
        self._launch = launch
        self._environment = {**os.environ, "SKIPWISE_CACHE": str(folder.parent / "cache"), "HF_HUB_OFFLINE": "1"}
        # Otherwise restarted processes may read the addresses of dead ones, and wait for ever.
        self._environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"

    def start(self) -> subprocess.Popen[bytes]:
        """Starts the run, or resumes it if it was started before."""
        resume = ["--resume"] if (self.output / "run.yaml").exists() else []
        log = (self._folder / "log.txt").open("ab")
        command = [*self._launch, "skipwise", "extend", "--config", str(self._folder / "run.yaml"), *resume]
        return subprocess.Popen(command, env=self._environment, stdout=log, stderr=log, start_new_session=True)

    def finish(self, process: subprocess.Popen[bytes]) -> bytes:
        """Waits for the process; returns the final weights."""
        if process.wait() != 0:
            sys.exit(f"the run failed: {(self._folder / 'log.txt').read_text()[-3000:]}")
        return self.weights()

    def weights(self) -> bytes:
        """Bytes of the finished model's weights."""
        return (self.output / "model.safetensors").read_bytes()

    @property
    def is_finished(self) -> bool:
        """Whether the run's record exists."""
        return (self.output / "skipwise.json").exists()

    @property
    def is_writing(self) -> bool:
        """Whether a checkpoint is being written."""
        return (self.output / STAGING).exists()

    def step(self) -> int:
        """Step of the newest checkpoint; 0 if there is none."""
        return max(sealed_checkpoints(self.output), default=0)


def wait_until(true: Callable[[], bool], process: subprocess.Popen[bytes]) -> bool:
    """Polls every half millisecond; returns False if the process ends first."""
    while process.poll() is None:
        if true():
            return True
        time.sleep(0.0005)
    return False


def kill_at_random(run: Run, process: subprocess.Popen[bytes], rng: random.Random, life: float) -> str | None:
    """Waits for a random moment; returns what the run was doing, or None if it ended before."""
    phase, begun = rng.choice(PHASES), run.step()
    if phase == "any":
        moment = time.monotonic() + rng.uniform(0.0, life)
        wait_until(lambda: time.monotonic() >= moment, process)
    else:
        # Some checkpoints later, so that the run makes progress; then during its steps, or while it writes.
        goal = begun + rng.choice((0, 2, 4))
        wait_until(lambda: run.step() >= goal and run.is_writing, process)
        if phase == "training":
            wait_until(lambda: not run.is_writing, process)
        time.sleep(rng.uniform(0.0, 0.05))
    if process.poll() is not None:
        return None
    writing = run.is_writing
    return "writing" if writing else "starting" if phase == "any" and run.step() == begun else "training"


def check(run: Run) -> int:
    """Number of checkpoints that do not match their seals."""
    return sum(damage(folder) is not None for folder in sealed_checkpoints(run.output).values())


def kill_alone(folder: Path, documents: Path, kills: int, seed: int) -> None:
    """Kills and resumes one process."""
    launch = [sys.executable, "-m"]
    whole = Run(folder / "whole", documents, launch)
    begun = time.monotonic()
    expected = whole.finish(whole.start())
    life = time.monotonic() - begun
    phases: Counter[str] = Counter()
    corrupt = rounds = equal = 0
    while phases.total() < kills:
        run = Run(folder / f"killed-{rounds}", documents, launch)
        while True:
            process = run.start()
            rng = random.Random(f"{seed} {phases.total()}")
            killed = kill_at_random(run, process, rng, life) if phases.total() < kills else None
            if killed is None:
                break
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            phases[killed] += 1
            bad = check(run)
            corrupt += bad
            print(f"kill {phases.total()}: {killed}, checkpoint {run.step()} of {STEPS}, {bad} corrupt", flush=True)
            if run.is_finished:
                break  # The record was written; the process was only about to exit.
        equal += (run.weights() if run.is_finished else run.finish(process)) == expected
        rounds += 1
        shutil.rmtree(run.output.parent)
    print(
        json.dumps(
            {"kills": dict(phases), "runs": rounds, "corrupt": corrupt, "equal to the bit": equal, "seed": seed}
        ),
        flush=True,
    )


def kill_one_of_two(folder: Path, documents: Path, kills: int, seed: int) -> None:
    """Kills one of two processes under torchrun; the agent restarts both."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    launch += ["--max-restarts", str(kills), "--monitor-interval", "0.2", "-m"]
    whole = Run(folder / "whole-2", documents, launch)
    expected = whole.finish(whole.start())
    run = Run(folder / "killed-2", documents, launch)
    agent, done, corrupt = run.start(), 0, 0
    while done < kills:
        rng = random.Random(f"{seed} two {done}")
        phase = kill_at_random(run, agent, rng, 20.0)
        if phase is None:
            break
        if run.is_finished:
            break
        workers = [one for one in psutil.Process(agent.pid).children() if "skipwise" in " ".join(one.cmdline())]
        if not workers:
            continue
        before = {one.pid for one in workers}
        victim = rng.choice(workers)
        victim.kill()
        done += 1
        corrupt += check(run)
        print(f"kill {done} of one of two: {phase}, checkpoint {run.step()} of {STEPS}", flush=True)
        # Wait until the agent has ended the other one.
        wait_until(lambda before=before: not any(psutil.pid_exists(pid) for pid in before), agent)
    equal = run.finish(agent) == expected
    print(json.dumps({"kills of one of two": done, "corrupt": corrupt, "equal to the bit": equal, "seed": seed}))


def main() -> None:
    """Runs both parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--elastic-kills", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        documents = folder / "documents"
        documents.mkdir()
        rng = random.Random(args.seed)
        for i in range(40):
            words = (rng.choice(("river", "stone", "bridge", "cloud", "garden", "letter")) for _ in range(1500))
            (documents / f"{i}.txt").write_text(" ".join(words))
        if args.kills:
            kill_alone(folder, documents, args.kills, args.seed)
        if args.elastic_kills:
            kill_one_of_two(folder, documents, args.elastic_kills, args.seed)


if __name__ == "__main__":
    main()
