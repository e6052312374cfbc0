"""Runs the blocks of a page in a folder, as a reader would in a terminal there, and compares what they print.

A command that is one call of `skipwise` runs in a process forked from one that has imported torch, which saves seconds.
Others run in bash, where `skipwise` is the same program.
"""

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import chdir
from pathlib import Path
from types import TracebackType
from typing import Any
from unittest.mock import patch

from forked import Forked, start

from docs.pages import Block, Command, PageError
from skipwise.cli import VERBS

_NUMBER = re.compile(r"\d[\d.,]*(e[-+]?\d+)?")
_CALL = re.compile(r"\bskipwise (\w+(?: +[a-z][\w-]*)?)")
_EXPORT = re.compile(r"export (\w+)=(\S+)")
_SECONDS = 240.0
_SHIM = f"""#!{sys.executable}
import sys
from skipwise.cli import main
sys.exit(main())
"""


def _normal(line: str) -> str:
    """The line without numbers, and without the spaces that depend on their widths."""
    return " ".join(_NUMBER.sub("0", line).split())


def _ending(printed: str) -> str:
    """The last lines, and of progress bars only their last state."""
    return "\n".join(line.rsplit("\r", 1)[-1] for line in printed.split("\n")[-40:])


def missing_line(shown: Sequence[str], printed: str) -> str | None:
    """The first shown line that was not printed, in this order. Numbers may differ; `...` stands for anything."""
    lines = iter([_normal(line) for part in printed.splitlines() for line in part.split("\r")])
    for line in shown:
        wanted = _normal(line)
        if wanted.strip() in ("", "..."):
            continue
        pattern = re.compile(".*".join(re.escape(part.strip()) for part in wanted.split("...")))
        if not any(pattern.fullmatch(printed_line) for printed_line in lines):
            return line
    return None


def _call(folder: str, arguments: list[str], environment: dict[str, str]) -> None:
    """What a forked process does."""
    os.dup2(1, 2)  # In one order, as on a terminal.
    os.chdir(folder)
    os.environ.update(environment)
    sys.argv = ["skipwise", *arguments]
    from transformers.utils import logging

    from skipwise.cli import main

    logging.set_verbosity_warning()  # As in a program of its own, and not as in tests.
    code = main()
    sys.stdout.flush()
    sys.exit(code)


def _with_added(words: list[str], block: Block) -> str:
    verb = words if " ".join(words) in VERBS else words[:1]
    return shlex.join(["skipwise", *block.with_added(verb), *words[len(verb) :]])


class Terminal:
    """A folder in which the blocks of a page run one after the other."""

    def __init__(self, folder: Path, home: Path) -> None:
        self.folder = folder
        self.environment = {
            "HOME": str(home),
            "SKIPWISE_CACHE": str(home / "cache"),
            "COLUMNS": "80",
            "PATH": f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        shim = home / "bin" / "skipwise"
        shim.parent.mkdir(parents=True, exist_ok=True)
        shim.write_text(_SHIM)
        shim.chmod(0o755)
        self._names: dict[str, Any] = {"__name__": "__main__"}
        self._background: list[Forked] = []

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for one in self._background:
            one.interrupt()
            one.wait(30)

    def run(self, block: Block) -> None:
        """Runs a block of `console` or `python`.

        Raises:
            PageError: an exit code is another than the page says, or a shown line was not printed.
        """
        if block.language == "python":
            with chdir(self.folder), patch.dict(os.environ, self.environment):
                exec(compile(block.text, f"<line {block.line}>", "exec"), self._names)
            return
        commands = block.commands()
        for command in commands:
            expected = block.exit_code if command is commands[-1] else 0
            self._run(command, block, expected)

    def _run(self, command: Command, block: Block, expected: int) -> None:
        if command.text.startswith("cd "):
            self.folder = (self.folder / command.text[3:].strip()).resolve(strict=True)
            return
        if variable := _EXPORT.fullmatch(command.text.strip()):
            self.environment[variable[1]] = shlex.split(variable[2])[0]
            return
        if command.text.endswith("&"):
            self._start(command)
            return
        words = command.words
        if words is None:
            text = _CALL.sub(lambda call: _with_added(call[1].split(), block), command.text)
            done = subprocess.run(
                ["bash", "-o", "pipefail", "-c", text], cwd=self.folder, env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=_SECONDS,
            )  # fmt: skip
            code, printed = done.returncode, done.stdout
        else:
            running = start(_call, str(self.folder), block.with_added(words), self.environment)
            code, printed = running.wait(_SECONDS), running.stdout
        said = f"it printed:\n{_ending(printed)}"
        if code != expected:
            raise PageError(f"line {command.line}: {command.text}\nexit code {code}, not {expected}; {said}")
        if (line := missing_line(command.shown, printed)) is not None:
            raise PageError(f"line {command.line}: {command.text}\nthe page shows {line!r}; {said}")

    def _start(self, command: Command) -> None:
        """Runs a command in the background until the page ends; goes on when it has printed what the page shows."""
        words = Command(command.text.rstrip("& "), command.shown, command.line).words
        if words is None:
            raise PageError(f"line {command.line}: only a call of skipwise runs in the background")
        if not any(line.strip(" .") for line in command.shown):
            raise PageError(f"line {command.line}: show the line that says that it is ready, to wait for")
        running = start(_call, str(self.folder), words, self.environment)
        self._background.append(running)
        end = time.monotonic() + 60
        while (line := missing_line(command.shown, running.stdout)) is not None:
            if running.returncode is not None or time.monotonic() > end:
                said = f"the page shows {line!r}; it printed:\n{_ending(running.stdout)}"
                raise PageError(f"line {command.line}: {command.text}\n{said}")
            time.sleep(0.05)
