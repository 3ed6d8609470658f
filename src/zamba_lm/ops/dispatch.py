"""Which implementation of an op runs, and how to see and force it.

Every op keeps a table of implementations in order of preference. An implementation says for a device why it cannot run there, or
None when it can; the first that can run, runs. Nothing is read from the environment.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from pathlib import Path

import torch

from zamba_lm.errors import ZambaError

OPS: dict[str, "Op"] = {}
_forced: dict[str, str] = {}  # of the whole process: plain globals, because torch.compile can read them
_records: list[list[tuple[str, str]]] = []


def _anywhere(device: torch.device) -> str | None:
    return None


@dataclass(frozen=True)
class Implementation:
    """One way to compute an op. ``obstacle(device)`` is None where it runs and the reason where it does not."""

    name: str
    run: Callable
    obstacle: Callable[[torch.device], str | None] = _anywhere


@dataclass
class Op:
    """An op's table: implementations from the preferred to the plain one."""

    name: str
    implementations: tuple[Implementation, ...]
    _chosen: dict[torch.device, Implementation] = field(default_factory=dict)

    def __post_init__(self):
        OPS[self.name] = self

    def __call__(self, device: torch.device) -> Callable:
        """The function to run on ``device``; raises ZambaError when a forced implementation cannot run there."""
        if self.name in _forced:
            chosen = self._named(_forced[self.name], device)
        else:
            chosen = self._chosen.get(device) or self._chosen.setdefault(device, self._first(device))
        for record in _records:
            record.append((self.name, chosen.name))
        return chosen.run

    def _first(self, device: torch.device) -> Implementation:
        return next(i for i in self.implementations if i.obstacle(device) is None)

    def _named(self, name: str, device: torch.device) -> Implementation:
        chosen = next((i for i in self.implementations if i.name == name), None)
        if chosen is None:
            known = ", ".join(i.name for i in self.implementations)
            raise ZambaError(f"op {self.name} has no implementation {name!r}; it has {known}")
        if reason := chosen.obstacle(device):
            raise ZambaError(f"op {self.name} cannot run as {name} on {device}: {reason}")
        return chosen


@cache
def meet_all() -> None:
    """Import every op's folder, so that ``OPS`` knows those too that nothing has called yet."""
    for file in sorted(Path(__file__).parent.glob("*/__init__.py")):
        import_module(f"{__package__}.{file.parent.name}")


@contextmanager
def force(**choices: str) -> Iterator[None]:
    """Run the named ops with the named implementations inside the block: ``with force(ssd="reference"): ...``, process-wide."""
    for op in choices:
        if op not in OPS:
            near = get_close_matches(op, OPS, 1)
            raise ZambaError(
                f"there is no op {op!r}" + (f", did you mean {near[0]!r}?" if near else f"; ops are {', '.join(OPS)}")
            )
    before = dict(_forced)
    _forced.update(choices)
    try:
        yield
    finally:
        _forced.clear()
        _forced.update(before)


def choose_anew() -> None:
    """Forget which implementations run where: what stands in their way has changed."""
    for op in OPS.values():
        op._chosen.clear()


def forced() -> dict[str, str]:
    """The ops that are forced at the moment, with the names of the implementations: what ``force`` takes."""
    return dict(_forced)


@contextmanager
def record() -> Iterator[list[tuple[str, str]]]:
    """Collect (op, implementation) for every call inside the block, in order."""
    calls: list[tuple[str, str]] = []
    _records.append(calls)
    try:
        yield calls
    finally:
        _records[:] = [r for r in _records if r is not calls]  # by identity: two records may hold equal calls


BACKENDS = ("auto", "triton", "reference")


def use(backend: str, device: torch.device | str) -> None:
    """From now on, in the whole process: "triton" or "reference" forces every op that has such an implementation, "auto" none.

    Raises ZambaError when one of them cannot run on ``device``.
    """
    if backend not in BACKENDS:
        raise ZambaError(f"unknown backend {backend!r}, expected one of {', '.join(BACKENDS)}")
    meet_all()
    named = [op for op in OPS.values() if any(i.name == backend for i in op.implementations)]
    for op in named:
        op._named(backend, torch.device(device))
    _forced.clear()
    _forced.update({op.name: backend for op in named})


def without(name: str, device: torch.device | str) -> tuple[list[str], str]:
    """The ops that have an implementation ``name`` which cannot run on ``device``, and the reason."""
    meet_all()
    device, missing, reason = torch.device(device), [], ""
    for op in (OPS[key] for key in sorted(OPS)):
        for i in op.implementations:
            if i.name == name and op.name not in _forced and (why := i.obstacle(device)):
                missing, reason = [*missing, op.name], why
    return missing, reason


def table(device: torch.device | str = "cpu") -> list[tuple[str, str, str]]:
    """Rows (op, implementation that would run on ``device``, why), in alphabetical order."""
    meet_all()
    device = torch.device(device)
    return [_row(OPS[name], device) for name in sorted(OPS)]


def _row(op: Op, device: torch.device) -> tuple[str, str, str]:
    if name := _forced.get(op.name):
        return op.name, op._named(name, device).name, "forced"
    chosen = op._first(device)
    passed = [f"{i.name}: {i.obstacle(device)}" for i in op.implementations[: op.implementations.index(chosen)]]
    return op.name, chosen.name, "; ".join(passed) or ("only one" if len(op.implementations) == 1 else "preferred here")
