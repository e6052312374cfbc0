"""Installs other programs, each into a virtual environment of its own, and runs measurements there.

An environment also sees the packages of this one, behind its own. So torch and transformers are the same on both sides
unless a peer's pins forbid it, and nothing is installed into this one.
"""

import json
import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
_INSTALLED = "installed.txt"
_MINUTES = 15

Run = Callable[..., "subprocess.CompletedProcess[str]"]


class SkippedError(Exception):
    """A peer cannot be measured here; the message is the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Another program.

    Attributes:
        name: of its environment.
        packages: what pip installs, with versions.
        shown: its name and version in tables.
    """

    name: str
    packages: Sequence[str]
    shown: str


TRL = Peer(name="trl", packages=["trl==1.16.0"], shown="TRL 1.16.0")
LM_EVAL = Peer(name="lm-eval", packages=["lm-eval[hf]==0.4.13"], shown="lm-evaluation-harness 0.4.13")
ACCELERATE = Peer(name="accelerate", packages=["accelerate==1.15.0"], shown="accelerate 1.15.0")
LLAMA_CPP = Peer(
    name="llama-cpp", packages=["llama-cpp-python[server]==0.3.36"], shown="llama.cpp (llama-cpp-python 0.3.36)"
)


def install(peer: Peer, folder: Path, run: Run = subprocess.run) -> str:
    """Installs a peer unless that is done.

    Args:
        peer: what to install.
        folder: of all environments.
        run: starts a process, as `subprocess.run`.

    Returns:
        Path of the environment's interpreter.

    Raises:
        SkippedError: it cannot be installed.
    """
    place = (folder / peer.name).absolute()
    python, done = place / "bin" / "python", place / _INSTALLED
    wanted = "\n".join(peer.packages) + "\n"
    if done.is_file() and done.read_text() == wanted:
        return str(python)
    venv.create(place, with_pip=False, symlinks=True, clear=True)
    own = sysconfig.get_path("purelib", vars={"base": str(place), "platbase": str(place)})
    (Path(own) / "outer.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    try:
        made = run([*command, *peer.packages], capture_output=True, text=True, timeout=60 * _MINUTES)
    except subprocess.TimeoutExpired:
        raise SkippedError(f"pip install {' '.join(peer.packages)} took more than {_MINUTES} minutes") from None
    if made.returncode:
        raise SkippedError(f"pip install {' '.join(peer.packages)} failed: {_last_line(made.stderr)}")
    done.write_text(wanted)
    return str(python)


def measure_apart(
    module: str, question: dict[str, Any], python: str = sys.executable, run: Run = subprocess.run
) -> Any:
    """Runs a module of this package in a process of its own, and returns the JSON of the last line that it prints.

    Raises:
        SkippedError: it failed.
    """
    print(f"{module}: {json.dumps(question)}", file=sys.stderr, flush=True)
    command = [python, "-m", f"{__package__}.{module}", json.dumps(question)]
    done = run(command, cwd=ROOT, env={**os.environ, "PYTHONWARNINGS": "ignore"}, capture_output=True, text=True)
    if done.returncode:
        raise SkippedError(f"{module} failed with {done.returncode}: {_last_line(done.stderr)}")
    return json.loads(done.stdout.splitlines()[-1])


def _last_line(text: str) -> str:
    # A progress bar is one line, redrawn behind carriage returns.
    return (text.strip().splitlines() or ["it said nothing"])[-1].split("\r")[-1][:300]
