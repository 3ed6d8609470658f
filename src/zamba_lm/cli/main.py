"""The program: its commands, and what a mistake looks like (one line on standard error, exit code 1; wrong usage: 2)."""

import sys
import warnings
from typing import Annotated

import typer

from zamba_lm.cli import bench, chat, convert, data, generate, info, train
from zamba_lm.errors import ZambaError

# Plain help and plain errors: drawing them with rich costs 0.1 s before the first letter.
app = typer.Typer(
    name="zamba-lm",
    help="Run, chat with, look into, convert and measure Zamba and Zamba2 language models.",
    epilog="zamba-lm COMMAND --help shows examples. Without --model, the embedded zamba2-pebble is used.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
app.command()(generate.generate)
app.command()(chat.chat)
app.command()(info.info)
app.command()(convert.convert)
app.add_typer(bench.app, name="bench")
app.add_typer(data.app, name="data")
app.add_typer(train.app, name="train")


@app.command()
def version() -> None:
    """Print the versions of zamba-lm, Python and torch.

    Example: zamba-lm version
    """
    from importlib.metadata import version as version_of

    print(f"zamba-lm {version_of('zamba-lm')}, Python {sys.version.split()[0]}, torch {version_of('torch')}")


def _version(asked: bool) -> None:
    if asked:
        version()
        raise typer.Exit


@app.callback()
def _before(
    asked: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the versions and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the program; never a traceback for a user's mistake or the machine's trouble."""
    warnings.showwarning = _one_line
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal that lacks a letter gets a question mark
    try:
        app(prog_name="zamba-lm")
    except BrokenPipeError:
        sys.exit(1)
    except Exception as error:
        if (message := _plainly(error)) is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        sys.exit(1)


def _plainly(error: Exception) -> str | None:
    """What to tell the user; None for a mistake of ours, which keeps its traceback."""
    if isinstance(error, ZambaError):
        return " ".join(str(error).split())
    if isinstance(error, OSError):
        return ": ".join(str(part) for part in (error.strerror or error, error.filename) if part)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error):
        return "out of memory; a shorter prompt, a smaller dtype or a smaller model needs less"
    return None


def _one_line(message, category, filename, lineno, file=None, line=None) -> None:
    print(f"warning: {message}", file=sys.stderr)
