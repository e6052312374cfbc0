"""Help: at most 80 columns with whole words, flags in groups, and examples that work as typed."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main

from skipwise import cli
from skipwise.cli.help import GROUPS
from skipwise.cli.options import settings_over

COMMANDS: dict[str, Any] = getattr(typer.main.get_command(cli.build_app()), "commands")  # noqa: B009 - for pyright
QUICK, SLOW = ("doctor", "generate", "keys create", "keys list"), ("plan", "coverage", "eval", "eval build-suite")
"""Verbs whose first example takes seconds, and needs nothing that the machine does not have."""


@pytest.fixture(autouse=True)
def narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def help_of(verb: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main([*verb.split(), "--help"]) == 0
    return capsys.readouterr().out


def examples_of(verb: str) -> list[list[str]]:
    """The words of each example, as a shell reads them from the printed help."""
    command = COMMANDS[verb]
    text = command.get_help(typer.Context(command, info_name=verb))
    block = re.search(r"^Examples?:\n((?: .*\n)+)", text, re.MULTILINE)
    assert block is not None, verb
    lines = block[1].replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines]


@pytest.mark.parametrize("verb", ["", *cli.VERBS])
def test_fits_80_columns_and_cuts_no_word(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = help_of(verb, capsys)
    assert max(map(len, out.splitlines())) <= 80
    assert not re.search("…|[.]{3}(?!\\s|\\])", out.replace(",...", ""))
    words = " ".join(out.split())
    params = COMMANDS[verb].params if verb else []
    for param in params:
        assert param.help, param.name
        assert " ".join(param.help.split()) in words
        assert param.metavar is not None or param.is_flag, param.name


def test_verbs_are_listed_once_in_the_order_of_work_with_whole_sentences(capsys: pytest.CaptureFixture[str]) -> None:
    out = help_of("", capsys)
    listed = [name for names in GROUPS.values() for name in names if name in cli.VERBS]
    assert sorted(listed) == sorted(cli.VERBS.keys() - {"keys"})  # The same as `keys list`.
    rows = [line for line in out.splitlines() if re.match(r"  [a-z]", line)]
    assert [re.split(r"\s{2,}", line.strip())[0] for line in rows] == listed
    assert all(line.endswith(".") and not line.endswith("...") for line in rows)


def test_flags_are_grouped_and_those_that_everybody_has_come_last(capsys: pytest.CaptureFixture[str]) -> None:
    headings = re.findall(r"^([A-Z][^:\n]*):$", help_of("plan", capsys), re.MULTILINE)
    assert headings == [
        "Examples",
        "Options",
        "Training",
        "Serving",
        "Assumptions",
        "Loading the model",
        "Output",
    ]
    for verb in COMMANDS:
        assert "\nOutput:\n" in (out := help_of(verb, capsys))
        assert out.rindex("--json") > out.index("\nOutput:\n")


@pytest.mark.parametrize("verb", COMMANDS)
def test_examples_parse(verb: str) -> None:
    for _, *words in examples_of("keys list" if verb == "keys" else verb):
        assert words[: len(verb.split())] == verb.split()
        arguments = words[len(verb.split()) :] if verb != "keys" else []
        context = COMMANDS[verb].make_context(verb, list(arguments))
        given = context.params
        if verb in ("extend", "doctor", "compare") and given.get("target") is not None:
            from skipwise.compare import Comparison
            from skipwise.config import RunConfig

            model = {"model": given.get("model") or given.get("source"), "target": given["target"]}
            if verb == "compare":
                Comparison.from_mapping(
                    settings_over({}, model | {"arms": given["arms"] or ["pose"]}, given["settings"])
                )
            else:
                RunConfig.from_mapping(settings_over({}, model, given["settings"]))


@pytest.mark.parametrize("verb", [*QUICK, *(pytest.param(verb, marks=pytest.mark.slow) for verb in SLOW)])
def test_the_first_example_works_as_typed(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SKIPWISE_KEYS", str(tmp_path / "keys.json"))
    if verb == "keys create":
        assert cli.main(examples_of("keys role")[0][1:]) == 0
    if verb == "keys list":
        assert cli.main(["keys", "role", "reader"]) == 0
    assert cli.main(examples_of(verb)[0][1:]) == 0
    assert capsys.readouterr().out
