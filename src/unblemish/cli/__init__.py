"""The command line. One command per file: `cli/<name>.py` defines a function `<name>`.

A command file imports nothing but typer (and the standard library) at its top, so that `--help` is
quick; the heavy imports stand inside functions. A command reports its outcome by `typer.Exit`:

    0  done, and for `inspect`: no defects      130  interrupted
    1  `inspect` found defects                  141  the reader of a pipe went away
    2  an error, or wrong usage
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from unblemish.errors import UnblemishError

CLEAN, DEFECTS, ERROR = 0, 1, 2
INTERRUPTED, PIPE_CLOSED = 130, 141
COMMANDS = (
    "train", "export", "build-engines", "fit", "show", "calibrate", "inspect", "inpaint",
    "profile", "demo", "doctor",
)  # fmt: skip
DEBUG = "UNBLEMISH_DEBUG"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line on `arguments` (default: the process's) and return the exit code."""
    # Damaged files are reported once, by us: the decoders' own log lines would only repeat it.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "OFF")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    try:
        create_app()(args=arguments, prog_name="unblemish")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else ERROR if end.code else CLEAN
    except KeyboardInterrupt:
        return _interrupted()
    return CLEAN


def create_app() -> typer.Typer:
    """Build the application with every command."""
    app = typer.Typer(
        name="unblemish",
        help="Find what does not belong: pixel-accurate defect masks, learned from normals only.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for name in COMMANDS:
        function = name.replace("-", "_")
        command = getattr(importlib.import_module(f"unblemish.cli.{function}"), function)
        app.command(name)(guarded(command))
    return app


def guarded(command: Callable[..., Any]) -> Callable[..., Any]:
    """Turn what a command raises into one clear line on stderr and the exit code."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except KeyboardInterrupt:
            raise typer.Exit(_interrupted()) from None
        except BrokenPipeError:
            # Python flushes stdout once more at exit: give it somewhere to go.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(PIPE_CLOSED) from None
        except UnblemishError as error:
            raise typer.Exit(_fail(str(error))) from None
        except Exception as error:
            if _is_control(error):
                raise
            hint = f"This is a fault of unblemish; {DEBUG}=1 shows where it happened."
            raise typer.Exit(_fail(f"unexpected {type(error).__name__}: {error}\n{hint}")) from None

    return run


def _is_control(error: Exception) -> bool:
    # typer.Exit, Abort, BadParameter and friends: typer itself knows what to do with them.
    return isinstance(error, (typer.Exit, typer.Abort, typer.BadParameter))


def _fail(message: str) -> int:
    if os.environ.get(DEBUG):
        import traceback

        traceback.print_exc()
    typer.echo(f"error: {message}", err=True)
    return ERROR


def _show_warning(message: Warning | str, *_: Any) -> None:
    typer.echo(f"warning: {message}", err=True)


def _interrupted() -> int:
    typer.echo("\ninterrupted", err=True)
    return INTERRUPTED


def _version(wanted: bool) -> None:
    if wanted:
        from unblemish import __version__

        typer.echo(f"unblemish {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    pass
