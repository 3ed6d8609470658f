"""Telling people how a run is doing: a bar with live numbers on a terminal, plain lines anywhere else."""

import sys
from typing import Protocol

from zamba_lm.train.trainer.progress import line


class Screen(Protocol):
    def show(self, entry: dict, of: int) -> None: ...

    def say(self, text: str) -> None: ...

    def close(self) -> None: ...


class Lines:
    """One line on standard error for each entry."""

    def show(self, entry: dict, of: int) -> None:
        self.say(line(entry, of))

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        pass


class Bar:
    """A bar of steps that carries the latest numbers; evaluations and messages scroll above it."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._console = Console(stderr=True, highlight=False, markup=False)
        self._progress = Progress(BarColumn(20), TextColumn("{task.description}", markup=False), console=self._console)
        self._task = self._progress.add_task("starting")
        self._progress.start()

    def show(self, entry: dict, of: int) -> None:
        if any(key.startswith("eval_") for key in entry):
            self.say(line(entry, of))
        else:
            self._progress.update(self._task, completed=entry["step"], total=of, description=line(entry, of))

    def say(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)

    def close(self) -> None:
        self._progress.stop()


class Silence:
    """For the processes beside the first."""

    def show(self, entry: dict, of: int) -> None:
        pass

    def say(self, text: str) -> None:
        pass

    def close(self) -> None:
        pass


def screen(*, speaks: bool) -> Screen:
    """The screen of this process."""
    if not speaks:
        return Silence()
    return Bar() if sys.stderr.isatty() else Lines()
