"""Reading what people type or pipe in, and telling them things beside the text."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from time import perf_counter

from zamba_lm.errors import ZambaError

COMMANDS = dict.fromkeys(i for i in (*range(32), *range(127, 160)) if chr(i) not in "\n\t")  # bells, escapes, line jumps


def say(text: str) -> None:
    """One line beside the text: on standard error."""
    print(text, file=sys.stderr, flush=True)


def first_rank_only() -> None:
    """Of the processes that torchrun started, only the first speaks."""
    if os.environ.get("RANK", "0") != "0":
        sys.stdout = sys.stderr = open(os.devnull, "w")


@contextmanager
def busy(text: str) -> Iterator[None]:
    """Show what takes so long, while it does, to people (not to log files)."""
    if not sys.stderr.isatty():
        yield
        return
    print(text, end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        print("\r\033[K", end="", file=sys.stderr, flush=True)


def write(pieces: Iterable[str]) -> None:
    """Pieces of text on standard output, each at once. A file gets every character, a terminal none that commands it."""
    for piece in pieces:
        sys.stdout.write(piece.translate(COMMANDS) if sys.stdout.isatty() else piece)
        sys.stdout.flush()


def utf8(data: bytes, where: str) -> str:
    """Bytes as text; raises ZambaError where they are no UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ZambaError(f"{where} is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}") from error


def checked(text: str, where: str) -> str:
    """An argument or a typed line; raises ZambaError where the shell passed on bytes that are no UTF-8."""
    return utf8(text.encode("utf-8", "surrogateescape"), where)


def piped_text() -> str:
    """All of standard input, without the line end that ``echo`` adds."""
    text = utf8(sys.stdin.buffer.read(), "standard input")
    return text.removesuffix("\n").removesuffix("\r")


def piped_lines() -> Iterator[str]:
    """Standard input, line by line as they come."""
    for number, line in enumerate(sys.stdin.buffer, 1):
        yield utf8(line, f"line {number} of standard input").rstrip("\r\n")


def typed_lines(prompt: str) -> Iterator[str]:
    """Lines typed at the prompt, with editing and history, until the end of input (Ctrl-D)."""
    try:
        import readline  # noqa: F401  # importing it is what gives input() arrow keys
    except ImportError:
        pass  # Windows: the console edits lines itself
    while True:
        try:
            yield checked(_ask(prompt), "the line")
        except EOFError:
            say("")
            return


def _ask(prompt: str) -> str:
    if sys.stdout.isatty():
        return input(prompt)
    print(prompt, end="", file=sys.stderr, flush=True)  # standard output goes to a file, which gets answers alone
    return input()


class Clock:
    """Tokens a second, from now on."""

    def __init__(self, now: Callable[[], float] = perf_counter):
        self._now, self._start = now, now()

    def rate(self, tokens: int) -> str:
        """ "12 tokens, 34.5 tokens/s": the whole time counts, reading the prompt included."""
        seconds = max(self._now() - self._start, 1e-9)
        return f"{tokens} token{'s' * (tokens != 1)}, {tokens / seconds:.1f} tokens/s"
