"""Checks blocks without running them: every verb, flag and setting on a page is one that skipwise has."""

import ast
from collections.abc import Mapping
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import typer.main
import yaml

from docs.pages import Block, PageError
from skipwise.cli import build_app
from skipwise.cli.options import BAD_INPUT, assigned
from skipwise.compare.settings import Comparison
from skipwise.config import RunConfig, merge_settings
from skipwise.config.reading import parse_yaml
from skipwise.errors import ConfigError
from skipwise.train.arguments import training_settings

_OF_RUNS = {*RunConfig.model_fields, *Comparison.model_fields} - {"run"}


def parse(arguments: list[str]) -> tuple[str, dict[str, Any]]:
    """The verb and the flags that a command line means, read by the real command.

    Raises:
        PageError: it is not one that the command takes.
    """
    command: Any = typer.main.get_command(build_app())
    try:
        # `--help` prints.
        with redirect_stdout(StringIO()), command.make_context("skipwise", list(arguments)) as context:
            rest = [*context._protected_args, *context.args]
            if not rest:
                return "", context.params
            verb, found, rest = command.resolve_command(context, rest)
            with found.make_context(verb, rest, parent=context) as inner:
                return verb, inner.params
    except typer.Exit:
        return "", {}
    except (typer.TyperException, ConfigError) as error:
        said = error.format_message() if isinstance(error, typer.TyperException) else str(error)
        raise PageError(f"skipwise {' '.join(arguments)}: {said}") from error


def check_call(arguments: list[str]) -> None:
    """Checks flags, and settings given by `--set`, of one call; raises PageError."""
    verb, flags = parse(arguments)
    try:
        if verb == "eval":
            from skipwise.cli.evaluate import make_tasks

            names = flags["task"] or ("suite" if flags["suite"] else "perplexity,passkey")
            folder = flags["suite"] and str(flags["suite"])
            given = {"base": flags["base"], "folder": folder, "language": flags["language"]}
            make_tasks(names, {k: v for k, v in given.items() if v is not None}, flags["settings"] or [])
        elif "settings" in flags:
            of_run = {name: flags.get(name) for name in ("target", "recipe", "tuning") if flags.get(name)}
            for assignment in flags["settings"] or []:
                of_run = merge_settings(of_run, assigned(assignment))
            check_settings(of_run)
    except ConfigError as error:
        raise PageError(f"skipwise {' '.join(arguments)}: {error}") from error


def check_settings(tree: Mapping[str, Any]) -> None:
    """Validates settings of a run or a comparison, of which some may be left out; raises ConfigError."""
    whole = {"model": "embedded", "target": "1M", **tree}
    if {"arms", "reference", "seeds", "reach", "evaluation", "costs"} & {*tree}:
        Comparison.from_mapping({"arms": ["base", "pose"], **whole})
    else:
        training_settings(RunConfig.from_mapping(whole))


def check_block(block: Block) -> None:
    """Raises PageError if commands, Python or settings are wrong as they stand."""
    if block.language == "console":
        commands = block.commands()
        # What a page shows to be refused is only run.
        for command in commands[:-1] if block.exit_code == BAD_INPUT else commands:
            for call in command.calls():
                try:
                    check_call(block.with_added(call))
                except PageError as error:
                    raise PageError(f"line {command.line}: {error}") from error
    elif block.language == "python":
        try:
            ast.parse(block.text)
        except SyntaxError as error:
            raise PageError(f"line {block.line}: {error}") from error
    elif block.language in ("yaml", "yml") and block.runs:
        _check_yaml(block)
    elif any(line.startswith("skipwise ") for line in block.lines):
        raise PageError(f"line {block.line}: commands stand after '$ ' in a block of 'console', so that tests run them")


def _check_yaml(block: Block) -> None:
    try:
        tree = parse_yaml(block.text)
    except yaml.YAMLError as error:
        raise PageError(f"line {block.line}: {error}") from error
    if isinstance(tree, list) and all(isinstance(entry, dict) for entry in tree):
        tree = {"data": tree}  # A mixture.
    if not isinstance(tree, dict) or not {*tree} & _OF_RUNS:
        raise PageError(f"line {block.line}: these are no settings of a run; say '<!-- run: not (what they are) -->'")
    try:
        check_settings(tree)
    except ConfigError as error:
        raise PageError(f"line {block.line}: {error}") from error
