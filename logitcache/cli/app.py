"""The command line application: commands, and exit codes of errors.

Results go to stdout, progress and errors to stderr.
"""

from __future__ import annotations

import atexit
import errno
import gc
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from logitcache.cache.store.retry import PATIENCE, parse_patience
from logitcache.cli.commands import Commands
from logitcache.cli.create import create_app
from logitcache.cli.derive import derive_app
from logitcache.cli.echo import accept_all_characters, echo
from logitcache.cli.exchange import exchange_app
from logitcache.cli.garbage import garbage_app
from logitcache.cli.interrupt import interruptible
from logitcache.cli.launch import launched_rank
from logitcache.cli.logs import configure
from logitcache.cli.maintain import LOOK, maintain_app
from logitcache.cli.report import report_app
from logitcache.cli.tools import tools_app
from logitcache.cli.transfer import transfer_app
from logitcache.cli.views import views_app
from logitcache.errors import Interrupted, LogitcacheError, StorageError, UsageError

__all__ = ["app", "main"]

_HEAVY = {
    *("demo", "evaluate", "plan", "precompute", "repair", "report", "run", "timm-train", "tools"),
    *("train", "views"),
}
"""Commands that import PyTorch before they print anything."""

app = Commands(
    name="logitcache",
    help="Run each teacher once. Train any number of students from its cached outputs.",
    epilog="logitcache demo shows all of it in three minutes. COMMAND --help lists options.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(create_app)  # without a name: its commands are the program's own
app.add_typer(maintain_app)
app.add_typer(report_app)
app.add_typer(garbage_app)
app.add_typer(transfer_app)
app.add_typer(derive_app)
app.add_typer(exchange_app)
app.add_typer(views_app, name="views", rich_help_panel=LOOK)
app.add_typer(tools_app, name="tools", rich_help_panel=LOOK)


@app.callback(invoke_without_command=True)
def _of_all_commands(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    retry_seconds: Annotated[
        str | None,
        typer.Option(
            metavar="SECONDS",
            help="Number of seconds for which failed requests to a remote cache are retried; 120 "
            f"by default. The environment variable {PATIENCE} sets the same.",
        ),
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print no progress; results and errors alone.")
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option("--verbose", "-v", help="Print what is decided, and why, to stderr."),
    ] = False,
    log_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Append progress, decisions and errors to this file, with times."
        ),
    ] = None,
) -> None:
    configure(quiet=quiet, verbose=verbose, file=log_file, arguments=sys.argv[1:])
    if not quiet and context.invoked_subcommand is not None:
        _announce(context.invoked_subcommand)
    if retry_seconds is not None:
        parse_patience(retry_seconds, "--retry-seconds")
        os.environ[PATIENCE] = retry_seconds  # for child processes too
    if version:
        from importlib.metadata import version as version_of

        echo(version_of("logitcache"))
        raise typer.Exit
    if context.invoked_subcommand is None:
        raise UsageError("a command is missing", hint="run logitcache --help to list them")


def _announce(command: str) -> None:
    """Print on a terminal what takes the first seconds of a command."""
    heavy = command in _HEAVY or (command == "verify" and "--teachers" in sys.argv)
    if heavy and sys.stderr.isatty() and not {"-h", "--help"} & set(sys.argv):
        echo(f"{command}: loading PyTorch", err=True)


def main() -> None:
    """Run the command line and leave with the exit code of what happened."""
    # the collections at the end of the interpreter visit all objects of PyTorch, for a second
    atexit.register(gc.freeze)
    # commands print the notes themselves, so the package's log is silenced; damaged files are not
    # in any result, so the warnings about them alone still reach stderr
    logging.getLogger("logitcache").addHandler(logging.NullHandler())
    accept_all_characters()
    warnings.formatwarning = _one_line  # affects the whole process, which runs nothing else
    if logging.lastResort is not None:
        logging.getLogger("logitcache.files").addHandler(logging.lastResort)
    try:
        with interruptible():
            app()
    except LogitcacheError as error:
        _exit_with(error)
    except KeyboardInterrupt:
        _exit_with(Interrupted("interrupted", kept=False))
    except BrokenPipeError:
        # the reader of stdout (head, less) has ended; closing stderr keeps the interpreter from
        # reporting the failed flush of stdout at exit
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT} and error.filename is None:
            raise  # it names no file, so there is nothing that the user could fix
        _exit_with(_storage_error(error))


def _one_line(message: Warning | str, *_: object, **__: object) -> str:
    """Format a warning without the line of code it came from."""
    return f"warning: {message}\n"


def _storage_error(error: OSError) -> StorageError:
    """Return the error of the package for an error of the file system."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        what, first = "no space left on the device", "free some space"
    else:
        what, first = "a file cannot be read or written", "check this path and its permissions"
    return StorageError(
        what,
        where=error.filename,
        got=error.strerror,
        hint=f"{first} and re-run the same command; finished work is intact",
    )


def _exit_with(error: LogitcacheError) -> NoReturn:
    """Print an error, with the rank if there are several processes, and leave with its code."""
    rank = launched_rank()
    who = f"process {rank}: " if rank else ""
    logging.getLogger("logitcache.cli").error("%s", error.render())
    print(f"{who}error: {error.render()}", file=sys.stderr)
    sys.exit(error.exit_code)
