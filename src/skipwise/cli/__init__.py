"""The command `skipwise`: one file per verb.

Exit codes: 0 done, 1 a verdict is negative, 2 bad input (one line on stderr says what to do, a second may say where to
read on; a note about former flags may precede them), 70 a bug of ours (with its traceback), 130 interrupted, 141 the
reader of a pipe has gone. Verbs import torch and all that needs it inside their functions, so that `--help` and
mistakes in the command line answer at once.
"""

import atexit
import gc
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer
import typer.main

from skipwise import __version__
from skipwise.allocator import use_huge_pages
from skipwise.cli import (
    benchmarks,
    build_suite,
    calibrate,
    calibrate_rope,
    compare,
    coverage,
    demo,
    doctor,
    evaluate,
    export,
    extend,
    generate,
    keys,
    pilot,
    plan,
    report,
    serve,
)
from skipwise.cli.former_flags import command_class
from skipwise.cli.help import RootHelp
from skipwise.cli.options import BAD_INPUT, BROKEN_PIPE, BUG, DONE, INTERRUPTED, NEGATIVE
from skipwise.errors import SkipwiseError
from skipwise.imports import LinesAboveBars
from skipwise.pages import read_on

__all__ = ["BAD_INPUT", "BROKEN_PIPE", "BUG", "DONE", "INTERRUPTED", "NEGATIVE", "VERBS", "build_app", "main"]

VERBS: dict[str, Callable[..., None]] = {
    "plan": plan.plan,
    "doctor": doctor.doctor,
    "coverage": coverage.coverage,
    "extend": extend.extend,
    "calibrate": calibrate.calibrate,
    "calibrate rope": calibrate_rope.calibrate_rope,
    "eval": evaluate.evaluate,
    "eval build-suite": build_suite.build_suite,
    "eval benchmarks": benchmarks.benchmarks,
    "compare": compare.compare,
    "pilot": pilot.pilot,
    "report": report.report,
    "export": export.export,
    "generate": generate.generate,
    "serve": serve.serve,
    "keys role": keys.role,
    "keys create": keys.create,
    "keys": keys.list_keys,
    "keys list": keys.list_keys,
    "keys revoke": keys.revoke,
    "demo": demo.demo,
}
"""The verbs, in the order of the help. Their docstrings are their help."""


class _Words(RootHelp):
    """A group whose commands may have names of two words, such as `eval build-suite` beside `eval`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        two_words = " ".join(args[:2])
        return super().resolve_command(ctx, [two_words, *args[2:]] if two_words in self.commands else args)


def build_app() -> typer.Typer:
    """The command with all its verbs."""
    app = typer.Typer(
        name="skipwise",
        cls=_Words,
        help="Longer context windows for RoPE language models at the training cost of short ones.",
        epilog="Try it: skipwise demo. Help of a command: skipwise extend --help",
        add_completion=False,
        rich_markup_mode=None,
        invoke_without_command=True,
        context_settings={"help_option_names": ["--help", "-h"]},
    )
    app.callback()(_root)
    for name, verb in VERBS.items():
        app.command(name, cls=command_class(name))(verb)
    return app


def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", envvar="SKIPWISE_DEBUG", help="Print the traceback of an error.")
    ] = False,
) -> None:
    # `debug` is read by main(), which is where errors end up.
    if version:
        print(f"skipwise {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command with these arguments, or the process's own, and returns the exit code.

    Nothing but an exit of the interpreter escapes from here.
    """
    use_huge_pages()
    if arguments is None:
        # Skips the collector's last round at exit, which takes a second.
        atexit.register(gc.freeze)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[LinesAboveBars()])
    command = typer.main.get_command(build_app())
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = False
    try:
        # Not `app()`: it prints errors its own way, in boxes, and ends a broken pipe with 1, our negative verdict.
        with command.make_context("skipwise", list(given)) as context:
            debug = context.params["debug"]
            try:
                command.invoke(context)
            finally:
                sys.stdout.flush()
    except typer.Exit as stop:
        return stop.exit_code
    except (KeyboardInterrupt, typer.Abort):
        _complain("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # The interpreter flushes stdout once more on its way out, and would complain about it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return BROKEN_PIPE
    except typer.TyperException as error:
        _complain(_usage_message(error, command, given))
        return BAD_INPUT
    except (SkipwiseError, OSError) as error:
        if debug:
            traceback.print_exc()
        _complain(str(error))
        # The message of an invalid setting says all: what was given, and what is allowed.
        if isinstance(error, SkipwiseError) and error.page != SkipwiseError.page:
            print(read_on(error.page), file=sys.stderr)
        return BAD_INPUT
    except Exception as error:
        traceback.print_exc()
        _complain(
            f"unexpected {type(error).__name__}; this is a bug in skipwise, please report it with the lines above"
        )
        return BUG
    return DONE


def _complain(message: str) -> None:
    print("skipwise: " + " ".join(message.split()), file=sys.stderr)


def _usage_message(error: typer.TyperException, command: Any, arguments: Sequence[str]) -> str:
    """typer's sentence about a mistake in the command line, and where the right way is written."""
    context: typer.Context | None = getattr(error, "ctx", None)
    # An option without its value is found before there is a context of the verb.
    verbs = [" ".join(arguments[:words]) for words in (2, 1) if " ".join(arguments[:words]) in command.commands]
    path = context.command_path if context else " ".join(["skipwise", *verbs[:1]])
    # Its checks of choices come through pydantic, which says so in front.
    said = error.format_message().rstrip(".").replace(": Value error, ", ": ")
    return f"{said}; see '{path} --help'"
