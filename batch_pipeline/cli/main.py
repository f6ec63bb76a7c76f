"""The `batch-pipeline` program: its commands, and what an error becomes.

What belongs here: the list of commands and exit codes. What does not: what a command does (one
module each). Nothing here or at the top of those modules imports Dagster, pandas, an SDK or
SQLAlchemy: `--help` and reads start at once.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence

import click
import typer

from batch_pipeline.cli import (
    batches,
    cache,
    completion,
    estimate,
    keys,
    limits,
    read,
    reconcile,
    report,
    review,
    run,
    serve,
    show,
    simulator,
    trial,
    watch,
)
from batch_pipeline.cli.output import INTERRUPTED, OK, SOME_FAILED, USAGE, Output
from batch_pipeline.errors import BatchPipelineError

_HELP = """Large tables through LLM APIs: checked, reported, paid for once.

A first look, without any key: [bold]batch-pipeline demo[/bold].
"""


@functools.cache
def program() -> click.Command:
    """All commands."""
    app = typer.Typer(
        help=_HELP, no_args_is_help=True, add_completion=False, rich_markup_mode="rich"
    )
    work = "Work"
    app.command("run", rich_help_panel=work)(run.run)
    app.command("estimate", rich_help_panel=work)(estimate.estimate)
    app.command("try", rich_help_panel=work)(trial.try_rows)
    app.command("retry", rich_help_panel=work)(run.retry)
    app.command("demo", rich_help_panel=work)(run.demo)
    app.add_typer(batches.app, name="batches", rich_help_panel=work)
    app.add_typer(review.app, name="review", rich_help_panel=work)
    app.command("serve", rich_help_panel=work)(serve.serve)
    reading = "Look"
    app.command("status", rich_help_panel=reading)(read.status)
    app.command("failed", rich_help_panel=reading)(read.failed)
    app.command("show", rich_help_panel=reading)(show.show)
    app.command("report", rich_help_panel=reading)(report.report)
    app.command("watch", rich_help_panel=reading)(watch.watch)
    app.add_typer(completion.app, name="completion", rich_help_panel=reading)
    upkeep = "Look after"
    app.add_typer(cache.app, name="cache", rich_help_panel=upkeep)
    app.add_typer(keys.app, name="keys", rich_help_panel=upkeep)
    app.command("reconcile", rich_help_panel=upkeep)(reconcile.reconcile)
    app.add_typer(limits.app, name="limits", rich_help_panel=upkeep)
    app.add_typer(simulator.app, name="simulator", rich_help_panel=upkeep)
    return typer.main.get_command(app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; gives its exit code.

    Args:
        arguments: the command line without the program's name; None is this process's.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    # Read off the words themselves: a command line that cannot be parsed must still answer in JSON.
    output = Output(json="--json" in words, verbose="--verbose" in words)
    try:
        code = program().main(words, prog_name="batch-pipeline", standalone_mode=False)
    except click.ClickException as error:
        return _refused(output, error)
    except click.Abort:
        return INTERRUPTED
    except BatchPipelineError as error:
        if output.verbose:
            output.err.print_exception()
        return fail(output, error.message, error.next_step, error.exit_code)
    except Exception as error:
        if output.verbose:
            output.err.print_exception()
        return fail(
            output,
            f"{type(error).__name__}: {error}",
            "This is a fault of the program: run again with --verbose to see where.",
            SOME_FAILED,
        )
    return code if isinstance(code, int) else OK


def fail(output: Output, message: str, next_step: str, code: int) -> int:
    """Say what was wrong and what to do next, in words or as JSON; gives `code`."""
    output.err.print(f"Error: {message}", markup=False, style="red")
    if next_step:
        output.note(next_step)
    output.emit({"error": {"message": message, "next_step": next_step}})
    return code


def _refused(output: Output, error: click.ClickException) -> int:
    """A command line that does not parse."""
    if type(error).__name__ == "NoArgsIsHelpError":
        # Its message is the help text itself.
        return USAGE
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "batch-pipeline"
    return fail(output, error.format_message(), f"`{path} --help` lists the options.", USAGE)
